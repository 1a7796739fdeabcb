"""Several steps of a teacher's training in one call of ``teacher.c``. Float32, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmdpipe.kernels.learning import Learner, told_network, told_sizes
from dmdpipe.kernels.library import function
from dmdpipe.kernels.mlp import MEMORY, SIZE

if TYPE_CHECKING:
    from dmdpipe.kernels.optimiser import AdamWSizes


def teacher_steps(
    teacher: Learner,
    noisy: Tensor,
    clean: Tensor,
    weight: Tensor,
    sizes: Sequence[AdamWSizes],
    average: Tensor,
    shares: Sequence[float],
) -> Tensor:
    """Take a step on each batch, ``CompiledMLP.denoising_loss`` and AdamW; return the losses [steps].

    Args:
        teacher: D, changed in place, and the conditions of all samples, without rows.
        noisy: the batches, one after the other, as many as there are sizes: [steps·B, d].
        clean: what D should answer, likewise.
        weight: of each sample in the loss [steps·B, 1].
        sizes: of each step.
        average: of D's parameters [P]; after each step it moves towards them, in place.
        shares: by which share of the way.

    Raises:
        ValueError: if these don't fit together.
    """
    steps, samples, given = len(sizes), noisy.shape[0], teacher.given
    flat, network = teacher.told_flat(), told_network(teacher, noisy, teacher.network.memory())
    told = [clean, weight, average]
    expected = [noisy.shape, (samples, 1), (flat[4],)]
    fits = all(one.shape == shape and one.dtype == torch.float32 for one, shape in zip(told, expected, strict=True))
    if samples % steps or steps != len(shares) or given.rows is not None or len(given.c_in) != samples or not fits:
        raise ValueError(f"{samples} samples and {len(shares)} shares of {steps} steps, or what they need, don't fit")
    if not all(one.is_contiguous() for one in (noisy, *told, *given[:4])):
        raise ValueError("expected samples, conditions and average in one piece")
    losses, moved = torch.empty(steps), torch.tensor(shares, dtype=torch.float32)
    call = function("teacher", "teacher_steps", None, *[MEMORY] * 5, SIZE, SIZE, *[MEMORY] * 4)
    places = (one.data_ptr() for one in (noisy, clean, average, losses))
    changing = told_sizes(sizes), moved.data_ptr()
    call(network.pointers, weight.data_ptr(), flat, *changing, steps, samples // steps, *places)
    return losses
