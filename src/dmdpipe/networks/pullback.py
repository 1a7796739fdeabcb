"""Gradients of networks without autograd's bookkeeping.

A *pullback* takes the gradient of a loss at a network's answer and puts the gradients at its parameters into their
``grad``. Small networks write theirs out, as a method ``with_pullback(*inputs) -> (answer, pullback)``: autograd would
cost them as much as their matrix products. For every other module autograd makes it.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Pullback(Protocol):
    """What ``with_pullback`` returns beside the answer."""

    def __call__(self, to_answer: Tensor, add: bool = False) -> None:
        """Put the gradients at the parameters into their ``grad``.

        Args:
            to_answer: the loss's gradient at the answer, of its shape.
            add: whether they are added to what ``grad`` holds, or take its place.
        """


def with_pullback(module: nn.Module, *inputs: Any) -> tuple[Tensor, Pullback]:
    """Return ``module(*inputs)``, detached, and its pullback.

    Args:
        module: what is trained; a parameter's ``grad`` must be there, or autograd makes it
            (``dmdpipe.diffusion.optimiser.FlatParameters`` allocates them all).
        inputs: get no gradient.
    """
    if own := getattr(module, "with_pullback", None):
        found: tuple[Tensor, Pullback] = own(*inputs)
        return found
    return autograd_pullback(module, *inputs)


def autograd_pullback(module: nn.Module, *inputs: Any) -> tuple[Tensor, Pullback]:
    """Return what ``with_pullback`` does, made by autograd."""
    with torch.enable_grad():
        answer = module(*inputs)

    def pullback(to_answer: Tensor, add: bool = False) -> None:
        if not add:
            module.zero_grad(set_to_none=False)
        answer.backward(to_answer)

    return answer.detach(), pullback
