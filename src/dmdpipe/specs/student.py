"""Students: where they start, the recipe that trains them, and when they are looked at."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from dmdpipe.specs.base import Spec, later
from dmdpipe.specs.data import DataSpec, are_images, data_name, dimension, is_gaussian
from dmdpipe.specs.diffusion import NoiseBankSpec, NoiseRange, TeacherSpec
from dmdpipe.specs.hardware import Hardware, obstacle_to_shards
from dmdpipe.specs.network import MLP, Linear, Particles, UNet

InitKind = Literal[
    "teacher",
    "rotated",
    "edm-default",
    "random-head",
    "random-no-skip",
    "kd",
    "kd-one-step",
    "kd-rotated",
    "other-teacher",
    "partial",
    "interpolated",
]
COPIES = ("teacher", "rotated", "kd-rotated", "partial", "interpolated")
"""The starts for which weights of the student's own teacher are needed."""
REGRESSED = ("kd", "kd-one-step", "kd-rotated")
"""The starts that are made by a regression."""
OF_PARTICLES = ("teacher", "edm-default", "random-head")
"""The starts that particles can have."""


class Init(Spec):
    """The student's start S₀.

    teacher: the teacher's weights. rotated: the teacher's denoiser behind a fixed rotation of its input, S₀(z) =
    D(σ_max·Qz, σ_max) (an equivariance check, exact for any network). edm-default: fresh weights with a zero output
    layer, S₀ = c_skip·σ_max·z. random-head: fresh weights, random output layer, skip kept. random-no-skip: the same
    without the skip. kd: fresh weights as for random-head, first regressed onto T; a network of another shape than
    the teacher's can copy no weights, so this is the nearest that it comes to the teacher's start. kd-one-step: fresh
    weights, first regressed onto the teacher's answer in one step, D(σ_max·z, σ_max): the map of the start ``teacher``
    in weights that know nothing of the teacher's at other noise levels. kd-rotated: the
    teacher's weights, first regressed onto T∘Q. other-teacher: the weights of another teacher than the one whose score
    the student follows. partial: the teacher's weights, in some layers those of random-head. interpolated: α·teacher +
    (1 − α)·random-head, weight by weight.

    ``scale`` makes S₀ wider or narrower, whatever its kind. Particles start where a student of the teacher's network
    with the same seed would: x_i = S₀(z_i).
    """

    kind: InitKind = "teacher"
    regression_steps: PositiveInt = Field(
        2_000, description="kd, kd-one-step and kd-rotated only: steps of the regression"
    )
    fresh_first: NonNegativeInt = later(
        0, description="partial only: layers with fresh weights, counted from the input (x and noise level are one)"
    )
    fresh_last: NonNegativeInt = later(0, description="partial only: the same, counted from the output layer")
    alpha: float = later(1.0, ge=0, le=1, description="interpolated only: weight of the teacher's weights")
    scale: PositiveFloat = later(
        1.0, description="what S₀'s last layer makes is multiplied by it; the skip c_skip·σ_max·z is not"
    )

    @model_validator(mode="after")
    def _numbers_where_they_count(self) -> Init:
        for kind, names in (("partial", ("fresh_first", "fresh_last")), ("interpolated", ("alpha",))):
            for name in names:
                if self.kind != kind and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} is for the kind '{kind}', not for '{self.kind}'")
        if self.scale != 1 and self.kind == "edm-default":
            raise ValueError("scale is of no effect on the kind 'edm-default', whose last layer is 0; leave it out")
        return self


class StartSource(Spec):
    """How the teacher whose weights a student starts with differs from the one whose score it follows."""

    steps: PositiveInt | None = Field(None, description="its training steps; none: as many")
    seed_offset: NonNegativeInt = Field(0, description="added to its seed")
    data: DataSpec | None = Field(None, description="what it has seen, of the same dimension; none: the same data")
    half: Literal["first", "second"] | None = Field(
        None, description="the half of the training images that it has seen; none: the same images"
    )


class InitSettings(Init):
    """What a study may say about a start; ``StudentSpec.start`` follows from it."""

    source: StartSource | None = Field(None, description="other-teacher only: which one")

    @model_validator(mode="after")
    def _source_where_it_counts(self) -> InitSettings:
        if (self.kind == "other-teacher") != (self.source is not None):
            raise ValueError(
                f"kind '{self.kind}' and source: give a source to the kind 'other-teacher', and to no other"
            )
        return self


LARGEST_LAG = 1_000
"""A copy of the fake score's weights is kept for each step: of the studies' MLPs 20 thousand numbers or so."""


class Optimiser(Spec):
    """AdamW as in DMD2, or plain gradient descent (for the closed forms)."""

    kind: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.01
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's β₁, or SGD's momentum")
    beta2: float = Field(0.999, ge=0, lt=1)
    warmup: int = Field(500, ge=0, description="iterations (not generator steps) over which the rate rises from 0")
    decay: Literal["constant", "cosine"] = "constant"
    clip: PositiveFloat | None = Field(10.0, description="bound on the gradient's norm")


class Recipe(Spec):
    """One DMD recipe. ``name`` chooses a published one; any other key overrides a part of it.

    dmd2 (arXiv 2405.14867, EDM branch): every fifth iteration the generator steps, then the fake score trains on that
    same batch. fastgen (NVlabs/FastGen): every fifth iteration the student steps *instead of* the fake score,
    unweighted fake loss, normaliser + 1e-6, grid indices 2…998, no warm-up, an average of the student's weights is
    evaluated.
    dmd2-gan, fastgen-gan: these with their adversarial term. gan: that of dmd2-gan alone, without distribution
    matching; the fake network is only the discriminator's body.
    regression: no distribution matching; the student regresses onto T(z) (knowledge distillation).
    """

    name: Literal["dmd2", "fastgen", "dmd2-gan", "fastgen-gan", "gan", "regression"] = "dmd2"
    dm_weight: NonNegativeFloat = Field(1.0, description="weight of the distribution-matching term")
    regression_weight: NonNegativeFloat = Field(0.0, description="weight of ‖S(z) − T(z)‖² (DMD1's term, L2)")
    regression_pairs: PositiveInt = Field(8_192, description="size of the pool of pairs (z, T(z)) to regress onto")
    adversarial_weight: NonNegativeFloat = Field(0.0, description="weight of the discriminator's verdict on S(z) + σε")
    discriminator_weight: PositiveFloat = Field(0.01, description="weight of its own loss, beside the fake score's")
    discriminator: Literal["fake", "teacher"] = Field("fake", description="the network whose hidden state it reads")
    adversarial_first: int = Field(0, ge=0, description="first grid index of the discriminator's noise levels")
    adversarial_last: int = Field(999, ge=0, description="last grid index of these, included")
    generator_every: PositiveInt = Field(5, description="iterations per generator step")
    fake_trains_with_generator: bool = Field(True, description="the fake score also trains in a generator iteration")
    normalise: bool = Field(True, description="divide the gradient by mean|x − μ_real| per sample")
    normaliser_offset: NonNegativeFloat = Field(0.0, description="added to that divisor")
    normaliser_min: NonNegativeFloat = Field(0.0, description="lower clamp of that divisor (it can vanish in low d)")
    grid_size: PositiveInt = Field(1_000, description="number of Karras noise levels, ascending")
    dm_first: int = Field(20, ge=0, description="first grid index of the generator's noise levels")
    dm_last: int = Field(980, ge=0, description="last grid index of the generator's noise levels, included")
    fake_first: int = Field(0, ge=0)
    fake_last: int = Field(999, ge=0)
    fake_weighting: Literal["edm", "none"] = Field("edm", description="1/σ² + 1/σ_data², or 1")
    fake: Literal["learned", "oracle", "samples"] = Field(
        "learned",
        description="oracle: the student's exact score (linear only); samples: that of fresh samples of the student",
    )
    fake_samples: PositiveInt = later(
        4_096, description="fake 'samples' only: how many, drawn anew each generator step"
    )
    fake_start: Literal["teacher", "fresh"] = later(
        "teacher", description="fresh: fresh weights with a zero output layer, as a teacher starts"
    )
    fake_lag: int = later(
        0,
        ge=0,
        le=LARGEST_LAG,
        description="the generator follows the fake score of so many generator steps ago; all of these are kept",
    )
    score_noise: float = later(
        0.0,
        ge=0,
        description="spread of fresh noise in the teacher's score, over that of its network's targets",
    )
    generator: Optimiser = Optimiser()
    fake_score: Optimiser = Optimiser(learning_rate=5e-4)
    ema: float | None = Field(None, ge=0, lt=1, description="decay of the evaluated average of the student's weights")

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_published_recipe(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"name": given}
        if not isinstance(given, dict):
            return given
        name = given.get("name", "dmd2")
        return merged(PRESETS.get(name, {}), given) if isinstance(name, str) else given

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for first, last, what in (
            (self.dm_first, self.dm_last, "dm"),
            (self.fake_first, self.fake_last, "fake"),
            (self.adversarial_first, self.adversarial_last, "adversarial"),
        ):
            if not first <= last < self.grid_size:
                raise ValueError(
                    f"{what}_first ≤ {what}_last < grid_size must hold, got {first}, {last}, {self.grid_size}"
                )
        if self.dm_weight == self.regression_weight == self.adversarial_weight == 0:
            raise ValueError(
                "dm_weight, regression_weight and adversarial_weight are all 0: nothing would train the student"
            )
        if self.fake != "learned" and (self.fake_lag or self.fake_start != "teacher"):
            raise ValueError(f"fake_lag and fake_start need fake 'learned': '{self.fake}' neither lags nor starts")
        if not self.dm_weight and self.score_noise:
            raise ValueError("score_noise is of no effect where dm_weight is 0; leave it out")
        if not self.dm_weight and (self.fake_lag or self.fake_start != "teacher" or self.fake == "samples"):
            raise ValueError("fake, fake_lag and fake_start are of no effect where dm_weight is 0; leave them out")
        if self.fake != "samples" and self.fake_samples != type(self).model_fields["fake_samples"].default:
            raise ValueError(f"fake_samples is for fake 'samples', not for '{self.fake}'")
        if self.fake == "samples" and self.adversarial_weight:
            raise ValueError(
                "adversarial_weight needs fake 'learned': samples have no hidden state for a discriminator"
            )
        if self.adversarial_weight and self.generator_every == 1 and not self.fake_trains_with_generator:
            raise ValueError(
                "adversarial_weight with generator_every 1 needs fake_trains_with_generator: nothing would train the"
                " discriminator"
            )
        return self


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return two nested mappings as one; where both have a value, that of ``above`` counts."""
    both = {
        key: merged(below[key], above[key])
        for key in above
        if isinstance(below.get(key), dict) and isinstance(above[key], dict)
    }
    return {**below, **above, **both}


_DMD2 = {"generator": {"learning_rate": 1e-4}, "fake_score": {"learning_rate": 5e-4}}
_FASTGEN = {
    "fake_trains_with_generator": False,
    "normaliser_offset": 1e-6,
    "dm_first": 2,
    "dm_last": 998,
    "fake_first": 2,
    "fake_last": 998,
    "fake_weighting": "none",
    "discriminator": "teacher",
    "discriminator_weight": 1.0,
    "adversarial_first": 2,
    "adversarial_last": 998,
    "ema": 0.9996,
    "generator": {"learning_rate": 1e-4, "warmup": 0},
    "fake_score": {"learning_rate": 5e-4, "warmup": 0},
}
_ADVERSARIAL = {"adversarial_weight": 3e-3}
PRESETS: dict[str, dict[str, Any]] = {
    "dmd2": _DMD2,
    "fastgen": _FASTGEN,
    "dmd2-gan": _DMD2 | _ADVERSARIAL,
    "fastgen-gan": _FASTGEN | _ADVERSARIAL,
    "gan": _DMD2 | _ADVERSARIAL | {"dm_weight": 0.0},
    "regression": {
        "dm_weight": 0.0,
        "regression_weight": 1.0,
        "generator_every": 1,
        "generator": {"learning_rate": 1e-3, "decay": "cosine"},
        "fake_score": {"learning_rate": 5e-4},
    },
}


class Members(Spec):
    """The ensemble that a student trains in: students that differ in their seeds, and in those of their teachers."""

    seeds: tuple[int, ...] = Field(min_length=1, description="of all members, its own among them")
    one_teacher: bool = later(False, description="all have the same teacher; else each that of its own seed")


STEPS = later(1, ge=1, le=64, description="answers to a sample: between two of them, fresh noise is added to the first")


class StudentSpec(Hardware):
    """One student: its teacher, its start, its recipe, its length, its seed, and on what it trains."""

    teacher: TeacherSpec
    start: TeacherSpec | None = Field(None, description="init.kind other-teacher: whose weights it starts with")
    network: Annotated[MLP | UNet | Linear | Particles, Field(discriminator="kind")] = MLP()
    sampling_steps: int = STEPS
    noise_range: NoiseRange = NoiseRange()
    init: Init = Init()
    recipe: Recipe = Recipe()
    generator_steps: PositiveInt = 1_000
    batch: PositiveInt = 256
    batches: Literal["random", "expected"] = Field(
        "random",
        description="expected: batches with exact moments, so that a linear student feels the mean gradient",
    )
    snapshots: int = Field(10, ge=3, description="number of log-spaced generator steps at which weights are kept")
    dtype: Literal["float32", "float64"] = Field("float32", description="of weights, noise and samples")
    seed: int = Field(0, ge=0)
    members: Members | None = later(None, description="none: it trains alone")
    bank: NoiseBankSpec | None = later(None, description="particles only: whose paired noises are among theirs")

    @model_validator(mode="after")
    def _members_can_train_together(self) -> StudentSpec:
        if self.members is None:
            return self
        if self.seed not in self.members.seeds or len(set(self.members.seeds)) < len(self.members.seeds):
            raise ValueError(f"members.seeds must name each seed once, {self.seed} among them")
        if obstacle := obstacle_to_members(self):
            raise ValueError(f"members: {obstacle}")
        return self

    @model_validator(mode="after")
    def _shards_can_be_cut(self) -> StudentSpec:
        if obstacle := obstacle_to_shards(self, self.network.kind, self.batch):
            raise ValueError(obstacle)
        if self.shards > 1 and self.init.kind in REGRESSED:
            raise ValueError(f"shards {self.shards}: the regression of init.kind '{self.init.kind}' is not cut; take 1")
        if self.shards > 1 and self.recipe.fake == "samples":
            raise ValueError(f"shards {self.shards}: recipe.fake 'samples' draws anew for each of them; take 1")
        return self

    @model_validator(mode="after")
    def _particles_can_be_made(self) -> StudentSpec:
        if (self.network.kind == "particles") != (self.bank is not None):
            raise ValueError("bank names the paired noises of network.kind 'particles': give both or neither")
        if self.bank is None or self.network.kind != "particles":
            return self
        if self.bank.dim != dimension(self.teacher.data):
            raise ValueError(f"bank.dim ({self.bank.dim}) must be the data's dimension, {dimension(self.teacher.data)}")
        if self.network.count < self.bank.n_paired:
            raise ValueError(
                f"network.count ({self.network.count}) must be at least bank.n_paired ({self.bank.n_paired}): every"
                " paired noise has a particle"
            )
        if self.teacher.score.kind != "trained":
            raise ValueError("network.kind 'particles' needs a teacher whose score.kind is 'trained'")
        if self.init.kind not in OF_PARTICLES:
            raise ValueError(
                f"init.kind '{self.init.kind}' needs network.kind 'mlp'; particles start as {', '.join(OF_PARTICLES)}"
            )
        if self.sampling_steps > 1:
            raise ValueError("network.kind 'particles' needs sampling_steps 1: particles have no noise levels")
        if self.recipe.regression_weight or self.recipe.fake == "samples":
            raise ValueError(
                "recipe.regression_weight and recipe.fake 'samples' need network.kind 'mlp': they ask the student for"
                " its answers to fresh noise, and particles have none"
            )
        return self

    @model_validator(mode="after")
    def _asked_as_its_teacher_is(self) -> StudentSpec:
        classes = self.teacher.classes
        if getattr(self.network, "classes", 0) != classes:
            raise ValueError(
                f"network.classes must be the teacher's, {classes}: both are asked for the same class at a noise"
                f" (network.kind '{self.network.kind}')"
            )
        if classes and self.recipe.fake == "samples":
            raise ValueError("recipe.fake 'samples' is the score of all classes at once: it needs network.classes 0")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> StudentSpec:
        exact_gaussian = self.teacher.score.kind == "exact" and is_gaussian(self.teacher.data)
        if self.network.kind == "linear" and not exact_gaussian:
            raise ValueError("network.kind 'linear' needs a teacher of gaussian data with score.kind 'exact'")
        if self.network.kind == "linear" and self.init.kind not in ("teacher", "rotated"):
            raise ValueError(f"init.kind '{self.init.kind}' needs network.kind 'mlp'")
        if self.network.kind == "linear" and (self.device, self.precision) != ("cpu", "full"):
            raise ValueError("network.kind 'linear' needs device 'cpu' and precision 'full': it is for closed forms")
        if self.sampling_steps > 1:
            if self.network.kind == "linear":
                raise ValueError("sampling_steps above 1 needs network.kind 'mlp': a linear student has no noise level")
            if self.init.kind in ("rotated", *REGRESSED) or self.recipe.regression_weight:
                raise ValueError(
                    "sampling_steps above 1: rotated starts and regressions (init.kind 'kd', recipe.regression_weight)"
                    " are about S(z) of one step; take sampling_steps 1"
                )
            if self.recipe.fake == "samples":
                raise ValueError("sampling_steps above 1: recipe.fake 'samples' is the score of one step's samples")
        if self.precision != "full" and self.dtype != "float32":
            raise ValueError(f"precision '{self.precision}' needs dtype 'float32', got '{self.dtype}'")
        if self.recipe.fake == "oracle" and self.network.kind != "linear":
            raise ValueError("recipe.fake 'oracle' needs network.kind 'linear': no other student's score is known")
        if self.batches == "expected" and not (self.network.kind == "linear" and self.recipe.fake == "oracle"):
            raise ValueError("batches 'expected' needs network.kind 'linear' and recipe.fake 'oracle'")
        if self.batches == "expected" and self.recipe.score_noise:
            raise ValueError("recipe.score_noise needs batches 'random': the expected gradient has none of it")
        if self.network.kind == "unet" and not are_images(self.teacher.data):
            name = data_name(self.teacher.data)
            raise ValueError(f"network.kind 'unet' is for images in their own pixels, not for '{name}'")
        if self.network.kind == "unet" and self.init.kind == "partial":
            raise ValueError("init.kind 'partial' needs network.kind 'mlp': a U-Net's layers are in no single order")
        if self.network.kind in ("mlp", "unet") and self.init.kind in COPIES:
            if self.teacher.score.kind != "trained":
                raise ValueError(
                    f"init.kind '{self.init.kind}' copies weights: the teacher's score.kind must be 'trained'"
                )
            if self.network != self.teacher.score.network:
                raise ValueError(
                    f"init.kind '{self.init.kind}' copies weights: network must equal the teacher's; one of another"
                    " shape can start with init.kind 'kd' or 'random-head'"
                )
        layers = getattr(self.network, "depth", 0) + 2
        if self.init.fresh_first + self.init.fresh_last > layers:
            raise ValueError(
                f"init.fresh_first + init.fresh_last must be at most {layers}, the layers of the network, got"
                f" {self.init.fresh_first} + {self.init.fresh_last}"
            )
        if self.recipe.adversarial_weight and self.teacher.score.kind != "trained":
            raise ValueError(
                "recipe.adversarial_weight needs a teacher whose score.kind is 'trained': the discriminator reads the"
                " hidden state of its network"
            )
        if (self.init.kind == "other-teacher") != (self.start is not None):
            raise ValueError("start names the teacher of init.kind 'other-teacher': give both or neither")
        if self.start is not None:
            if self.start == self.teacher:
                raise ValueError("start is the student's own teacher: that is init.kind 'teacher'")
            if self.start.score.kind != "trained" or self.network != self.start.score.network:
                raise ValueError("init.kind 'other-teacher' copies weights: start must be trained, on the same network")
            if dimension(self.start.data) != dimension(self.teacher.data):
                raise ValueError("init.kind 'other-teacher' copies weights: start must have data of the same dimension")
        learns_fake = self.recipe.dm_weight > 0 and self.recipe.fake == "learned"
        if learns_fake and self.recipe.fake_start == "teacher" and self.teacher.score.kind != "trained":
            raise ValueError(
                "recipe.fake 'learned' starts as a copy of the teacher: its score.kind must be 'trained'"
                " (or take recipe.fake_start 'fresh'; a linear student can take recipe.fake 'oracle')"
            )
        return self


def obstacle_to_members(student: StudentSpec) -> str | None:
    """Return why students like this one can't train together in an ensemble, or None if they can."""
    recipe = student.recipe
    if student.network.kind != "mlp" or student.teacher.score.kind != "trained":
        return "an ensemble is of networks with trained teachers"
    if student.network.classes:
        return "the members of an ensemble can't be asked for classes"
    if recipe.adversarial_weight:
        return "the members of an ensemble can't train discriminators"
    if recipe.regression_weight or not recipe.dm_weight or student.init.kind in REGRESSED:
        return "the members of an ensemble can't regress onto the teacher's map"
    if student.sampling_steps > 1:
        return "the members of an ensemble make one step"
    if student.start:
        return "the members of an ensemble start with their own teachers' weights"
    if recipe.score_noise:
        return "the members of an ensemble follow their teachers' scores without noise"
    never_learns = recipe.generator_every == 1 and not recipe.fake_trains_with_generator
    if recipe.fake != "learned" or recipe.fake_start != "teacher" or recipe.fake_lag or never_learns:
        return "an ensemble needs fake scores that start as the teacher and learn without a lag"
    if {recipe.generator.kind, recipe.fake_score.kind} != {"adamw"}:
        return "an ensemble needs AdamW"
    if student.network != student.teacher.score.network:
        return "the members of an ensemble have networks of their teachers' shape"
    return None


def members_of(student: StudentSpec) -> list[StudentSpec]:
    """Return the specs of all members of a student's ensemble, in the order of their seeds there."""
    assert student.members and student.teacher.score.kind == "trained"

    def teacher(seed: int) -> TeacherSpec:
        if student.members and student.members.one_teacher:
            return student.teacher
        score = student.teacher.score.model_copy(update={"seed": seed})
        return student.teacher.model_copy(update={"score": score})

    return [student.model_copy(update={"seed": s, "teacher": teacher(s)}) for s in student.members.seeds]
