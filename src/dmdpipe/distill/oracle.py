"""The oracle fake score: the exact denoiser of a linear student's own distribution."""

from __future__ import annotations

import torch
from torch import Tensor


class LinearOracle:
    """D_fake(x, σ) = C(C + σ²)⁻¹x with C = AAᵀ, the covariance of S(z) = A·z.

    Args:
        matrix: A [d, d]; read anew by ``refresh``, so that the oracle never lags.
    """

    def __init__(self, matrix: Tensor):
        self.matrix = matrix
        self.refresh()

    def refresh(self) -> None:
        """Recompute the eigenvectors of C after A has changed."""
        left, singular, _ = torch.linalg.svd(self.matrix.detach())
        self.basis, self.variances = left, singular**2

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the denoised x [B, d], given noisy x [B, d] and σ [B, 1]."""
        return (x @ self.basis) * (self.variances / (self.variances + sigma**2)) @ self.basis.T
