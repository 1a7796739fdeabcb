"""Networks: the trainable map inside the EDM wrapper, a bare linear generator, or none: particles."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from dmdpipe.specs.base import Spec, later

CLASSES = later(
    0, ge=0, description="classes of the data's labels, one of which it is asked for with each sample; 0: none"
)


class MLP(Spec):
    """Residual MLP with a noise embedding, wrapped in EDM preconditioning."""

    kind: Literal["mlp"] = "mlp"
    width: PositiveInt = 64
    depth: PositiveInt = Field(3, description="number of residual blocks, one width×width layer each")
    embedding: int = Field(32, ge=2, multiple_of=2, description="number of Fourier features of c_noise = ln(σ)/4")
    classes: int = CLASSES


class UNet(Spec):
    """``UNet2DModel`` of the library diffusers, without dropout, in EDM preconditioning; for images.

    At every level the side is half of that of the one before. The block in the middle has self-attention, too.
    """

    kind: Literal["unet"] = "unet"
    channels: int = Field(64, ge=8, multiple_of=8, description="what the multipliers multiply")
    multipliers: tuple[PositiveInt, ...] = Field((1, 2, 2), min_length=1, description="channels of each level")
    blocks: PositiveInt = Field(2, description="residual blocks of a level on the way down; one more on the way up")
    attention: tuple[NonNegativeInt, ...] = Field((2,), description="levels with self-attention, counted from 0")
    classes: int = CLASSES

    @model_validator(mode="after")
    def _attention_is_at_levels(self) -> UNet:
        levels = range(len(self.multipliers))
        if list(self.attention) != sorted(set(self.attention) & set(levels)):
            raise ValueError(
                f"attention must name levels from 0 to {levels[-1]} in order, each once, got {list(self.attention)}"
            )
        return self


class Linear(Spec):
    """The linear generator S(z) = A·z without bias or preconditioning: the closed forms are about it."""

    kind: Literal["linear"] = "linear"


class Particles(Spec):
    """No network: one free vector x_i for each noise z_i of a fixed set, S(z_i) = x_i, and no answer to other noise."""

    kind: Literal["particles"] = "particles"
    count: PositiveInt = Field(4_096, description="noises in the set: the bank's paired ones, and others after them")


NetworkSpec = Annotated[MLP | UNet | Linear, Field(discriminator="kind")]


def network_name(network: MLP | UNet | Linear | Particles) -> str:
    """Return a short readable name: ``mlp-64x3``, ``mlp-64x3-10-classes``, ``unet-64x1-2-2`` or ``particles-4096``."""
    classes = getattr(network, "classes", 0)
    ending = f"-{classes}-classes" if classes else ""
    match network:
        case MLP():
            return f"mlp-{network.width}x{network.depth}{ending}"
        case UNet():
            return f"unet-{network.channels}x{'-'.join(map(str, network.multipliers))}{ending}"
        case Particles():
            return f"particles-{network.count}"
    return network.kind
