"""A discriminator's logits and gradients, in one call of ``discriminator.c``. Float32, on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmdpipe.kernels.library import function
from dmdpipe.kernels.mlp import MEMORY, SIZE, CompiledMLP, place, structure

if TYPE_CHECKING:
    from dmdpipe.kernels.conditions import Conditions


class CompiledDiscriminator:
    """The first residual blocks of an MLP and a head of two normalised layers, read where they are, at every call.

    Args:
        body: the MLP's layers up to the hidden state, as ``CompiledMLP`` takes them.
        head: weight and bias of the head's linear layers: twice [width, width] and [width], then [1, width] and [1].
        norms: gain and shift [width] of its two layer normalisations.
    """

    def __init__(
        self,
        body: Sequence[tuple[Tensor, Tensor]],
        head: Sequence[tuple[Tensor, Tensor]],
        norms: Sequence[tuple[Tensor, Tensor]],
    ):
        self.network = CompiledMLP([*body, *head], skip=False)
        self.norms = norms
        self.head_begins = len(body)

    def gradient(self, noisy: Tensor, given: Conditions, signs: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return the logits l [B], and the gradient of scale·Σ softplus(sign·l) at noisy samples [B, d].

        Args:
            noisy: x + σ·ε [B, d].
            given: the conditions, with a row for each sample.
            signs: −1 where a sample should pass for data, 1 where it should not [B].
            scale: of the loss.
        """
        to_noisy = torch.empty(noisy.shape)
        return self._run(noisy, given, signs, scale, self.head_begins, to_noisy=to_noisy), to_noisy

    def learn(self, noisy: Tensor, given: Conditions, signs: Tensor, scale: float, body_learns: bool) -> Tensor:
        """Return the logits [B], and add that loss's gradients at the parameters to those that are there.

        Args:
            noisy: x + σ·ε [B, d].
            given: the conditions, with a row for each sample.
            signs: −1 for data, 1 for others [B].
            scale: of the loss.
            body_learns: whether the body gets gradients, or the head alone.
        """
        first = 0 if body_learns else self.head_begins
        gradients = self.network.places(of_gradients=True)
        norm_gradients = structure(*(place(one.grad) for norm in self.norms for one in norm))
        if 0 in (*norm_gradients, *list(gradients)[2 * first :]):
            raise ValueError("a parameter has no gradient: make the network's FlatParameters first")
        return self._run(noisy, given, signs, scale, first, gradients, norm_gradients)

    def _run(
        self,
        noisy: Tensor,
        given: Conditions,
        signs: Tensor,
        scale: float,
        first: int,
        gradients: Any = None,
        norm_gradients: Any = None,
        to_noisy: Tensor | None = None,
    ) -> Tensor:
        """Return the logits [B]; fill ``to_noisy``, or add to the gradients from layer ``first`` on, where given."""
        if given.rows is None or signs.shape != (len(noisy),):
            raise ValueError(f"expected a row of the conditions and a sign for each of {len(noisy)} samples")
        noisy, signs, logits = noisy.contiguous(), signs.to(torch.float32).contiguous(), torch.empty(len(noisy))
        shape, layers, conditions = self.network.question(noisy, given)
        gains = structure(*(place(one) for norm in self.norms for one in norm))
        memory = torch.empty(function("discriminator", "discriminator_memory_size", SIZE, MEMORY)(shape))
        arguments = [*[MEMORY] * 5, SIZE, MEMORY, SIZE, MEMORY, MEMORY, ctypes.c_float, *[MEMORY] * 3]
        function("discriminator", "discriminator_logits", None, *arguments)(
            *(shape, layers, gains, gradients, norm_gradients, first, conditions, len(noisy), noisy.data_ptr()),
            *(signs.data_ptr(), scale, logits.data_ptr(), place(to_noisy), memory.data_ptr()),
        )
        return logits
