"""Networks of another's training as denoisers D(x, σ), as ``dmdpipe.specs.adapter.Adapter`` describes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dmdpipe.networks.mlp import MLP
    from dmdpipe.specs.adapter import Adapter


class WithLabels(nn.Module):
    """An MLP that is asked with noise labels, and makes their features itself."""

    def __init__(self, network: MLP):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Map inputs [B, d] and noise labels [1, 1] to outputs [B, d]."""
        answer: Tensor = self.network(x, self.network.noise_features(label))
        return answer


class AdaptedDenoiser(nn.Module):
    """D(x, σ) of a network F.

    Args:
        network: F, called with inputs [B, d], a noise label or time step [1, 1] and, if they are given, classes [B].
        adapter: what F predicts.
    """

    log_sigmas: Tensor

    def __init__(self, network: nn.Module, adapter: Adapter):
        super().__init__()
        self.network = network
        self.prediction = adapter.prediction
        self.sigma_data = adapter.sigma_data
        sigmas = adapter.schedule.sigmas() if adapter.schedule else []
        self.register_buffer("log_sigmas", torch.tensor(sigmas, dtype=torch.float64).log(), persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return the denoised x [B, d], given noisy x [B, d], one noise level σ [1, 1] for all rows, and their classes.

        Classes [B] are for networks that are asked for them row by row.
        """
        # In double precision: where σ is small, c_skip and 1 differ by σ² alone.
        level = sigma.double()
        if self.prediction == "edm":
            total = level**2 + self.sigma_data**2
            c_in, label = total.rsqrt(), level.log() / 4
            c_skip, c_out = self.sigma_data**2 / total, level * self.sigma_data * total.rsqrt()
        else:
            total = level**2 + 1
            c_in, label = total.rsqrt(), self.time_step(level)
            one = torch.ones_like(level)
            c_skip, c_out = {
                "epsilon": (one, -level),
                "v": (1 / total, -level * total.rsqrt()),
                "sample": (torch.zeros_like(level), one),
            }[self.prediction]
        asked = () if classes is None else (classes,)
        answer = self.network(c_in.to(x.dtype) * x, label.to(x.dtype), *asked)
        return c_skip.to(x.dtype) * x + c_out.to(x.dtype) * answer

    def time_step(self, sigma: Tensor) -> Tensor:
        """Return the time step, 0 … steps − 1, that has the noise level σ [1, 1]: linear in ln σ between two steps.

        Levels beyond the schedule have its first or last time step.
        """
        log_sigma = sigma.log().clamp(self.log_sigmas[0], self.log_sigmas[-1])
        above = torch.searchsorted(self.log_sigmas, log_sigma).clamp(1, len(self.log_sigmas) - 1)
        low, high = self.log_sigmas[above - 1], self.log_sigmas[above]
        return above - 1 + (log_sigma - low) / (high - low)
