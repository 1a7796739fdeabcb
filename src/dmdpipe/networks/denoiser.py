"""EDM preconditioning: any network F becomes a denoiser D(x, σ) (arXiv 2206.00364, eq. 7 and table 1)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

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
            such a method, with the labels. One of several ``classes`` also with its ``class_features`` of these.
        skip: whether c_skip·x is added; without it D is the network's answer alone (the ``random-no-skip`` start).

    Attributes:
        classes: number of classes that it is asked for; 0: none.
        plain: whether everything is left to PyTorch.
        kernel: what computes the same in C, of a network that has such a ``compiled_denoiser``.
    """

    def __init__(self, network: nn.Module, skip: bool = True):
        super().__init__()
        self.network = network
        self.skip = skip
        self.classes: int = getattr(network, "classes", 0)
        self.plain = False
        compiled: Callable[[bool], CompiledMLP] | None = getattr(network, "compiled_denoiser", None)
        self.kernel = compiled(skip) if compiled else None

    def conditions(self, sigma: Tensor, classes: Tensor | None = None) -> Conditions:
        """Return the conditions at noise levels σ [B, 1] and, of a network that is asked for them, of classes [B].

        They depend on no weight.

        Raises:
            ValueError: if there are no classes and it is asked for some, or the other way round.
        """
        if (classes is None) != (self.classes == 0):
            raise ValueError(f"a network of {self.classes} classes, asked for {'none' if classes is None else 'some'}")
        total = sigma * sigma + SIGMA_DATA**2
        c_in = total.rsqrt()
        c_noise = sigma.log() / 4
        features = getattr(self.network, "noise_features", lambda labels: labels)(c_noise)
        if classes is not None:
            told: Any = self.network
            features = torch.cat([features, told.class_features(classes).to(features)], dim=1)
        return Conditions(c_in, sigma * c_in * SIGMA_DATA, SIGMA_DATA**2 / total, features)

    def every_class(self, sigma: Tensor) -> Conditions:
        """Return the conditions at noise levels σ [K, 1], each with every class: entry k·classes + c [K·classes]."""
        asked = torch.arange(self.classes, device=sigma.device).repeat(len(sigma))
        return self.conditions(sigma.repeat_interleave(self.classes, dim=0), asked)

    def levels(self, grid: Tensor) -> Callable[..., Conditions]:
        """Return rows [B] of a grid of noise levels [K, 1], and classes [B] if there are any ↦ their conditions."""
        if not self.classes:
            return self.conditions(grid).at
        table = self.every_class(grid)
        return lambda rows, asked: table.at(rows * self.classes + asked)

    def forward(self, x: Tensor, sigma: Tensor | Conditions, classes: Tensor | None = None) -> Tensor:
        """Return the denoised x [B, d], given noisy x [B, d] and noise levels σ [B, 1], or [1, 1] for all rows.

        Classes [B] are for networks that are asked for them. The ``conditions`` of all these do as well.
        """
        given = self.told(sigma, classes)
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

    def told(self, sigma: Tensor | Conditions, classes: Tensor | None = None) -> Conditions:
        """Return the conditions at noise levels σ, and of classes, if they aren't conditions already."""
        if isinstance(sigma, Conditions):
            return sigma
        return self.conditions(sigma if classes is None else sigma.expand(len(classes), 1), classes)

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


def zero_output_layer(network: nn.Module) -> None:
    """Set the output layer to zero, EDM's default start: D(x, σ) is then c_skip·x."""
    for parameter in network.get_submodule("output").parameters():
        nn.init.zeros_(parameter)
