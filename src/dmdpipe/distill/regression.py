"""Regression onto the teacher's map: knowledge distillation, DMD1's auxiliary term, and the starts that it makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmdpipe.diffusion.determinism import CPU
from dmdpipe.diffusion.losses import weighted_squared_error
from dmdpipe.diffusion.optimiser import FlatOptimiser, FlatParameters
from dmdpipe.diffusion.sampler import teacher_map
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.pullback import with_pullback
from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from dmdpipe.specs.diffusion import NoiseRange
    from dmdpipe.specs.student import StudentSpec

SAMPLER_STEPS = 32
REGRESSION_LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class PairPool:
    """A fixed pool of noises z [n, d] and their targets [n, d], with their classes [n] where these are asked for."""

    z: Tensor
    target: Tensor
    asked: tuple[Tensor, ...] = ()

    def draw(self, batch: int, stream: Stream) -> tuple[Tensor, ...]:
        """Return ``batch`` random pairs: noise [B, d], targets [B, d] and, if there are any, classes [B]."""
        rows = stream.integers(0, len(self.z), batch).to(self.z.device)
        return tuple(each[rows] for each in (self.z, self.target, *self.asked))

    def loss(self, answer: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean squared difference between S(z) and its target, both [B, d], and its gradient at S(z)."""
        return weighted_squared_error(answer, target)


def make_pair_pool(
    denoiser: Callable[..., Tensor],
    noise_range: NoiseRange,
    shape: tuple[int, int],
    seed: int,
    dtype: torch.dtype,
    turn: Callable[[Tensor], Tensor] | None = None,
    device: torch.device = CPU,
    steps: int = SAMPLER_STEPS,
) -> PairPool:
    """Return a pool of pairs (z, T(z)), or (z, T(turn(z))), with ``shape`` = (n, d), on the denoiser's device.

    T is what the sampler makes in so many ``steps``; in one it is the denoiser's answer D(σ_max·z, σ_max).

    The noises come from their own seed: they share none with the paired-noise bank. So do their classes, drawn
    uniformly for a denoiser that is asked for some.
    """
    z = Stream(seed).normal(*shape).to(device, dtype)
    asked: tuple[Tensor, ...] = ()
    if classes := getattr(denoiser, "classes", 0):
        asked = (Stream(derive_seed(seed, "class")).integers(0, classes, shape[0]).to(device),)
    return PairPool(z, teacher_map(denoiser, z if turn is None else turn(z), noise_range, steps, *asked), asked)


def regress(student: nn.Module, pool: PairPool, spec: StudentSpec) -> None:
    """Regress the student onto a pool of pairs (z, target) with Adam and a cosine decay, in place."""
    steps = spec.init.regression_steps
    optimiser = FlatOptimiser(FlatParameters(student))
    batches = Stream(derive_seed(spec.seed, "student", "init", "batches"))
    for i in range(steps):
        z, target, *asked = pool.draw(spec.batch, batches)
        answer, pullback = with_pullback(student, z, (), *asked)
        pullback(pool.loss(answer, target)[1])
        optimiser.step(REGRESSION_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * i / steps)))
