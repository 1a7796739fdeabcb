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

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Map inputs [B, d] and noise labels [B, 1], or [1, 1] for all rows, to outputs [B, d]."""
        embedding = F.silu(self.noise_embedding(self._features(c_noise)))
        # Without gradients nothing is kept, so that little memory is passed over, again and again.
        overwrite = not torch.is_grad_enabled()
        h = self.input(x)
        for block in self.blocks:
            change = F.silu(block(h).add_(embedding), inplace=overwrite)
            h = h.add_(change) if overwrite else h + change
        answer: Tensor = self.output(h)
        return answer

    @torch.no_grad()
    def with_pullback(self, x: Tensor, c_noise: Tensor) -> tuple[Tensor, Pullback]:
        """Return F(x, c_noise) [B, d] and its pullback, which may be called once (``dmdpipe.networks.pullback``)."""
        blocks = cast("list[nn.Linear]", list(self.blocks))
        features = self._features(c_noise)
        embedding = _Silu(_affine(self.noise_embedding, features))
        inputs, activations = [_affine(self.input, x)], []
        for block in blocks:
            activations.append(_Silu(torch.addmm(embedding.value + block.bias, inputs[-1], block.weight.T)))
            inputs.append(inputs[-1] + activations[-1].value)

        def pullback(to_answer: Tensor) -> None:
            with torch.no_grad():
                _add(self.output, to_answer, inputs[-1])
                to_h = to_answer @ self.output.weight
                to_embedding = torch.zeros_like(embedding.value)
                for k in reversed(range(len(blocks))):
                    to_a = activations[k].slope_().mul_(to_h)
                    to_bias = _add(blocks[k], to_a, inputs[k])
                    to_embedding += to_a if len(to_embedding) > 1 else to_bias
                    to_h.addmm_(to_a, blocks[k].weight)
                _add(self.noise_embedding, to_embedding.mul_(embedding.slope_()), features)
                _add(self.input, to_h, x)

        return _affine(self.output, inputs[-1]), pullback

    def _features(self, c_noise: Tensor) -> Tensor:
        angles = c_noise * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class _Silu:
    """silu(a) = a·s with s = sigmoid(a), and its slope s + silu(a)·(1 − s); both overwrite what they start from."""

    def __init__(self, a: Tensor):
        self.sigmoid = torch.sigmoid(a)
        self.value = a.mul_(self.sigmoid)

    def slope_(self) -> Tensor:
        return self.sigmoid.lerp_(self.sigmoid.new_ones(()), self.value)


def _affine(layer: nn.Linear, x: Tensor) -> Tensor:
    return torch.addmm(layer.bias, x, layer.weight.T)


def _add(layer: nn.Linear, to_output: Tensor, x: Tensor) -> Tensor:
    """Add a layer's gradients, given its input [B, …] and the gradient at its output; return that of the bias."""
    assert layer.weight.grad is not None and layer.bias.grad is not None
    to_bias = to_output.sum(dim=0)
    layer.bias.grad.add_(to_bias)
    layer.weight.grad.addmm_(to_output.T, x)
    return to_bias


def build(dim: int, spec: MLPSpec) -> MLP:
    """Return an MLP with PyTorch's default initialisation (drawn from the global generator)."""
    return MLP(dim, spec)
