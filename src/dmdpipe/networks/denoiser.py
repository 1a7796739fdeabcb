"""EDM preconditioning: any network F becomes a denoiser D(x, σ) (arXiv 2206.00364, eq. 7 and table 1)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmdpipe.networks.pullback import Pullback, with_pullback
from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from dmdpipe.specs.network import NetworkSpec

SIGMA_DATA = 0.5


class Denoiser(nn.Module):
    """D(x, σ) = c_skip·x + c_out·F(c_in·x, ln(σ)/4), with σ_data = 0.5.

    Args:
        network: F, called with inputs [B, d] and noise labels [B, 1].
        skip: whether c_skip·x is added; without it D is the network's answer alone (the ``random-no-skip`` start).
    """

    def __init__(self, network: nn.Module, skip: bool = True):
        super().__init__()
        self.network = network
        self.skip = skip

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the denoised x [B, d], given noisy x [B, d] and noise levels σ [B, 1], or [1, 1] for all rows."""
        c_in, c_out, c_skip, c_noise = coefficients(sigma)
        out = c_out * self.network(c_in * x, c_noise)
        return out + c_skip * x if self.skip else out

    def with_pullback(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Pullback]:
        """Return ``forward``'s answer and its pullback (``dmdpipe.networks.pullback``)."""
        c_in, c_out, c_skip, c_noise = coefficients(sigma)
        answer, pullback = with_pullback(self.network, c_in * x, c_noise)
        out = c_out * answer
        return (out + c_skip * x if self.skip else out), lambda to_out: pullback(c_out * to_out)


def coefficients(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return c_in, c_out, c_skip and c_noise = ln(σ)/4, each of the shape of σ."""
    total = sigma * sigma + SIGMA_DATA**2
    c_in = total.rsqrt()
    return c_in, sigma * c_in * SIGMA_DATA, SIGMA_DATA**2 / total, sigma.log() / 4


def build_network(spec: NetworkSpec, dim: int, seed: int) -> nn.Module:
    """Return the network that ``spec`` names, with d = ``dim`` and weights drawn from ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "network"))
        network: nn.Module = import_module(f"dmdpipe.networks.{spec.kind}").build(dim, spec)
    return network
