"""Jacobians of maps z ↦ x at single noises, and how far they are from symmetric.

The gradient of a function has a symmetric Jacobian; the optimal-transport map from the noise is the gradient of a
convex one (Brenier), and so is every exact denoiser's answer. A rotation is none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable


def jacobians(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return ∂f/∂z [B, d', d] at every row of z [B, d], by d' backward passes.

    Args:
        function: maps rows [B, d] to rows [B, d'], each row for itself.
        z: the noises.
    """
    with torch.enable_grad():
        noise = z.detach().requires_grad_(True)
        answer = function(noise)
        rows = [torch.autograd.grad(column.sum(), noise, retain_graph=True)[0] for column in answer.unbind(dim=1)]
    return torch.stack(rows, dim=1)


def jacobian_asymmetry(matrices: Tensor) -> float:
    """Return √(Σ‖J − Jᵀ‖² / Σ‖J‖²) over square matrices [B, d, d]; NaN if all are 0.

    0 symmetric, 2 antisymmetric; √2 on average for a matrix with independent entries, times √((d − 1)/d). A
    rotation of the plane by the angle φ reads 2·|sin φ|.
    """
    norm = matrices.square().sum()
    difference = (matrices - matrices.transpose(1, 2)).square().sum()
    return math.sqrt(float(difference / norm)) if norm > 0 else math.nan
