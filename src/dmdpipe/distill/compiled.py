"""The distillations whose rounds C goes through, some in each call (``dmdpipe.kernels.dmd``): most students on a CPU.

That is MLPs in single precision, distribution matching alone, whole batches of random noise. Everything else takes the
loop's plain path, which computes the same to the byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dmdpipe.distill.batches import RandomBatches
from dmdpipe.distill.student import Student
from dmdpipe.kernels.dmd import CompiledRounds, Matching, Noising
from dmdpipe.kernels.learning import Learner
from dmdpipe.networks.denoiser import Denoiser

if TYPE_CHECKING:
    from torch import Tensor

    from dmdpipe.diffusion.optimiser import FlatOptimiser
    from dmdpipe.specs.student import Recipe

MULTIPLICATIONS_IN_A_CALL = 25 * 10**9


def compiled_rounds(
    recipe: Recipe,
    student: object,
    teacher: object,
    fake: object,
    batches: RandomBatches,
    weight: Tensor | None,
    optimisers: tuple[FlatOptimiser, FlatOptimiser | None],
    average: Tensor | None,
) -> CompiledRounds | None:
    """Return what goes through the rounds of a distillation in C, or None if they are the loop's to go.

    Args:
        recipe: of the student.
        student: S, of one step.
        teacher: D_teacher.
        fake: D_fake.
        batches: where all noise comes from.
        weight: of the fake score's loss at each noise level of the grid [K, 1]; none for 1.
        optimisers: of the student's parameters and of the fake score's.
        average: of the student's parameters [P], if the recipe has one.
    """
    of_student, of_fake = optimisers
    more = (recipe.regression_weight, recipe.adversarial_weight, recipe.score_noise, recipe.fake_lag)
    plain = type(batches) is RandomBatches and batches.sampling_steps == 1 and not batches.classes
    if any(more) or not plain or not (isinstance(student, Student) and student.rotation is None):
        return None
    if of_fake is None or not of_student.kind == of_fake.kind == "adamw":
        return None
    generator, grid, level = student.generator, batches.grid, student.levels[0]
    one_level = torch.full((1, 1), level, dtype=grid.dtype, device=grid.device)
    own = _learner(generator, one_level, of_student)
    real, false = _learner(teacher, grid, None), _learner(fake, grid, of_fake)
    if not (own and real and false):
        return None
    batch, dim = batches.shape
    at_generator, at_fake = (
        Noising(batches.streams[purpose], grid, *batches.ranges[purpose]) for purpose in ("dm", "fake")
    )
    switches = recipe.normalise, recipe.normaliser_offset, recipe.normaliser_min
    return CompiledRounds(
        own,
        real,
        false,
        batches.streams["latent"],
        level,
        at_generator,
        at_fake,
        Matching(*switches, recipe.dm_weight / (batch * dim)),
        weight,
        batch,
        recipe.generator_every,
        average,
        1 - recipe.ema if recipe.ema else 0.0,
    )


def rounds_together(rounds: CompiledRounds) -> int:
    """Return how many rounds to go in one call: enough to outweigh the call, and a second or so at most.

    A process that is told to end saves its state only after the call that it is in.
    """
    return max(1, min(64, MULTIPLICATIONS_IN_A_CALL // rounds.multiplications))


def _learner(denoiser: object, sigma: Tensor, optimiser: FlatOptimiser | None) -> Learner | None:
    """Return what C is told of a denoiser, its conditions at levels σ [K, 1] and its optimiser, if that can be."""
    if not isinstance(denoiser, Denoiser) or not (kernel := denoiser.compiled(sigma)):
        return None
    return Learner(kernel, denoiser.conditions(sigma), optimiser.flat() if optimiser else None)
