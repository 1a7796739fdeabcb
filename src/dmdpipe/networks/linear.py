"""The linear generator S(z) = A·z, for which everything has a closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dmdpipe.specs.network import Linear as LinearSpec


class LinearGenerator(nn.Module):
    """G(x, σ) = A·x/σ, so that S(z) = G(σ_max·z, σ_max) = A·z for every σ_max.

    Args:
        dim: number of coordinates d; A starts as the zero matrix [d, d].
    """

    def __init__(self, dim: int):
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(dim, dim))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Map scaled noise [B, d] and σ [B, 1] to samples [B, d]."""
        return (x / sigma) @ self.matrix.T


def build(dim: int, spec: LinearSpec) -> LinearGenerator:
    """Return the zero linear map; its start is set by ``dmdpipe.distill.initialisation``."""
    return LinearGenerator(dim)
