"""Where a student starts: its map S₀, before the first generator step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmdpipe.diffusion.determinism import generator
from dmdpipe.diffusion.optimiser import FlatOptimiser, FlatParameters
from dmdpipe.diffusion.training import zero_output_layer
from dmdpipe.distill.regression import PairPool, regression_loss
from dmdpipe.distill.student import Student, rotated, rotation_of
from dmdpipe.networks.pullback import with_pullback
from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from dmdpipe.diffusion.exact import ExactDenoiser
    from dmdpipe.diffusion.teacher import Teacher
    from dmdpipe.specs.student import StudentSpec

REGRESSION_LEARNING_RATE = 1e-3


def initialise(
    student: Student,
    spec: StudentSpec,
    teacher: Teacher,
    make_pool: Callable[[Callable[[Tensor], Tensor] | None], PairPool],
) -> None:
    """Set the student's weights to the start that ``spec.init`` names (see ``dmdpipe.specs.student.Init``).

    Args:
        student: a student with fresh weights, changed in place.
        spec: the student's spec.
        teacher: D(x, σ), the source of copied weights; for a linear student an exact Gaussian teacher.
        make_pool: makes the pool of pairs (z, T(Qz)) to regress onto, given z ↦ Qz; called for ``kd-rotated`` only.
    """
    if spec.init.kind == "edm-default":
        zero_output_layer(student.get_submodule("generator.network"))
    elif spec.init.kind in ("teacher", "rotated", "kd-rotated") and isinstance(teacher, nn.Module):
        student.generator.load_state_dict(teacher.state_dict())
    elif spec.network.kind == "linear" and not isinstance(teacher, nn.Module):
        start_linear(student.get_parameter("generator.matrix"), spec, teacher)
    if spec.init.kind == "kd-rotated":
        rotation = rotation_of(spec, getattr(torch, spec.dtype))
        regress(student, make_pool(rotated(lambda z: z, rotation)), spec)


def start_linear(matrix: nn.Parameter, spec: StudentSpec, teacher: ExactDenoiser) -> None:
    """Set A [d, d] to the Gaussian teacher's one-step answer A₀ = σ_max·Σ(Σ + σ_max²)⁻¹ (Q acts on the input)."""
    covariance = teacher.covariance()
    sigma_max = spec.noise_range.sigma_max
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    answer = sigma_max * covariance @ torch.linalg.inv(covariance + sigma_max**2 * identity)
    with torch.no_grad():
        matrix.copy_(answer)


def regress(student: nn.Module, pool: PairPool, spec: StudentSpec) -> None:
    """Regress the student onto a pool of pairs (z, target) with Adam and a cosine decay, in place."""
    steps = spec.init.regression_steps
    optimiser = FlatOptimiser(FlatParameters(student))
    batches = generator(derive_seed(spec.seed, "student", "init", "batches"))
    for i in range(steps):
        z, target = pool.draw(spec.batch, batches)
        answer, pullback = with_pullback(student, z)
        pullback(regression_loss(answer, target)[1])
        optimiser.step(REGRESSION_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * i / steps)))
