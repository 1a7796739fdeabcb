"""Residual MLP with a noise embedding: the small network of the laptop studies.

At 64 units the bookkeeping around a matrix product costs as much as the product, and a training is millions of them.
So the gradient is written out beside the layers, and training never builds a graph (``dmdpipe.networks.pullback``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from dmdpipe.networks.pullback import Pullback
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
        layers = [self.noise_embedding, self.input, *self.blocks, self.output]
        # Each layer's weight and bias: a module's attributes are slow to find, which shows in training.
        self.layers = [cast("Layer", (layer.weight, layer.bias)) for layer in layers]

    def noise_features(self, c_noise: Tensor) -> Tensor:
        """Return the Fourier features [B, E] of noise labels c_noise [B, 1]; they depend on no weight."""
        angles = c_noise * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Map inputs [B, d] and their noise features [B, E], or [1, E] for all rows, to outputs [B, d]."""
        embedding = F.silu(self.noise_embedding(features))
        # Without gradients nothing is kept, so that little memory is passed over, again and again.
        overwrite = not torch.is_grad_enabled()
        h = self.input(x)
        for block in self.blocks:
            change = F.silu(block(h).add_(embedding), inplace=overwrite)
            h = h.add_(change) if overwrite else h + change
        answer: Tensor = self.output(h)
        return answer

    @torch.no_grad()
    def with_pullback(self, x: Tensor, features: Tensor) -> tuple[Tensor, Pullback]:
        """Return F(x, features) [B, d] and its pullback, which may be called once (``dmdpipe.networks.pullback``)."""
        noise_embedding, first, *blocks, last = self.layers
        embedding, embedding_slope = _silu(F.linear(features, *noise_embedding))
        h = F.linear(x, *first)
        inputs, slopes = [h], []
        for block in blocks:
            change, slope = _silu(F.linear(h, *block).add_(embedding))
            h = change.add_(h)
            inputs.append(h)
            slopes.append(slope)

        def pullback(to_answer: Tensor, add: bool = False) -> None:
            with torch.no_grad():
                _set_gradients(last, to_answer, inputs[-1], add)
                to_h = to_answer @ last[0]
                to_embedding = None
                for block, slope, before in zip(reversed(blocks), reversed(slopes), reversed(inputs[:-1]), strict=True):
                    to_a = slope.mul_(to_h)
                    to_bias = _set_gradients(block, to_a, before, add)
                    to_h.addmm_(to_a, block[0])
                    through = to_a if len(embedding) > 1 else to_bias[None]
                    to_embedding = through if to_embedding is None else to_embedding.add_(through)
                if to_embedding is not None:
                    _set_gradients(noise_embedding, embedding_slope.mul_(to_embedding), features, add)
                _set_gradients(first, to_h, x, add)

        return F.linear(h, *last), pullback


def _silu(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return silu(a) = a·s, s = sigmoid(a), which overwrites a, and its slope s + silu(a)·(1 − s)."""
    sigmoid = torch.sigmoid(a)
    value = a.mul_(sigmoid)
    return value, sigmoid.lerp_(a.new_ones(()), value)


def _set_gradients(layer: Layer, to_output: Tensor, x: Tensor, add: bool) -> Tensor:
    """Set or add to a layer's gradients, given its input [B, …] and the gradient at its output; return the bias's."""
    weight, bias = layer[0].grad, layer[1].grad
    assert weight is not None and bias is not None
    to_bias = to_output.sum(dim=0)
    weight.addmm_(to_output.T, x, beta=int(add))
    if add:
        bias.add_(to_bias)
    else:
        bias.copy_(to_bias)
    return to_bias


def build(dim: int, spec: MLPSpec) -> MLP:
    """Return an MLP with PyTorch's default initialisation (drawn from the global generator)."""
    return MLP(dim, spec)
