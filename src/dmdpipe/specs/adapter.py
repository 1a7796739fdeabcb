"""Adapters: what weights of another's training mean. One small JSON file beside them, and no part of any step."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from dmdpipe.specs.base import Spec
from dmdpipe.specs.network import MLP

HEAD_CHANNELS = 64  # of one head of an ADM's attention
# ᾱ at the last time step, where σ is 10¹⁵: schedules in use end below 10⁷, and float32 holds no squares above 10³⁸.
LEAST_KEPT = 1e-30


class UNet(Spec):
    """A ``UNet2DModel`` of the library diffusers, as its folder describes it."""

    kind: Literal["unet"] = "unet"
    config: str | None = Field(None, description="a .safetensors file's config, from the adapter's folder")
    label: int | None = Field(None, ge=0, description="the class that is asked for; none: a drawn one for each noise")
    drawn_from: int | None = Field(None, ge=1, description="so many classes are drawn from; none: from all of them")

    @field_validator("config")
    @classmethod
    def _stays_in_its_folder(cls, name: str | None) -> str | None:
        if name is not None and (not name.endswith(".json") or set(name.split("/")) & {"", ".", ".."}):
            raise ValueError(f"'{name}': give a .json file in the adapter's folder or below, as in teacher/config.json")
        return name

    @model_validator(mode="after")
    def _asks_in_one_way(self) -> UNet:
        if self.drawn_from is not None and self.label is not None:
            raise ValueError("label and drawn_from exclude each other: give one of them")
        return self


class ADM(Spec):
    """The U-Net of ADM (arXiv 2105.05233) as EDM publishes it: ``DhariwalUNet``, whose names the sizes have.

    The defaults are EDM's network for ImageNet at 64×64, and that of DMD2's students of it.
    """

    kind: Literal["adm"] = "adm"
    img_resolution: int = Field(64, ge=1, le=1_024, description="height and width of an image, in pixels")
    img_channels: int = Field(3, ge=1, le=16)
    label_dim: int = Field(1_000, ge=0, le=100_000, description="number of classes; 0: the network has none")
    model_channels: int = Field(192, ge=HEAD_CHANNELS, le=1_024, multiple_of=HEAD_CHANNELS)
    channel_mult: tuple[Annotated[int, Field(ge=1, le=16)], ...] = Field(
        (1, 2, 3, 4), min_length=1, max_length=8, description="channels at each resolution, over model_channels"
    )
    channel_mult_emb: int = Field(4, ge=1, le=16, description="size of the embedding, over model_channels")
    num_blocks: int = Field(3, ge=1, le=16, description="residual blocks at each resolution")
    attn_resolutions: tuple[int, ...] = Field((32, 16, 8), max_length=8, description="resolutions with attention")
    label: int | None = Field(None, ge=0, description="the class that is asked for; none: a drawn one for each noise")
    drawn_from: int | None = Field(None, ge=1, description="so many classes are drawn from; none: from all of them")

    @model_validator(mode="after")
    def _fits_together(self) -> ADM:
        halvings = 2 ** (len(self.channel_mult) - 1)
        if self.img_resolution % halvings:
            raise ValueError(f"img_resolution must be a multiple of {halvings}, since channel_mult halves it so often")
        if self.label is not None and self.label >= self.label_dim:
            known = f"give one from 0 to {self.label_dim - 1}" if self.label_dim else "leave it out"
            raise ValueError(f"label is {self.label}, but there are {self.label_dim} classes: {known}")
        if self.drawn_from is not None and self.label is not None:
            raise ValueError("label and drawn_from exclude each other: give one of them")
        if self.drawn_from is not None and self.drawn_from > self.label_dim:
            raise ValueError(f"drawn_from is {self.drawn_from}, but there are {self.label_dim} classes")
        return self


class Weights(Spec):
    """Where weights come from, and which they are."""

    source: str
    licence: str
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="of the .safetensors file; none: not pinned yet, and printed"
    )


class Schedule(Spec):
    """The discrete noise levels of a variance-preserving model (DDPM), by its betas."""

    steps: int = Field(1_000, ge=2, le=100_000)
    betas: Literal["linear", "scaled_linear", "cosine"] = Field(
        "linear", description="scaled_linear: linear in √beta; cosine: arXiv 2102.09672, eq. 17, without first and last"
    )
    first: float = Field(1e-4, gt=0, lt=1, description="linear, scaled_linear: the first beta")
    last: float = Field(0.02, gt=0, lt=1, description="linear, scaled_linear: the last beta")

    @model_validator(mode="after")
    def _ends_at_a_noise_level(self) -> Schedule:
        if self.betas != "cosine" and self.first > self.last:
            raise ValueError(f"first ({self.first:g}) must not be above last ({self.last:g}): betas rise")
        if math.prod(1 - beta for beta in self._betas()) < LEAST_KEPT:
            raise ValueError(
                f"{self.steps} steps with betas up to {self._betas()[-1]:g} leave nothing of the data (ᾱ below"
                f" {LEAST_KEPT:g}): give the steps, first and last of the training"
            )
        return self

    def sigmas(self) -> list[float]:
        """Return σ_t = √((1 − ᾱ_t)/ᾱ_t) of every time step t, ascending."""
        kept, sigmas = 1.0, []
        for beta in self._betas():
            kept *= 1 - beta
            sigmas.append(math.sqrt((1 - kept) / kept))
        return sigmas

    def _betas(self) -> list[float]:
        if self.betas == "cosine":

            def level(u: float) -> float:
                return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

            return [min(1 - level((i + 1) / self.steps) / level(i / self.steps), 0.999) for i in range(self.steps)]
        power = 0.5 if self.betas == "scaled_linear" else 1.0
        low, high = self.first**power, self.last**power
        return [(low + (high - low) * i / (self.steps - 1)) ** (1 / power) for i in range(self.steps)]


class Adapter(Spec):
    """How a network F makes a denoiser D(x, σ), for noisy x = x₀ + σ·ε.

    edm: c_skip·x + c_out·F(c_in·x, ln(σ)/4), preconditioned as in arXiv 2206.00364, table 1. epsilon: x − σ·F. v:
    x/(1 + σ²) − σ/√(1 + σ²)·F. sample: F itself. The latter three ask F(x/√(1 + σ²), t), at the time step t of the
    schedule that has σ.
    """

    network: Annotated[MLP | UNet | ADM, Field(discriminator="kind")]
    prediction: Literal["edm", "epsilon", "v", "sample"] = "edm"
    sigma_data: PositiveFloat = Field(0.5, description="edm: spread of a coordinate of the data")
    schedule: Schedule | None = Field(None, description="all but edm: the noise levels of the training; needed there")
    weights: dict[str, Weights] = Field(
        {}, description="by the names of the .safetensors files that this describes, with folders before them or not"
    )

    @field_validator("weights")
    @classmethod
    def _names_are_of_files(cls, weights: dict[str, Weights]) -> dict[str, Weights]:
        for name in weights:
            parts = name.split("/")
            if not name.endswith(".safetensors") or set(parts) & {"", ".", "..", ".safetensors"}:
                raise ValueError(
                    f"'{name}' can be no file's name: give that of a .safetensors file, and folders before it if need"
                    " be, as in teacher/model.safetensors"
                )
        return weights

    @model_validator(mode="after")
    def _has_what_its_prediction_needs(self) -> Adapter:
        if self.network.kind == "mlp" and self.network.classes:
            raise ValueError(
                "network.kind 'mlp' needs classes 0: an adapter can ask 'unet' and 'adm' for classes alone"
            )
        if self.prediction == "edm" and self.schedule is not None:
            raise ValueError("prediction 'edm' has no schedule: leave it out")
        if self.prediction != "edm" and self.schedule is None:
            raise ValueError(
                f"prediction '{self.prediction}' needs a schedule; {{}} is DDPM's: 1000 steps, linear betas"
            )
        if self.prediction != "edm" and self.network.kind != "unet":
            raise ValueError(f"network.kind '{self.network.kind}' needs prediction 'edm', got '{self.prediction}'")
        return self
