"""Several steps of a teacher's training in one call of ``teacher.c``. Float32, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmdpipe.kernels.learning import Flat, told_network, told_sizes
from dmdpipe.kernels.library import function
from dmdpipe.kernels.mlp import MEMORY, SIZE, CompiledMLP

if TYPE_CHECKING:
    from dmdpipe.kernels.conditions import Conditions
    from dmdpipe.kernels.optimiser import AdamWSizes


def teacher_steps(
    network: CompiledMLP,
    noisy: Tensor,
    given: Conditions,
    clean: Tensor,
    weight: Tensor,
    flat: Flat,
    sizes: Sequence[AdamWSizes],
    average: Tensor,
    shares: Sequence[float],
) -> Tensor:
    """Take a step on each batch, ``CompiledMLP.denoising_loss`` and AdamW; return the losses [steps].

    Args:
        network: D; changed in place.
        noisy: the batches, one after the other, as many as there are sizes: [steps·B, d].
        given: their conditions, without rows.
        clean: what D should answer, likewise.
        weight: of each sample in the loss [steps·B, 1].
        flat: of D.
        sizes: of each step.
        average: of D's parameters [P]; after each step it moves towards them, in place.
        shares: by which share of the way.

    Raises:
        ValueError: if these don't fit together.
    """
    steps, samples = len(sizes), noisy.shape[0]
    told = [clean, weight, average]
    expected = [noisy.shape, (samples, 1), flat.values.shape]
    fits = all(one.shape == shape and one.dtype == torch.float32 for one, shape in zip(told, expected, strict=True))
    if samples % steps or steps != len(shares) or given.rows is not None or len(given.c_in) != samples or not fits:
        raise ValueError(f"{samples} samples and {len(shares)} shares of {steps} steps, or what they need, don't fit")
    if not all(one.is_contiguous() for one in (noisy, *told, *given[:4])):
        raise ValueError("expected samples, conditions and average in one piece")
    losses, moved = torch.empty(steps), torch.tensor(shares, dtype=torch.float32)
    call = function("teacher", "teacher_steps", None, *[MEMORY] * 6, SIZE, SIZE, *[MEMORY] * 4)
    network_told = told_network(network, noisy, given)
    call(
        network_told.pointers,
        network.gradients(),
        weight.data_ptr(),
        flat.told(network),
        told_sizes(sizes),
        moved.data_ptr(),
        steps,
        samples // steps,
        *(one.data_ptr() for one in (noisy, clean, average, losses)),
    )
    return losses
