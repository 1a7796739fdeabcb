"""How nearly two maps of the same noise agree: s_i = S(z_i) against t_i = T(z_i).

Everywhere, ``student`` and ``teacher`` are paired samples [N, d], N ≥ 2: row i of both comes from the noise
z_i. Any two maps of the same noise may stand in for them. Arithmetic is in float64 whatever the input's type.
A quantity that is 0/0 for the given samples (all points equal, say) is NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dmdpipe.copying.distances import (
    Array,
    as_pairs,
    as_points,
    centred,
    squared_distance_tiles,
    squared_distances,
)
from dmdpipe.kernels.assignment import optimal_assignment
from dmdpipe.kernels.distances import count_within

if TYPE_CHECKING:
    import numpy.typing as npt

ASSIGNMENT_LIMIT = 4_096  # rows; the assignment needs N² memory and about N³ time
UNDEFINED_BELOW = 1e-12  # a difference of costs below this share of C_rand is rounding, not signal


def pair_cost(student: npt.ArrayLike, teacher: npt.ArrayLike) -> float:
    """Return C_pair = mean_i ‖s_i − t_i‖²; ≥ 0, in squared units of the data.

    Raises:
        ValueError: if the arrays are not two of one shape [N, d], N ≥ 2 (so all functions of this module).
    """
    s, t = as_pairs(student, teacher)
    return float(np.square(s - t).sum() / len(s))


def random_cost(student: npt.ArrayLike, teacher: npt.ArrayLike) -> float:
    """Return C_rand = mean_{i≠j} ‖s_i − t_j‖²; ≥ 0, in squared units of the data.

    Exact and in O(N·d): Σ_{ij} ‖s_i − t_j‖² = N·(Σ‖s_i‖² + Σ‖t_j‖²) − 2·⟨Σs_i, Σt_j⟩, less the diagonal.
    """
    s, t = as_pairs(student, teacher)
    n = len(s)
    centre = (s.mean(axis=0) + t.mean(axis=0)) / 2  # so that a common offset cannot eat the digits
    s, t = s - centre, t - centre
    every_pair = n * (np.square(s).sum() + np.square(t).sum()) - 2 * (s.sum(axis=0) @ t.sum(axis=0))
    return max(0.0, float((every_pair - np.square(s - t).sum()) / (n * (n - 1))))


def relative_pair_error(student: npt.ArrayLike, teacher: npt.ArrayLike) -> float:
    """Return ρ = C_pair / C_rand, the primary copying metric: 0 a copy, 1 independent, above 1 anti-paired.

    Symmetric, and unchanged by a rotation, shift or scaling applied to both maps. NaN if C_rand = 0.
    """
    random = random_cost(student, teacher)
    return pair_cost(student, teacher) / random if random > 0 else np.nan


class MatchingCosts(NamedTuple):
    """Mean squared distance between paired, mismatched (i ≠ j) and optimally matched samples."""

    pair: float
    random: float
    optimal: float


def optimal_cost(student: npt.ArrayLike, teacher: npt.ArrayLike, prices: Array | None = None) -> float:
    """Return C_OT = min over permutations π of mean_i ‖s_i − t_π(i)‖², by exact linear assignment.

    Takes O(N²) memory and about O(N³) time; less with the ``prices`` [N] that the matching of similar samples left
    (``dmdpipe.kernels.assignment``), which decide nothing.
    """
    s, t = as_pairs(student, teacher)
    # The teacher's samples on the rows: a young student's lie close together, and then this way round is the faster
    # one by up to fifty times.
    order = optimal_assignment(squared_distances(t, s), prices)
    # The matrix has rounding errors of the points' size; the cost of the permutation that it names need not.
    return pair_cost(s[order], t)


def matching_costs(student: npt.ArrayLike, teacher: npt.ArrayLike, prices: Array | None = None) -> MatchingCosts:
    """Return C_pair, C_rand and C_OT, over the first ``ASSIGNMENT_LIMIT`` pairs if there are more.

    ``prices`` as for ``optimal_cost``, of so many pairs.
    """
    s, t = as_pairs(student, teacher)
    s, t = s[:ASSIGNMENT_LIMIT], t[:ASSIGNMENT_LIMIT]
    return MatchingCosts(pair_cost(s, t), random_cost(s, t), optimal_cost(s, t, prices))


def pairing_inefficiency(costs: MatchingCosts) -> float:
    """Return ΔE = (C_pair − C_OT)/(C_rand − C_OT): 0 as good as the optimal matching, 1 independent.

    A *reconstruction*: the formula of the scale-invariant Pairing Inefficiency in arXiv 2606.02237 is not
    public. At a constant weak correlation of S and T it falls as d grows, so read it beside its
    dimension-matched null (``dmdpipe.copying.nulls``). NaN if C_rand = C_OT, as for a collapsed student.
    """
    span = costs.random - costs.optimal
    return (costs.pair - costs.optimal) / span if span > UNDEFINED_BELOW * costs.random else np.nan


def normalised_excess_cost(costs: MatchingCosts) -> float:
    """Return (C_pair − C_OT)/C_OT: 0 as good as the optimal matching, unbounded above.

    After the normalised path energy of OT-CFM (arXiv 2302.00482). NaN if C_OT = 0 (T's samples, reordered).
    """
    if costs.optimal <= UNDEFINED_BELOW * costs.random:
        return np.nan
    return (costs.pair - costs.optimal) / costs.optimal


def cosine(student: npt.ArrayLike, teacher: npt.ArrayLike) -> float:
    """Return the mean over i of the cosine between s_i − s̄ and t_i − t̄; −1…1, 1 a copy, 0 independent.

    Each map is centred on its own mean: a student that is off by a constant vector has the same pairing. A
    sample that lies on its mean has no direction and counts as 0.
    """
    s, t = as_pairs(student, teacher)
    s, t = s - s.mean(axis=0), t - t.mean(axis=0)
    inner = np.einsum("nd,nd->n", s, t)
    norms = np.sqrt(np.einsum("nd,nd->n", s, s) * np.einsum("nd,nd->n", t, t))
    return float(np.divide(inner, norms, out=np.zeros_like(inner), where=norms > 0).mean())


def whitening(samples: npt.ArrayLike, variance: float) -> Array:
    """Return the matrix W [d, r] of principal axes over their standard deviations: x·W has unit variances.

    Multiply both maps' samples by W before ``cosine``; otherwise the directions of large variance (low
    frequencies of an image) decide it alone.

    Args:
        samples: [M, d], to fit on; not the samples to be compared.
        variance: share of the total variance to keep, in (0, 1]; r is the smallest rank that holds it.

    Raises:
        ValueError: if the samples do not vary.
    """
    points = as_points(samples)
    points = points - points.mean(axis=0)
    eigenvalues, axes = np.linalg.eigh(points.T @ points / len(points))
    eigenvalues, axes = eigenvalues[::-1], axes[:, ::-1]
    if not eigenvalues[0] > 0:
        raise ValueError("cannot whiten samples that do not vary")
    resolved = eigenvalues > eigenvalues[0] * len(eigenvalues) * np.finfo(np.float64).eps
    held = np.cumsum(eigenvalues[resolved])
    # The last cumulative sum is the total, up to rounding: variance = 1 must not ask for more.
    rank = min(int(np.searchsorted(held, variance * held[-1] * (1 - UNDEFINED_BELOW))) + 1, len(held))
    return axes[:, :rank] / np.sqrt(eigenvalues[:rank])


def pair_ranks(student: npt.ArrayLike, teacher: npt.ArrayLike) -> Array:
    """Return, for every i, the rank [N] of t_i among all t_j by distance from s_i: 1 nearest … N farthest.

    Ties get their middle rank, so teacher samples that coincide do not count as found.
    """
    s, t = as_pairs(student, teacher)
    own = np.square(s - t).sum(axis=1)
    # What the distances to t_i and to a sample that coincides with it may differ by, as they are computed.
    s, t = centred(s, t)
    rounding = (s.shape[1] + 8) * np.finfo(np.float64).eps * (np.square(s).sum(axis=1) + np.square(t).sum(axis=1))
    nearer, not_farther = count_within(s, t, own - rounding, own + rounding)
    # Among 1 + nearer … not_farther, the middle.
    return (1 + nearer + not_farther) / 2


def retrieval_at_k(ranks: npt.ArrayLike, k: int) -> float:
    """Return the share of i with t_i among the k nearest teacher samples of s_i; 0…1, k/N by chance.

    Rises with d at a constant weak correlation of S and T: read it beside its dimension-matched null.

    Args:
        ranks: as ``pair_ranks`` returns them [N].
        k: at least 1.
    """
    return float(np.mean(np.asarray(ranks) <= k))


def normalised_rank(ranks: npt.ArrayLike) -> float:
    """Return the mean rank over N: 1/N where every t_i is the nearest, (N + 1)/2N by chance, 1 at worst.

    Args:
        ranks: as ``pair_ranks`` returns them [N].
    """
    return float(np.mean(np.asarray(ranks)) / np.size(ranks))


def nearest_mode(points: npt.ArrayLike, modes: npt.ArrayLike) -> npt.NDArray[np.intp]:
    """Return the index [N] of the mode [k, d] nearest to each point [N, d]; the first of equals."""
    a = as_points(points)
    smallest, index = np.full(len(a), np.inf), np.zeros(len(a), dtype=np.intp)
    for rows, columns, tile in squared_distance_tiles(a, modes):
        found = tile.argmin(axis=1)
        distance = tile[np.arange(len(tile)), found]
        nearer = distance < smallest[rows]
        index[rows] = np.where(nearer, columns.start + found, index[rows])
        smallest[rows] = np.minimum(distance, smallest[rows])
    return index


def mode_agreement(student: npt.ArrayLike, teacher: npt.ArrayLike, modes: npt.ArrayLike) -> float:
    """Return κ = (P(m(s) = m(t)) − Σ p_s·p_t)/(1 − Σ p_s·p_t), m the nearest mode: 1 the same mode, 0 chance.

    Cohen's κ (1960): p_s and p_t are the two maps' own mode frequencies. At least −1; NaN if both maps put
    every sample into one and the same mode.

    Args:
        student: paired samples [N, d].
        teacher: paired samples [N, d].
        modes: known mode centres [k, d].
    """
    s, t = as_pairs(student, teacher)
    centres = as_points(modes)
    m_s, m_t = nearest_mode(s, centres), nearest_mode(t, centres)
    p_s, p_t = (np.bincount(m, minlength=len(centres)) / len(s) for m in (m_s, m_t))
    chance = float(p_s @ p_t)
    return (float(np.mean(m_s == m_t)) - chance) / (1 - chance) if chance < 1 else np.nan


def relative_pair_error_within(student: npt.ArrayLike, teacher: npt.ArrayLike, modes: npt.ArrayLike) -> float:
    """Return ρ within modes: C_pair over the mean of ‖s_i − t_j‖² over those j ≠ i whose t_j has the mode of t_i.

    0: a copy. 1: the pairing is no better than one shuffled within the teacher's modes, however well student and
    teacher agree in the mode. Each row counts alike; rows that are alone in their mode are left out. NaN if all are.

    Args:
        student: paired samples [N, d].
        teacher: paired samples [N, d].
        modes: known centres [k, d]; a sample's mode is the nearest one.
    """
    return pair_error_within_groups(student, teacher, nearest_mode(teacher, as_points(modes)))


def same_mode_error(teacher: npt.ArrayLike, modes: npt.ArrayLike) -> float:
    """Return what ρ reads of a student that has the teacher's mode and nothing else: T shuffled within its modes.

    NaN if no mode has two of the samples [N, d], or all samples are equal.
    """
    return same_group_error(teacher, nearest_mode(teacher, as_points(modes)))


def pair_error_within_groups(student: npt.ArrayLike, teacher: npt.ArrayLike, groups: npt.ArrayLike) -> float:
    """Return ``relative_pair_error_within`` for any grouping of the rows [N], such as their classes."""
    pair, random = _costs_within(student, teacher, groups)
    return pair / random if random > 0 else np.nan


def same_group_error(teacher: npt.ArrayLike, groups: npt.ArrayLike) -> float:
    """Return ``same_mode_error`` for any grouping of the rows [N]."""
    random = random_cost(teacher, teacher)
    return _costs_within(teacher, teacher, groups)[1] / random if random > 0 else np.nan


def _costs_within(student: npt.ArrayLike, teacher: npt.ArrayLike, groups: npt.ArrayLike) -> tuple[float, float]:
    """Return the mean paired and the mean mismatched cost of rows, mismatched within a row's group [N]."""
    s, t = as_pairs(student, teacher)
    group = np.asarray(groups)
    members = [rows for rows in (np.flatnonzero(group == one) for one in np.unique(group)) if len(rows) > 1]
    if not members:
        return np.nan, np.nan
    shares = np.array([len(rows) for rows in members]) / sum(map(len, members))
    pair = [pair_cost(s[rows], t[rows]) for rows in members]
    random = [random_cost(s[rows], t[rows]) for rows in members]
    return float(shares @ pair), float(shares @ random)
