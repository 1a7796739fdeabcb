"""What it costs to draw a sample from a student, against one answer of the teacher's network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dmdpipe.specs.data import dimension

if TYPE_CHECKING:
    from dmdpipe.specs.student import StudentSpec


def weights(network: Any, dim: int) -> int:
    """Return the number of weights of a network with d = ``dim``: multiplications per sample of a forward pass.

    0 for particles, which are no network.
    """
    if network.kind == "particles":
        return 0
    if network.kind == "linear":
        return dim * dim
    return int(network.width * (2 * dim + network.depth * network.width + network.embedding))


def inference_cost(student: StudentSpec) -> float:
    """Return a student's multiplications for a sample, over those of one call of its teacher's network.

    Steps × weights of the student / weights of the teacher; 1 for a student of one step on the teacher's network. NaN
    for an exact teacher, which has no network, and for particles, which make no samples but those that they are. Heun's
    sampler of n intervals costs 2n − 1 in this unit.
    """
    score, dim = student.teacher.score, dimension(student.teacher.data)
    if score.kind != "trained" or student.network.kind == "particles":
        return float("nan")
    return student.sampling_steps * weights(student.network, dim) / weights(score.network, dim)
