"""What the copying metrics read where there is nothing, or next to nothing, to find."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dmdpipe.copying.pairing_metrics import matching_costs, pair_ranks, pairing_inefficiency, retrieval_at_k

if TYPE_CHECKING:
    import numpy.typing as npt

WEAK_CORRELATION = 0.05


def shuffled_pairing(n: int, seed: int) -> npt.NDArray[np.intp]:
    """Return a random permutation [n] without fixed points, one cycle through all rows: the negative control.

    Raises:
        ValueError: if n < 2; a single row has nothing to be exchanged with.
    """
    if n < 2:
        raise ValueError(f"cannot shuffle {n} row(s) without a fixed point")
    cycle = np.random.Generator(np.random.Philox(seed)).permutation(n)
    permutation = np.empty(n, dtype=np.intp)
    permutation[cycle] = np.roll(cycle, 1)
    return permutation


def shuffled_within(groups: npt.ArrayLike, seed: int) -> npt.NDArray[np.intp]:
    """Return a random permutation [n] that takes each row to another one of its group [n], one cycle through each.

    A row that is alone in its group stays where it is.
    """
    group = np.asarray(groups)
    permutation = np.arange(len(group))
    generator = np.random.Generator(np.random.Philox(seed))
    for one in np.unique(group):
        cycle = generator.permutation(np.flatnonzero(group == one))
        permutation[cycle] = np.roll(cycle, 1)
    return permutation


class NullReading(NamedTuple):
    """What ΔE and retrieval@1 read on weakly correlated noise."""

    delta_e: float
    retrieval_at_1: float


def dimension_matched_null(d: int, n: int, correlation: float = WEAK_CORRELATION, *, seed: int) -> NullReading:
    """Return ΔE and retrieval@1 of n pairs of iid standard normal vectors in d dimensions, weakly correlated.

    Every coordinate of s_i and t_i has the given correlation, so ρ is 1 − correlation in every d, while ΔE
    falls to 0 and retrieval rises to 1 as d grows. Either speaks of copying only beyond this.

    Args:
        d: dimension.
        n: number of pairs, at least 2; the study's own.
        correlation: per coordinate, −1…1.
        seed: of the draw (Philox).
    """
    generator = np.random.Generator(np.random.Philox(seed))
    s = generator.standard_normal((n, d))
    t = correlation * s + np.sqrt(1 - correlation**2) * generator.standard_normal((n, d))
    return NullReading(pairing_inefficiency(matching_costs(s, t)), retrieval_at_k(pair_ranks(s, t), 1))
