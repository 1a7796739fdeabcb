"""What a denoiser is told of noise levels: tables, and the row of each sample."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Conditions(NamedTuple):
    """What a denoiser's answer depends on beside x: coefficients at noise levels σ, as a table.

    Attributes:
        c_in: EDM's coefficients [K, 1].
        c_out: likewise.
        c_skip: likewise.
        features: what the network is told of c_noise = ln(σ)/4: its ``noise_features`` [K, E], or c_noise [K, 1].
        rows: the table's row for each sample [B], int64; without it K is B, or 1 for all samples.
    """

    c_in: Tensor
    c_out: Tensor
    c_skip: Tensor
    features: Tensor
    rows: Tensor | None = None

    def at(self, rows: Tensor) -> Conditions:
        """Return the conditions of samples [B] at these rows of the table: to look up is cheaper than to compute."""
        return self._replace(rows=rows)

    def looked_up(self) -> Conditions:
        """Return the same with a row for each sample, or one for all."""
        if self.rows is None:
            return self
        return Conditions(*(column.index_select(0, self.rows) for column in self[:4]))
