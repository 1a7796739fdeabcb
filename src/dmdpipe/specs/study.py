"""Studies, scales and the configuration: what is run, how large, and where it goes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from dmdpipe.specs.base import Spec, later
from dmdpipe.specs.data import DataSpec
from dmdpipe.specs.diffusion import ExactScore, NoiseRange, SamplerSpec, TrainedScore
from dmdpipe.specs.hardware import Hardware
from dmdpipe.specs.network import MLP, Linear, Particles, UNet
from dmdpipe.specs.pairs import MapSettings
from dmdpipe.specs.student import STEPS, InitSettings, Recipe

Overrides = dict[str, Any]


class BankSettings(Spec):
    """Sizes of the noise bank; its dimension follows from the data."""

    n_paired: int = Field(1_000, ge=2)
    n_held_out: PositiveInt = 4_000
    n_reference_sets: int = Field(4, ge=2)


class StudentSettings(Hardware):
    """What a study may say about its students; teacher and seed follow from the rest."""

    network: Annotated[MLP | UNet | Linear | Particles, Field(discriminator="kind")] | None = Field(
        None, description="none: the teacher's"
    )
    sampling_steps: int = STEPS
    init: InitSettings = InitSettings()
    recipe: Recipe = Recipe()
    generator_steps: PositiveInt = 1_000
    batch: PositiveInt = 256
    batches: Literal["random", "expected"] = "random"
    snapshots: int = Field(10, ge=3)
    dtype: Literal["float32", "float64"] = "float32"
    together: bool = later(
        False,
        description="a point's seeds train as one ensemble, made for GPUs; what an ensemble can't do trains alone",
    )


class MetricSettings(Spec):
    """Options of the metrics."""

    projections: PositiveInt = 128
    whitened_variance: PositiveFloat = Field(0.99, le=1)


class Cell(Spec):
    """One cell of a grid, before the seed: everything that defaults, scale, study and axes may set."""

    data: DataSpec
    score: Annotated[TrainedScore | ExactScore, Field(discriminator="kind")] = TrainedScore()
    noise_range: NoiseRange = NoiseRange()
    sampler: SamplerSpec = SamplerSpec()
    bank: BankSettings = BankSettings()
    student: StudentSettings = StudentSettings()
    metrics: MetricSettings = MetricSettings()
    maps: MapSettings | None = Field(None, description="none: distances to the named maps are not taken")


class ScaleOverlay(Spec):
    """What one study changes at one scale: which values of its axes it keeps, and budgets."""

    axes: dict[str, list[str]] = Field({}, description="per axis, the labels to keep; an axis left out keeps all")
    set: Overrides = {}
    seeds: PositiveInt | None = Field(None, description="number of seeds of every point, instead of the scale's")
    seeds_at: dict[str, dict[str, PositiveInt]] = Field(
        {}, description="axis → label → number of seeds of the points with that label; the largest that applies wins"
    )


class Study(Spec):
    """A declared grid with a question and a prediction, fixed in advance (``config/studies/<name>.yaml``)."""

    number: int = Field(ge=0, description="its row in the list of experiments")
    title: str
    question: str
    prediction: str = Field(description="what would count for and against, fixed before the runs")
    changes_mind: str = Field("", description="what would change our mind, beyond what the claims' criteria say")
    base: Overrides = Field({}, description="dotted key → value, for every cell")
    axes: dict[str, dict[str, Overrides]] = Field(
        {}, description="axis → label → dotted keys; the grid is the product of the axes"
    )
    scales: dict[str, ScaleOverlay] = {}


class Scale(Spec):
    """Budgets and sizes of all studies at once (``config/scales/<name>.yaml``); never meanings."""

    title: str
    seeds: PositiveInt = Field(description="independent pairs of teacher and student per point")
    seeds_together: PositiveInt | None = later(
        None, description="the same, per point whose students train as one ensemble; none: seeds"
    )
    first_seed: NonNegativeInt = Field(0, description="the seeds of a point are first_seed, first_seed + 1, …")
    set: Overrides = Field({}, description="dotted key → value, for every cell of every study")


class Config(Spec):
    """``config/config.yaml``."""

    scale: str = "laptop"
    studies: tuple[str, ...] = Field(min_length=1, description="the studies to run; names of files in config/studies")
    results: str = Field("results", description="folder for everything that is made")
    devices: PositiveInt = Field(1, description="processes that share a training whose spec has shards; change no byte")
    own_data: dict[str, str] = Field({}, description="name → path of own data; read by the data step alone")


class CellRef(Spec):
    """A trained cell as a study lists it: its labels and where its steps are."""

    point: str
    data: str
    d: int
    network: str
    init: str
    recipe: str
    sigma_max: float
    seed: int
    metrics: str = Field(description="folder of its metrics step")
    pairs: str = Field(description="folder of its pairs step")
    maps: str | None = later(None, description="folder of its maps step")


class EvidenceSpec(Spec):
    """All cells of one study at one scale."""

    study: str
    scale: str
    cells: tuple[CellRef, ...]
