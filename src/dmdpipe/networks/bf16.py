"""A denoiser whose network multiplies in bfloat16, which GPUs do at a multiple of the rate of float32."""

from __future__ import annotations

import torch
from torch import Tensor

from dmdpipe.kernels.conditions import Conditions
from dmdpipe.networks.denoiser import Denoiser


class Bf16Denoiser(Denoiser):
    """D(x, σ) with F under autocast: its products and activations are bfloat16.

    Weights, their gradients, the noise features and the preconditioning stay float32.
    """

    def forward(self, x: Tensor, sigma: Tensor | Conditions, classes: Tensor | None = None) -> Tensor:
        """Return the denoised x [B, d] in x's dtype; see ``Denoiser.forward``."""
        given = self.told(sigma, classes).looked_up()
        with torch.autocast(x.device.type, torch.bfloat16):
            answer = self.network(given.c_in * x, given.features)
        return self.combined(x, answer.to(x.dtype), given)

    def compiled(self, x: Tensor) -> None:
        """Return nothing: PyTorch computes all of it, and autograd follows the casts back."""
