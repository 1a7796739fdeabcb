"""EDM preconditioning: any network F becomes a denoiser D(x, σ) (arXiv 2206.00364, eq. 7 and table 1)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmdpipe.kernels.conditions import Conditions
from dmdpipe.networks.pullback import Pullback, pullback_by_autograd
from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from dmdpipe.kernels.mlp import CompiledMLP
    from dmdpipe.specs.network import NetworkSpec

SIGMA_DATA = 0.5


class Denoiser(nn.Module):
    """D(x, σ) = c_skip·x + c_out·F(c_in·x, ln(σ)/4), with σ_data = 0.5.

    Without gradients, in single precision and on the CPU, an MLP's answers come from ``dmdpipe.kernels.mlp``.

    Args:
        network: F, called with inputs [B, d] and what its own ``noise_features`` makes of noise labels [B, 1]; without
            such a method, with the labels.
        skip: whether c_skip·x is added; without it D is the network's answer alone (the ``random-no-skip`` start).

    Attributes:
        plain: whether everything is left to PyTorch.
        kernel: what computes the same in C, of a network that has such a ``compiled_denoiser``.
    """

    def __init__(self, network: nn.Module, skip: bool = True):
        super().__init__()
        self.network = network
        self.skip = skip
        self.plain = False
        compiled: Callable[[bool], CompiledMLP] | None = getattr(network, "compiled_denoiser", None)
        self.kernel = compiled(skip) if compiled else None

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
        given = self.told(sigma)
        if not torch.is_grad_enabled() and (kernel := self.compiled(x)):
            return kernel.denoise(x, given)
        here = given.looked_up()
        return self.combined(x, self.network(here.c_in * x, here.features), here)

    def with_pullback(self, x: Tensor, sigma: Tensor | Conditions) -> tuple[Tensor, Pullback]:
        """Return ``forward``'s answer and its pullback (``dmdpipe.networks.pullback``)."""
        given = self.told(sigma)
        if kernel := self.compiled(x):
            return kernel.with_pullback(x, given)
        return pullback_by_autograd(self, x, given)

    def told(self, sigma: Tensor | Conditions) -> Conditions:
        """Return the conditions at noise levels σ, if they aren't conditions already."""
        return sigma if isinstance(sigma, Conditions) else self.conditions(sigma)

    def combined(self, x: Tensor, answer: Tensor, given: Conditions) -> Tensor:
        """Return D, given x [B, d], the network's answer F [B, d] and their conditions, looked up."""
        out = given.c_out * answer
        return torch.addcmul(out, given.c_skip, x) if self.skip else out

    def compiled(self, x: Tensor) -> CompiledMLP | None:
        """Return what computes this denoiser's answers at x in C, if that can be."""
        fits = not self.plain and x.dtype == torch.float32 and x.device.type == "cpu"
        return self.kernel if fits else None


def build_network(spec: NetworkSpec, dim: int, seed: int) -> nn.Module:
    """Return the network that ``spec`` names, with d = ``dim`` and weights drawn from ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "network"))
        network: nn.Module = import_module(f"dmdpipe.networks.{spec.kind}").build(dim, spec)
    return network
