"""EDM preconditioning: any network F becomes a denoiser D(x, σ) (arXiv 2206.00364, eq. 7 and table 1)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

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
        """Return the denoised x [B, d], given noisy x [B, d] and noise levels σ [B, 1]."""
        total = sigma**2 + SIGMA_DATA**2
        c_in = total.rsqrt()
        out = sigma * SIGMA_DATA * c_in * self.network(c_in * x, sigma.log() / 4)
        return out + (SIGMA_DATA**2 / total) * x if self.skip else out


def build_network(spec: NetworkSpec, dim: int, seed: int) -> nn.Module:
    """Return the network that ``spec`` names, with d = ``dim`` and weights drawn from ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "network"))
        network: nn.Module = import_module(f"dmdpipe.networks.{spec.kind}").build(dim, spec)
    return network
