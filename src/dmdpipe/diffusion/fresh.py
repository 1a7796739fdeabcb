"""Samples of a known distribution that never come twice: a teacher of them has seen no finite data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmdpipe.diffusion.determinism import square_root

if TYPE_CHECKING:
    import numpy as np

    from dmdpipe.kernels.noise import Stream

LEVELS = 2**24  # of the uniform numbers that choose the modes


class FreshSamples:
    """Batches drawn anew from a Gaussian mixture whose modes share their eigenvectors.

    Args:
        tensors: ``exact.weights`` [k], ``exact.means`` [k, d], ``exact.basis`` [d, d] (eigenvectors as columns) and
            ``exact.variances`` [k, d], as the data step stores them. Nothing else of them is read.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        weights, means, basis, variances = (
            torch.as_tensor(tensors[f"exact.{name}"]) for name in ("weights", "means", "basis", "variances")
        )
        self.means, self.axes, self.spread = means.float(), basis.T.float(), square_root(variances).float()
        self.upper = (weights.cumsum(0) * LEVELS).round().long()
        self.upper[-1] = LEVELS

    def draw(self, count: int, modes: Stream, noises: Stream) -> Tensor:
        """Return ``count`` independent samples [count, d], float32; a stream each for their modes and their noise."""
        mode = torch.searchsorted(self.upper, modes.integers(0, LEVELS, count), right=True)
        noise = noises.normal(count, self.means.shape[1]) * self.spread[mode]
        return self.means[mode] + noise @ self.axes
