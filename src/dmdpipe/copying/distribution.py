"""Distances between distributions, each with its floor: whether a student has converged at all.

Both distances are roots, in the units of the data, and are V-statistics: two samples of the *same*
distribution differ by a floor that shrinks with N. So N is fixed, and a distance is read as a multiple of the
floor between independent teacher sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.copying.distances import Array, as_points, mean_distance

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt


def fixed_projections(d: int, count: int, seed: int) -> Array:
    """Return ``count`` uniformly random unit vectors [count, d] from a counter-based generator (Philox)."""
    directions = np.random.Generator(np.random.Philox(seed)).standard_normal((count, d))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


@dataclass(frozen=True)
class SampleSet:
    """Samples with what their distances to any other set need: made once, compared often."""

    points: Array
    """The samples [N, d]."""
    sorted_projections: Array
    """Their projections on the fixed directions, sorted along the samples [P, N]."""
    mean_distance: float
    """mean_{ij} ‖x_i − x_j‖, the N zeros of i = j included."""


def sample_set(points: npt.ArrayLike, projections: Array) -> SampleSet:
    """Prepare samples [N, d] for comparison along projections [P, d].

    Raises:
        ValueError: if the points are not of shape [N, d].
    """
    x = as_points(points)
    return SampleSet(x, np.sort(projections @ x.T, axis=1), mean_distance(x, x))


def sliced_w2(x: SampleSet, y: SampleSet) -> float:
    """Return √(mean over projections of W₂²), with W₂ the exact distance of the projected samples; ≥ 0.

    The sets may differ in size. After Rabin et al., "Wasserstein barycenter and its application to texture
    mixing" (2011).
    """
    n, m = x.sorted_projections.shape[1], y.sorted_projections.shape[1]
    # Both quantile functions are steps. Between consecutive cuts, in units of 1/(n·m), both are constant.
    cuts = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    widths = np.diff(cuts, prepend=0) / (n * m)
    gaps = x.sorted_projections[:, (cuts - 1) // m] - y.sorted_projections[:, (cuts - 1) // n]
    return float(np.sqrt((np.square(gaps) @ widths).mean()))


def energy_distance(x: SampleSet, y: SampleSet) -> float:
    """Return √(2·E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖), as a V-statistic; ≥ 0.

    The sets may differ in size. After Székely & Rizzo, "Energy statistics: a class of statistics based on
    distances" (2013).
    """
    squared = 2 * mean_distance(x.points, y.points) - x.mean_distance - y.mean_distance
    return float(np.sqrt(max(0.0, squared)))


@dataclass(frozen=True)
class Distances:
    """The two distances that the gate looks at."""

    sliced_w2: float
    energy: float


def mean_distances(pairs: Sequence[tuple[SampleSet, SampleSet]]) -> Distances:
    """Return both distances, each averaged over pairs of sets.

    Raises:
        ValueError: if there are no pairs.
    """
    if not pairs:
        raise ValueError("no pairs of sets to compare")
    return Distances(
        sliced_w2=float(np.mean([sliced_w2(x, y) for x, y in pairs])),
        energy=float(np.mean([energy_distance(x, y) for x, y in pairs])),
    )


def reference_floors(references: Sequence[SampleSet]) -> Distances:
    """Return both distances between independent sets of one distribution, averaged over all pairs of sets.

    Raises:
        ValueError: if there are fewer than two sets.
    """
    return mean_distances(list(combinations(references, 2)))


def over_floor(distance: float, floor: float) -> float:
    """Return distance/floor; infinite if the floor is 0 (nothing to converge to)."""
    return distance / floor if floor > 0 else np.inf


def gate_ratio(distances: Distances, floors: Distances) -> float:
    """Return the larger of the two distances over their floors; converged if at most ``GATE``."""
    return max(over_floor(distances.sliced_w2, floors.sliced_w2), over_floor(distances.energy, floors.energy))
