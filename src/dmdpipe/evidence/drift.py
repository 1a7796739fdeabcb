"""Drift: how fast ρ moves once the distribution is right, and the power law of that speed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dmdpipe.evidence.intervals import Interval, sum_interval

Array = npt.NDArray[np.float64]

FEWEST_SNAPSHOTS = 3
NOT_DETERMINED = Interval(np.nan, np.nan, np.nan)


def stretch(steps: npt.ArrayLike, within: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Return which snapshots [K] a student's drift is read from: those after it has passed the gate.

    They begin with the first snapshot from which on all are within the gate, and end with the last one. The start,
    step 0, is not among them, since nothing has trained it.

    Args:
        steps: generator steps [K], ascending.
        within: whether the distribution is within the gate at each of them, [K].
    """
    inside = np.asarray(within, dtype=bool)
    from_here_on = np.logical_and.accumulate(inside[::-1])[::-1]
    return from_here_on & (np.asarray(steps) > 0)


def drift_speed(steps: npt.ArrayLike, rho: npt.ArrayLike, within: npt.ArrayLike) -> float:
    """Return the least-squares slope of ρ per generator step over ``stretch``.

    Each of these snapshots weighs the same. NaN if they are fewer than three, or if ρ is not finite at one of them.

    Args:
        steps, within: as for ``stretch``.
        rho: [K].
    """
    chosen = stretch(steps, within)
    x, y = np.asarray(steps, dtype=float)[chosen], np.asarray(rho, dtype=float)[chosen]
    if x.size < FEWEST_SNAPSHOTS:
        return float("nan")
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred))


def power_law(x: npt.ArrayLike, speeds: npt.ArrayLike, blocks: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the exponent p of speed ∝ xᵖ, the least-squares slope of log speed on log x, and its interval over seeds.

    The slope is Σ w·log v over the P values of x, with weights that x alone decides. Values of one block share, for one
    seed, their random numbers. They are joined by seed: a seed counts if it has a speed at each of them. Blocks are
    independent, as Welch's interval takes them.

    All three are NaN, which is to say *not determined*, if any speed is not positive, if x has fewer than two values,
    and if a block has fewer than two seeds that count.

    Args:
        x: [P], positive.
        speeds: [S, P], a row a seed; NaN where a seed has no speed.
        blocks: [P], which block each value belongs to.
        confidence: of the interval.
    """
    v, logs, of_block = np.asarray(speeds, dtype=float), np.log(np.asarray(x, dtype=float)), np.asarray(blocks)
    centred = logs - logs.mean()
    spread = float(centred @ centred)
    if not spread > 0 or (v <= 0).any():
        return NOT_DETERMINED
    groups = []
    for block in np.unique(of_block):
        mine = of_block == block
        joined = np.log(v[:, mine]) @ centred[mine] / spread
        groups.append(joined[np.isfinite(joined)])
    law = sum_interval(groups, confidence)
    return law if np.isfinite(law.low) else NOT_DETERMINED
