"""Where a training runs, and how exactly it multiplies."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from dmdpipe.specs.base import Spec, later


class Hardware(Spec):
    """Device, precision and threads of one training: another device or precision is another training.

    full: products in the type of the weights. tf32: float32 with factors rounded to ten bits, on a GPU's tensor cores.
    bf16: the network multiplies in bfloat16; weights, gradients and optimiser stay float32.
    """

    device: Literal["cpu", "cuda"] = Field("cpu", description="noise is drawn on the CPU either way")
    precision: Literal["full", "tf32", "bf16"] = "full"
    threads: PositiveInt = Field(1, description="of PyTorch on the CPU; the kernels in C use one")
    shards: int = later(
        1, ge=1, description="U-Nets only: equal parts of a batch, whose gradients are added in their order"
    )

    @model_validator(mode="after")
    def _device_has_the_precision(self) -> Hardware:
        if self.precision == "tf32" and self.device == "cpu":
            raise ValueError("precision 'tf32' needs device 'cuda': a CPU has no such products")
        return self


def obstacle_to_shards(hardware: Hardware, network: str, batch: int) -> str | None:
    """Return why a training of this kind of network can't have its shards, or None if it can."""
    if hardware.shards == 1:
        return None
    if network != "unet":
        return f"shards {hardware.shards} need network.kind 'unet', got '{network}': smaller networks train whole"
    if batch % hardware.shards:
        return f"shards {hardware.shards} must share the batch equally, but batch is {batch}"
    return None
