"""Residual MLP with a noise embedding: the small network of the laptop studies.

On the CPU, in single precision, ``dmdpipe.kernels.mlp`` computes the same, several times as fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from dmdpipe.specs.network import MLP as MLPSpec


Layer = tuple[nn.Parameter, nn.Parameter]


class MLP(nn.Module):
    """F(x, c_noise): ``depth`` residual blocks h + silu(W·h + b + embedding), between two linear layers.

    Args:
        dim: number of input and output coordinates d.
        spec: width, depth and number of Fourier features.
    """

    frequencies: Tensor

    def __init__(self, dim: int, spec: MLPSpec):
        super().__init__()
        # c_noise = ln(σ)/4 spans about 2.6 units; these periods run from 2.4 spans down to 1/13 of one.
        self.register_buffer("frequencies", torch.logspace(0, 5, spec.embedding // 2, base=2.0), persistent=False)
        self.noise_embedding = nn.Linear(spec.embedding, spec.width)
        self.input = nn.Linear(dim, spec.width)
        self.blocks = nn.ModuleList([nn.Linear(spec.width, spec.width) for _ in range(spec.depth)])
        self.output = nn.Linear(spec.width, dim)
        linear = [self.noise_embedding, self.input, *self.blocks, self.output]
        self.layers = [cast("Layer", (layer.weight, layer.bias)) for layer in linear]
        """Each layer's weight [out, in] and bias [out], in the order of the parameters."""

    def noise_features(self, c_noise: Tensor) -> Tensor:
        """Return the Fourier features [B, E] of noise labels c_noise [B, 1]; they depend on no weight."""
        angles = c_noise * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Map inputs [B, d] and their noise features [B, E], or [1, E] for all rows, to outputs [B, d]."""
        embedding = F.silu(self.noise_embedding(features))
        h = self.input(x)
        for block in self.blocks:
            h = h + F.silu(block(h) + embedding)
        answer: Tensor = self.output(h)
        return answer


def build(dim: int, spec: MLPSpec) -> MLP:
    """Return an MLP with PyTorch's default initialisation (drawn from the global generator)."""
    return MLP(dim, spec)
