"""AdamW in one pass over flat float32 parameters."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from torch import Tensor

from dmdpipe.kernels.library import function

SIZE, MEMORY, NUMBER = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float


class AdamWSizes(NamedTuple):
    """The numbers of one step of AdamW.

    Attributes:
        scale: multiplies the gradient (clipping).
        keep: multiplies the parameters (1 − learning rate · weight decay).
        beta1: β₁.
        beta2: β₂.
        rate: the learning rate, with both bias corrections.
        epsilon: ε, with the second moment's bias correction.
    """

    scale: float
    keep: float
    beta1: float
    beta2: float
    rate: float
    epsilon: float


def norm(gradient: Tensor) -> float:
    """Return the Euclidean norm of a flat vector, summed in double precision."""
    found: float = function("optimiser", "optimiser_norm", ctypes.c_double, SIZE, MEMORY)(
        gradient.numel(), gradient.data_ptr()
    )
    return found


def adamw(values: Tensor, gradient: Tensor, first: Tensor, second: Tensor, sizes: AdamWSizes) -> None:
    """Change flat parameters [P] and their moments [P] in place, by one step of AdamW.

    Args:
        values: parameters.
        gradient: the loss's gradient; left as it is.
        first: the gradients' running mean.
        second: that of their squares.
        sizes: of the step.
    """
    step = function("optimiser", "optimiser_adamw", None, SIZE, *[MEMORY] * 4, *[NUMBER] * 6)
    step(values.numel(), *(tensor.data_ptr() for tensor in (values, gradient, first, second)), *sizes)
