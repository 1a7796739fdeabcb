"""Residual MLP with a noise embedding: the small network of the laptop studies.

On the CPU, in single precision, ``dmdpipe.kernels.mlp`` computes the same, several times as fast.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmdpipe.kernels.mlp import CompiledMLP

if TYPE_CHECKING:
    from dmdpipe.specs.network import MLP as MLPSpec


Layer = tuple[nn.Parameter, nn.Parameter]


class MLP(nn.Module):
    """F(x, c_noise): ``depth`` residual blocks h + silu(W·h + b + embedding), between two linear layers.

    Args:
        dim: number of input and output coordinates d.
        spec: width, depth, number of Fourier features, and of classes that it is asked for.
    """

    frequencies: Tensor

    def __init__(self, dim: int, spec: MLPSpec):
        super().__init__()
        # c_noise = ln(σ)/4 spans about 2.6 units; these periods run from 2.4 spans down to 1/13 of one.
        self.register_buffer("frequencies", torch.logspace(0, 5, spec.embedding // 2, base=2.0), persistent=False)
        self.classes = spec.classes
        # A class is a feature of its own, 0 or 1: its column of weights is what the class adds to the embedding.
        self.noise_embedding = nn.Linear(spec.embedding + spec.classes, spec.width)
        self.input = nn.Linear(dim, spec.width)
        self.blocks = nn.ModuleList([nn.Linear(spec.width, spec.width) for _ in range(spec.depth)])
        self.output = nn.Linear(spec.width, dim)

    def compiled_denoiser(self, skip: bool) -> CompiledMLP:
        """Return what computes the answers of this network's ``Denoiser`` in C.

        Args:
            skip: whether the denoiser adds c_skip·x.
        """
        linear = [self.noise_embedding, self.input, *self.blocks, self.output]
        return CompiledMLP([cast("Layer", (layer.weight, layer.bias)) for layer in linear], skip)

    def noise_features(self, c_noise: Tensor) -> Tensor:
        """Return the Fourier features [B, E] of noise labels c_noise [B, 1]; they depend on no weight."""
        angles = c_noise * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    def class_features(self, classes: Tensor) -> Tensor:
        """Return what is told of classes [B] beside the noise features: 1 at its own place, else 0 [B, classes]."""
        return F.one_hot(classes, self.classes)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Map inputs [B, d] and their noise features [B, E], or [1, E] for all rows, to outputs [B, d]."""
        answer: Tensor = self.output(self.hidden_state(x, features, len(self.blocks)))
        return answer

    def hidden_state(self, x: Tensor, features: Tensor, blocks: int) -> Tensor:
        """Return what the first so many residual blocks make of inputs [B, d] and their features: [B, width]."""
        embedding = F.silu(self.noise_embedding(features))
        h: Tensor = self.input(x)
        for block in islice(self.blocks, blocks):
            h = h + F.silu(block(h) + embedding)
        return h


def build(dim: int, spec: MLPSpec) -> MLP:
    """Return an MLP with PyTorch's default initialisation (drawn from the global generator)."""
    return MLP(dim, spec)
