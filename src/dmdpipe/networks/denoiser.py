"""EDM preconditioning: any network F becomes a denoiser D(x, σ) (arXiv 2206.00364, eq. 7 and table 1)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from dmdpipe.networks.pullback import Pullback, with_pullback
from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from dmdpipe.specs.network import NetworkSpec

SIGMA_DATA = 0.5


class Conditions(NamedTuple):
    """What a denoiser's answer depends on beside x, at noise levels σ.

    Attributes:
        c_in: EDM's coefficients [B, 1], or [1, 1] for all rows.
        c_out: likewise.
        c_skip: likewise.
        features: what the network is told of c_noise = ln(σ)/4: its ``noise_features`` [B, E], or c_noise [B, 1].
    """

    c_in: Tensor
    c_out: Tensor
    c_skip: Tensor
    features: Tensor

    def rows(self, rows: Tensor) -> Conditions:
        """Return the conditions [B, …] of given rows [B]: to look up is cheaper than to compute anew."""
        return Conditions(*(column.index_select(0, rows) for column in self))


class Denoiser(nn.Module):
    """D(x, σ) = c_skip·x + c_out·F(c_in·x, ln(σ)/4), with σ_data = 0.5.

    Args:
        network: F, called with inputs [B, d] and what its own ``noise_features`` makes of noise labels [B, 1]; without
            such a method, with the labels.
        skip: whether c_skip·x is added; without it D is the network's answer alone (the ``random-no-skip`` start).
    """

    def __init__(self, network: nn.Module, skip: bool = True):
        super().__init__()
        self.network = network
        self.skip = skip

    def conditions(self, sigma: Tensor) -> Conditions:
        """Return the conditions at noise levels σ [B, 1]; they depend on no weight."""
        total = sigma * sigma + SIGMA_DATA**2
        c_in = total.rsqrt()
        c_noise = sigma.log() / 4
        features = getattr(self.network, "noise_features", lambda labels: labels)(c_noise)
        return Conditions(c_in, sigma * c_in * SIGMA_DATA, SIGMA_DATA**2 / total, features)

    def forward(self, x: Tensor, sigma: Tensor | Conditions) -> Tensor:
        """Return the denoised x [B, d], given noisy x [B, d] and noise levels σ [B, 1], or [1, 1] for all rows.

        The ``conditions`` of these levels do as well.
        """
        given = sigma if isinstance(sigma, Conditions) else self.conditions(sigma)
        return self._combine(x, self.network(given.c_in * x, given.features), given)

    def with_pullback(self, x: Tensor, sigma: Tensor | Conditions) -> tuple[Tensor, Pullback]:
        """Return ``forward``'s answer and its pullback (``dmdpipe.networks.pullback``)."""
        given = sigma if isinstance(sigma, Conditions) else self.conditions(sigma)
        answer, pullback = with_pullback(self.network, given.c_in * x, given.features)

        def scaled(to_answer: Tensor, add: bool = False) -> None:
            pullback(given.c_out * to_answer, add)

        return self._combine(x, answer, given), scaled

    def _combine(self, x: Tensor, answer: Tensor, given: Conditions) -> Tensor:
        out = given.c_out * answer
        return torch.addcmul(out, given.c_skip, x) if self.skip else out


def in_precision(denoiser: Denoiser, precision: str) -> Denoiser:
    """Return a denoiser of the same network whose products are in a precision (``dmdpipe.specs.hardware``)."""
    if precision != "bf16":
        return denoiser
    # By name, so that an edit of it touches only the trainings that use it.
    half: type[Denoiser] = import_module("dmdpipe.networks.bf16").Bf16Denoiser
    return half(denoiser.network, denoiser.skip)


def build_network(spec: NetworkSpec, dim: int, seed: int) -> nn.Module:
    """Return the network that ``spec`` names, with d = ``dim`` and weights drawn from ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "network"))
        network: nn.Module = import_module(f"dmdpipe.networks.{spec.kind}").build(dim, spec)
    return network
