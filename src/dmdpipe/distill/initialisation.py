"""Where a student starts: its map S₀, before the first generator step."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dmdpipe.distill.student import Student, rotated, rotation_of
from dmdpipe.networks.denoiser import zero_output_layer
from dmdpipe.specs.student import REGRESSED

if TYPE_CHECKING:
    from dmdpipe.diffusion.exact import ExactDenoiser
    from dmdpipe.diffusion.teacher import Teacher
    from dmdpipe.distill.regression import PairPool
    from dmdpipe.specs.student import StudentSpec


def initialise(
    student: Student,
    spec: StudentSpec,
    source: Teacher,
    make_pool: Callable[..., PairPool],
) -> None:
    """Set the student's weights to the start that ``spec.init`` names (see ``dmdpipe.specs.student.Init``).

    Args:
        student: a student with fresh weights, on whatever device, changed in place.
        spec: the student's spec.
        source: D(x, σ), whose weights are copied: the teacher, or that of ``spec.start``; for a linear student an
            exact Gaussian teacher.
        make_pool: makes the pool of pairs (z, T(z)) to regress onto, or (z, T(Qz)) with ``turn`` z ↦ Qz, or with
            ``steps`` what the teacher's sampler makes in so many; called for a start that is regressed only.
    """
    if spec.init.kind == "edm-default":
        zero_output_layer(student.get_submodule("generator.network"))
    elif spec.init.kind in ("teacher", "rotated", "kd-rotated", "other-teacher") and isinstance(source, nn.Module):
        student.generator.load_state_dict(source.state_dict())
    elif spec.init.kind in ("partial", "interpolated") and isinstance(source, nn.Module):
        mix(student.get_submodule("generator"), source, shares(spec))
    elif spec.network.kind == "linear" and not isinstance(source, nn.Module):
        start_linear(student.get_parameter("generator.matrix"), spec, source)
    if spec.init.kind in REGRESSED:
        onto: dict[str, Any] = {}
        if spec.init.kind == "kd-one-step":
            onto["steps"] = 1
        elif spec.init.kind == "kd-rotated":
            rotation = rotation_of(spec, getattr(torch, spec.dtype)).to(next(student.parameters()).device)
            onto["turn"] = rotated(lambda z: z, rotation)
        # By name, so that an edit of it does not touch the other starts.
        regress = import_module("dmdpipe.distill.regression").regress
        regress(student, make_pool(**onto), spec)
    if spec.init.scale != 1:
        scale(student, spec.init.scale)


@torch.no_grad()
def scale(student: Student, factor: float) -> None:
    """Multiply what a student's last layer makes by ``factor``: S₀ becomes factor·S₀, but for the skip's share of it.

    At σ_max that share is c_skip·σ_max·z = σ_data²/(σ_max + σ_data²/σ_max)·z: 0.003·z at σ_max = 80.
    """
    for name, parameter in student.named_parameters():
        if name.startswith(("generator.network.output.", "generator.matrix")):
            parameter.mul_(factor)


def shares(spec: StudentSpec) -> Callable[[str], float]:
    """Return parameter name ↦ the teacher's share of its start, in 0…1: α, or 0 in fresh layers and 1 in the others.

    Layers in the order in which samples pass them: the input with the noise embedding, the blocks, the output.
    """
    if spec.init.kind == "interpolated":
        return lambda name: spec.init.alpha
    last = getattr(spec.network, "depth", 0) + 1

    def kept(name: str) -> float:
        part, _, rest = name.removeprefix("network.").partition(".")
        layer = 1 + int(rest.partition(".")[0]) if part == "blocks" else last if part == "output" else 0
        return float(spec.init.fresh_first <= layer <= last - spec.init.fresh_last)

    return kept


@torch.no_grad()
def mix(fresh: nn.Module, source: nn.Module, share: Callable[[str], float]) -> None:
    """Move every parameter of ``fresh`` towards the source's by ``share`` of its name: 1 copies the source's bytes."""
    given = dict(source.named_parameters())
    for name, parameter in fresh.named_parameters():
        parameter.lerp_(given[name], share(name))


def start_linear(matrix: nn.Parameter, spec: StudentSpec, teacher: ExactDenoiser) -> None:
    """Set A [d, d] to the Gaussian teacher's one-step answer A₀ = σ_max·Σ(Σ + σ_max²)⁻¹ (Q acts on the input)."""
    covariance = teacher.covariance()
    sigma_max = spec.noise_range.sigma_max
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    answer = sigma_max * covariance @ torch.linalg.inv(covariance + sigma_max**2 * identity)
    with torch.no_grad():
        matrix.copy_(answer)
