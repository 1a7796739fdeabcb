"""What DMD does between two forward passes of the student, in one call of ``dmd.c`` each. Float32, on the CPU.

The gradient at the student's samples is two denoisers' answers and a few numbers a row; between two generator steps the
fake score takes several steps on samples that are there already. Piece by piece, calls from Python would take as long
as half of what they compute.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dmdpipe.kernels.learning import told_network, told_sizes
from dmdpipe.kernels.library import function
from dmdpipe.kernels.mlp import MEMORY, SIZE, CompiledMLP, place, structure

if TYPE_CHECKING:
    from dmdpipe.kernels.conditions import Conditions
    from dmdpipe.kernels.learning import Flat
    from dmdpipe.kernels.noise import Stream
    from dmdpipe.kernels.optimiser import AdamWSizes

NUMBER = ctypes.c_float


class Noising(NamedTuple):
    """Where samples get their noise: x + σ·ε.

    Attributes:
        stream: draws which levels, and then ε.
        sigma: all noise levels σ [K, 1], float32.
        first: of those that are drawn, all alike often.
        end: the one after the last.
    """

    stream: Stream
    sigma: Tensor
    first: int
    end: int

    def told(self, *tables: Conditions) -> Any:
        """Return this as C's structure.

        Raises:
            ValueError: if the levels aren't those of the tables of conditions: C would read beyond their memory.
        """
        levels = self.sigma
        if (
            any(levels.shape != table.c_in.shape for table in tables)
            or levels.dtype != torch.float32
            or not levels.is_contiguous()
        ):
            raise ValueError(f"expected levels {list(tables[0].c_in.shape)} in float32, got {list(levels.shape)}")
        if not 0 <= self.first < self.end <= levels.shape[0]:
            raise ValueError(f"no levels {self.first} to below {self.end} in {len(levels)}")
        drawn = self.stream.position.data_ptr(), self.first, self.end - self.first, levels.data_ptr()
        return structure(self.stream.seed, *drawn)


class Normaliser(NamedTuple):
    """What of the recipe ``dmdpipe.distill.dmd.dm_gradient`` asks for, under its names."""

    normalise: bool
    normaliser_offset: float
    normaliser_min: float


def dm_gradient(
    x: Tensor,
    teacher: tuple[CompiledMLP, Conditions],
    fake: tuple[CompiledMLP, Conditions],
    noising: Noising,
    normaliser: Normaliser,
    scale: float,
) -> tuple[Tensor, float]:
    """Return scale·g [B, d] at samples x [B, d], and the root mean square of g (``dmdpipe.distill.dmd.dm_gradient``).

    Args:
        x: the student's samples.
        teacher: D_teacher, and what it is told of all noise levels.
        fake: D_fake, likewise.
        noising: of both.
        normaliser: of g.
        scale: of the gradient that is returned.
    """
    x = x.contiguous()
    row = torch.zeros(x.shape[0], dtype=torch.int64)
    noisy, real, answer, gradient = torch.empty(4, *x.shape)
    levels = noising.told(teacher[1], fake[1])
    networks = [told_network(network, x, table.at(row)) for network, table in (teacher, fake)]
    call = function(
        "dmd", "dmd_gradient", NUMBER, *[MEMORY] * 3, SIZE, MEMORY, SIZE, *[NUMBER] * 3, *[MEMORY] * 5
    )  # fmt: skip
    told = (network.pointers for network in networks)
    places = (one.data_ptr() for one in (row, noisy, real, answer, gradient))
    norm: float = call(*told, levels, x.shape[0], x.data_ptr(), *normaliser, scale, *places)
    return gradient, norm


def fake_steps(
    x: Tensor,
    fake: tuple[CompiledMLP, Conditions],
    noising: Noising,
    weight: Tensor | None,
    flat: Flat,
    sizes: Sequence[AdamWSizes],
) -> float:
    """Take the fake score's next steps, each ``CompiledMLP.denoising_loss`` on a batch and AdamW; return the last loss.

    Args:
        x: the batches, one after the other, as many as there are sizes: [steps·B, d].
        fake: D_fake, and what it is told of all noise levels.
        noising: of the samples.
        weight: of the loss at each level [K, 1]; none for 1.
        flat: of D_fake; changed in place.
        sizes: of each step.

    Raises:
        ValueError: if these don't fit together.
    """
    network, table = fake
    batch, left = divmod(x.shape[0], len(sizes))
    if left:
        raise ValueError(f"{x.shape[0]} samples can't be shared by {len(sizes)} steps")
    levels = noising.told(table)
    if weight is not None and (
        weight.shape != table.c_in.shape or weight.dtype != torch.float32 or not weight.is_contiguous()
    ):
        raise ValueError(f"expected weights {list(table.c_in.shape)} in float32, got {list(weight.shape)}")
    x = x.contiguous()
    row, noisy = torch.zeros(batch, dtype=torch.int64), torch.empty(batch, x.shape[1])
    call = function("dmd", "dmd_fake_steps", NUMBER, *[MEMORY] * 6, SIZE, SIZE, *[MEMORY] * 3)
    told = told_network(network, x[:batch], table.at(row))
    loss: float = call(
        told.pointers,
        network.gradients(),
        place(weight),
        levels,
        flat.told(network),
        told_sizes(sizes),
        len(sizes),
        batch,
        *(one.data_ptr() for one in (x, row, noisy)),
    )
    return loss
