"""Regression onto the teacher's map: knowledge distillation, DMD1's auxiliary term, and the kd-rotated start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmdpipe.diffusion.determinism import generator
from dmdpipe.diffusion.losses import weighted_squared_error
from dmdpipe.diffusion.sampler import DenoiserFunction, teacher_map

if TYPE_CHECKING:
    from dmdpipe.specs.diffusion import NoiseRange

SAMPLER_STEPS = 32


@dataclass(frozen=True)
class PairPool:
    """A fixed pool of noises z [n, d] and their targets [n, d]."""

    z: Tensor
    target: Tensor

    def draw(self, batch: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``batch`` random pairs, noise [B, d] and targets [B, d]."""
        rows = torch.randint(len(self.z), (batch,), generator=source)
        return self.z[rows], self.target[rows]


def make_pair_pool(
    denoiser: DenoiserFunction,
    noise_range: NoiseRange,
    shape: tuple[int, int],
    seed: int,
    dtype: torch.dtype,
    turn: Callable[[Tensor], Tensor] | None = None,
) -> PairPool:
    """Return a pool of pairs (z, T(z)), or (z, T(turn(z))), with ``shape`` = (n, d).

    The noises come from their own seed: they share none with the paired-noise bank.
    """
    z = torch.randn(shape, generator=generator(seed), dtype=dtype)
    return PairPool(z, teacher_map(denoiser, z if turn is None else turn(z), noise_range, SAMPLER_STEPS))


def regression_loss(answer: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean squared difference between S(z) and its target, both [B, d], and its gradient at S(z)."""
    return weighted_squared_error(answer, target)
