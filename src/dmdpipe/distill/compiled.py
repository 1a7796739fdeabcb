"""The distillations whose rounds C goes through in one call each (``dmdpipe.kernels.dmd``): most students on a CPU.

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


def compiled_rounds(
    recipe: Recipe,
    student: object,
    teacher: object,
    fake: object,
    batches: RandomBatches,
    weight: Tensor | None,
    optimisers: tuple[FlatOptimiser, FlatOptimiser | None],
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
    learners = []
    for denoiser, sigma, optimiser in (
        (generator, one_level, of_student),
        (teacher, grid, None),
        (fake, grid, of_fake),
    ):
        known = denoiser.compiled(grid) if isinstance(denoiser, Denoiser) else None
        if known is None:
            return None
        learners.append(Learner(known, denoiser.conditions(sigma), optimiser.flat() if optimiser else None))
    batch, dim = batches.shape
    switches = recipe.normalise, recipe.normaliser_offset, recipe.normaliser_min
    return CompiledRounds(
        *learners,
        batches.streams["latent"],
        level,
        *(Noising(batches.streams[purpose], grid, *batches.ranges[purpose]) for purpose in ("dm", "fake")),
        Matching(*switches, recipe.dm_weight / (batch * dim)),
        weight,
        batch,
        recipe.generator_every,
    )
