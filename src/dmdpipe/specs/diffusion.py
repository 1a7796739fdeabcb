"""Noise levels and the probability-flow sampler."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dmdpipe.specs.base import Spec, later
from dmdpipe.specs.data import DataSpec, are_images, class_count, data_name, is_known
from dmdpipe.specs.hardware import Hardware, obstacle_to_shards
from dmdpipe.specs.network import MLP, UNet


class NoiseRange(Spec):
    """The Karras grid's ends and exponent (arXiv 2206.00364, eq. 5); σ in units of the scaled data (σ_data = 0.5)."""

    sigma_min: PositiveFloat = 0.002
    sigma_max: PositiveFloat = 80.0
    rho: PositiveFloat = 7.0

    @model_validator(mode="after")
    def _ordered(self) -> NoiseRange:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min ({self.sigma_min}) must be below sigma_max ({self.sigma_max})")
        return self


class TrainedScore(Hardware):
    """A denoiser trained on the data by denoising score matching, EDM's recipe."""

    kind: Literal["trained"] = "trained"
    network: Annotated[MLP | UNet, Field(discriminator="kind")] = MLP()
    steps: PositiveInt = 4_000
    batch: PositiveInt = 256
    samples: Literal["pool", "fresh"] = Field(
        "pool", description="fresh: every batch is drawn anew from the exact distribution, so no sample comes twice"
    )
    learning_rate: PositiveFloat = 1e-3
    warmup: int = Field(200, ge=0, description="steps over which the learning rate rises from 0")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights, which are the teacher")
    log_sigma_mean: float = Field(-1.2, description="ln σ ~ N(mean, std²) during training")
    log_sigma_std: PositiveFloat = 1.2
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _shards_can_be_cut(self) -> TrainedScore:
        if obstacle := obstacle_to_shards(self, self.network.kind, self.batch):
            raise ValueError(obstacle)
        return self


class ExactScore(Spec):
    """The data's own denoiser, where it is known in closed form (ring, gaussian, mixture, images of law gaussian)."""

    kind: Literal["exact"] = "exact"


class TeacherSpec(Spec):
    """A teacher: the data and the denoiser D(x, σ) that stands for them."""

    data: DataSpec
    score: Annotated[TrainedScore | ExactScore, Field(discriminator="kind")] = TrainedScore()

    @model_validator(mode="after")
    def _score_is_known(self) -> TeacherSpec:
        known = is_known(self.data)
        if self.score.kind == "exact" and not known:
            raise ValueError(f"score.kind 'exact': the exact score of '{self.data.family}' is not known; use 'trained'")
        if self.score.kind == "trained" and self.score.samples == "fresh" and not known:
            raise ValueError(
                f"score.samples 'fresh': the distribution of '{self.data.family}' is not known; use 'pool'"
            )
        if self.score.kind == "trained" and self.score.network.kind == "unet" and not are_images(self.data):
            raise ValueError(
                f"score.network.kind 'unet' is for images in their own pixels, not for '{data_name(self.data)}'"
            )
        if self.score.kind == "trained" and self.score.network.classes:
            if self.score.network.classes != class_count(self.data):
                raise ValueError(
                    f"score.network.classes is {self.score.network.classes}, but '{data_name(self.data)}' has"
                    f" {class_count(self.data) or 'no'} classes of stored labels; see data.labels"
                )
            if self.score.samples == "fresh":
                raise ValueError("score.samples 'fresh': fresh samples have no labels; take 'pool' or classes 0")
        return self

    @property
    def classes(self) -> int:
        """Number of classes that its network is asked for; 0: none."""
        return self.score.network.classes if self.score.kind == "trained" else 0


class NoiseBankSpec(Spec):
    """The paired-noise bank: standard normal noise, every row from its own counter-based stream."""

    dim: PositiveInt
    n_paired: int = Field(1_000, ge=2, description="noises z_i that teacher and student share")
    n_held_out: PositiveInt = Field(4_000, description="noises for fitting baselines, e.g. the best affine map")
    n_reference_sets: int = Field(4, ge=2, description="independent sets of n_paired noises: gate and its floor")
    seed: int = Field(0, ge=0, description="rotated starts use the rotation of seed 0")

    @model_validator(mode="after")
    def _enough_for_the_affine_baseline(self) -> NoiseBankSpec:
        if self.n_held_out < 2 * self.dim:
            raise ValueError(
                f"n_held_out ({self.n_held_out}) must be at least 2·d = {2 * self.dim}: an affine map is fitted on it"
            )
        return self


class SamplerSpec(Spec):
    """Heun's second-order solver of the probability-flow ODE on the Karras grid (arXiv 2206.00364, algorithm 1)."""

    steps: PositiveInt = Field(64, description="grid intervals, the last one to σ = 0")
    device: Literal["cpu", "cuda"] = later("cpu", description="where teacher and student answer the bank's noise")


class TeacherSamplesSpec(Spec):
    """The teacher's map T over the noise bank."""

    teacher: TeacherSpec
    bank: NoiseBankSpec
    noise_range: NoiseRange = NoiseRange()
    sampler: SamplerSpec = SamplerSpec()
