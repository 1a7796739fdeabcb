"""Gradients of networks without autograd's bookkeeping.

A *pullback* takes the gradient of a loss at a network's answer and adds the gradients at its parameters to their
``grad``. Small networks write theirs out, as a method ``with_pullback(*inputs) -> (answer, pullback)``: autograd would
cost them as much as their matrix products. For every other module autograd makes it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Pullback = Callable[[Tensor], None]


def with_pullback(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, Pullback]:
    """Return ``module(*inputs)``, detached, and its pullback.

    Args:
        module: what is trained; a parameter's ``grad`` must be there, or autograd makes it
            (``dmdpipe.diffusion.optimiser.FlatParameters`` allocates them all).
        inputs: get no gradient.
    """
    if own := getattr(module, "with_pullback", None):
        answer, pullback = own(*inputs)
        return answer, pullback
    with torch.enable_grad():
        answer = module(*inputs)
    return answer.detach(), answer.backward
