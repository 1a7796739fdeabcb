"""Networks: the trainable map inside the EDM wrapper, a bare linear generator, or none: particles."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from dmdpipe.specs.base import Spec


class MLP(Spec):
    """Residual MLP with a noise embedding, wrapped in EDM preconditioning."""

    kind: Literal["mlp"] = "mlp"
    width: PositiveInt = 64
    depth: PositiveInt = Field(3, description="number of residual blocks, one width×width layer each")
    embedding: int = Field(32, ge=2, multiple_of=2, description="number of Fourier features of c_noise = ln(σ)/4")


class Linear(Spec):
    """The linear generator S(z) = A·z without bias or preconditioning: the closed forms are about it."""

    kind: Literal["linear"] = "linear"


class Particles(Spec):
    """No network: one free vector x_i for each noise z_i of a fixed set, S(z_i) = x_i, and no answer to other noise."""

    kind: Literal["particles"] = "particles"
    count: PositiveInt = Field(4_096, description="noises in the set: the bank's paired ones, and others after them")


NetworkSpec = Annotated[MLP | Linear, Field(discriminator="kind")]
