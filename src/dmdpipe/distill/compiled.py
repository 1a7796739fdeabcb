"""The parts of the loop that C does in one call each, where they are what ``dmdpipe.kernels.dmd`` knows.

That is for MLPs in single precision on the CPU, whole batches, and random noise. Everything else takes the loop's plain
path, which computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dmdpipe.distill.batches import RandomBatches
from dmdpipe.kernels import dmd as kernel
from dmdpipe.networks.denoiser import Denoiser

if TYPE_CHECKING:
    from dmdpipe.diffusion.optimiser import FlatOptimiser
    from dmdpipe.distill.adversarial import Adversary
    from dmdpipe.kernels.conditions import Conditions
    from dmdpipe.kernels.mlp import CompiledMLP
    from dmdpipe.specs.student import Recipe

    # From samples x [B, d], the fake score and a factor: the factor times the gradient at x, and its root mean square.
    Gradient = Callable[[Tensor, Any, float], tuple[Tensor, float]]
    # From batches of samples [steps·B, d] and a learning rate for each: the last step's loss.
    FakeSteps = Callable[[Tensor, Sequence[float]], float]


def compiled_gradient(recipe: Recipe, teacher: object, fake: object, batches: RandomBatches) -> Gradient | None:
    """Return what makes the distribution-matching gradient at a batch, or None if that is the loop's to do.

    Args:
        recipe: of the student.
        teacher: D_teacher.
        fake: D_fake; what is asked later is this, or as it was before.
        batches: what noises the samples.
    """
    real, own = _known(teacher, batches), _known(fake, batches)
    if real is None or own is None or recipe.score_noise:
        return None
    noising = noising_of(batches, "dm")
    normaliser = kernel.Normaliser(recipe.normalise, recipe.normaliser_offset, recipe.normaliser_min)

    def gradient(x: Tensor, follow: Denoiser, scale: float) -> tuple[Tensor, float]:
        assert follow.kernel
        return kernel.dm_gradient(x, real, (follow.kernel, own[1]), noising, normaliser, scale)

    return gradient


def compiled_fake_steps(
    fake: object,
    optimiser: FlatOptimiser | None,
    batches: RandomBatches,
    weight: Tensor | None,
    adversary: Adversary | None,
) -> FakeSteps | None:
    """Return what takes the fake score's steps on some batches, or None if that is the loop's to do.

    Args:
        fake: D_fake.
        optimiser: of its parameters.
        batches: what noises the samples.
        weight: of its loss at each noise level of the grid [K, 1]; none for 1.
        adversary: what learns with it, if anything does.
    """
    own = _known(fake, batches)
    if own is None or optimiser is None or optimiser.kind != "adamw" or adversary:
        return None
    noising, steps_by = noising_of(batches, "fake"), optimiser
    flat = optimiser.flat()

    def fake_steps(x: Tensor, rates: Sequence[float]) -> float:
        return kernel.fake_steps(x, own, noising, weight, flat, steps_by.begin_steps(rates))

    return fake_steps


def noising_of(batches: RandomBatches, purpose: str) -> kernel.Noising:
    """Return what ``batches.diffusion(purpose)`` draws from."""
    return kernel.Noising(batches.streams[purpose], batches.grid, *batches.ranges[purpose])


def _known(denoiser: object, batches: RandomBatches) -> tuple[CompiledMLP, Conditions] | None:
    """Return a denoiser as the kernel knows it, with the conditions of all noise levels, if it does."""
    plain = type(batches).diffusion is RandomBatches.diffusion and not batches.classes
    if not (plain and isinstance(denoiser, Denoiser) and (found := denoiser.compiled(batches.grid))):
        return None
    return found, denoiser.conditions(batches.grid)
