"""A denoiser whose network multiplies in bfloat16, which GPUs do at a multiple of the rate of float32."""

from __future__ import annotations

import torch
from torch import Tensor

from dmdpipe.networks.denoiser import Conditions, Denoiser
from dmdpipe.networks.pullback import Pullback, autograd_pullback


class Bf16Denoiser(Denoiser):
    """D(x, σ) with F under autocast: its products and activations are bfloat16.

    Weights, their gradients, the noise features and the preconditioning stay float32.
    """

    def forward(self, x: Tensor, sigma: Tensor | Conditions) -> Tensor:
        """Return the denoised x [B, d] in x's dtype; see ``Denoiser.forward``."""
        given = sigma if isinstance(sigma, Conditions) else self.conditions(sigma)
        with torch.autocast(x.device.type, torch.bfloat16):
            answer = self.network(given.c_in * x, given.features)
        return self._combine(x, answer.to(x.dtype), given)

    def with_pullback(self, x: Tensor, sigma: Tensor | Conditions) -> tuple[Tensor, Pullback]:
        """Return ``forward``'s answer and its pullback, by autograd, which follows the casts back."""
        return autograd_pullback(self, x, sigma)
