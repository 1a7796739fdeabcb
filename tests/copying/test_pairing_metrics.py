"""Pairing metrics against brute force, closed forms and planted pairings."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import ortho_group

from dmdpipe.copying.pairing_metrics import (
    ASSIGNMENT_LIMIT,
    MatchingCosts,
    cosine,
    matching_costs,
    mode_agreement,
    normalised_excess_cost,
    normalised_rank,
    optimal_cost,
    pair_cost,
    pair_ranks,
    pairing_inefficiency,
    random_cost,
    relative_pair_error,
    relative_pair_error_within,
    retrieval_at_k,
    same_mode_error,
    whitening,
)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


shapes = given(n=st.integers(3, 6), d=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
few = settings(max_examples=30, deadline=None, derandomize=True)


@few
@shapes
def test_costs_agree_with_double_loops(n, d, seed):
    s, t = draw(2, n, d, seed=seed)
    between = [[sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for y in t] for x in s]
    paired = sum(between[i][i] for i in range(n)) / n
    mismatched = sum(between[i][j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    best = min(sum(between[i][p[i]] for i in range(n)) / n for p in permutations(range(n)))
    assert pair_cost(s, t) == pytest.approx(paired, rel=1e-12)
    assert random_cost(s, t) == pytest.approx(mismatched, rel=1e-12)
    assert relative_pair_error(s, t) == pytest.approx(paired / mismatched, rel=1e-12)
    assert optimal_cost(s, t) == pytest.approx(best, rel=1e-12)
    costs = matching_costs(s, t)
    assert pairing_inefficiency(costs) == pytest.approx((paired - best) / (mismatched - best), abs=1e-9)
    assert normalised_excess_cost(costs) == pytest.approx((paired - best) / best, rel=1e-9, abs=1e-9)


@few
@shapes
def test_rho_is_symmetric_and_blind_to_a_common_rotation_shift_and_scale(n, d, seed):
    s, t = draw(2, n, d, seed=seed)
    rotation = ortho_group.rvs(d, random_state=seed) if d > 1 else -np.eye(1)
    shift, scale = 100 * draw(d, seed=seed + 1), 7.0
    moved = relative_pair_error(scale * s @ rotation + shift, scale * t @ rotation + shift)
    assert moved == pytest.approx(relative_pair_error(s, t), rel=1e-9)
    assert relative_pair_error(t, s) == pytest.approx(relative_pair_error(s, t), rel=1e-12)


@few
@shapes
def test_optimal_is_never_above_paired_or_random(n, d, seed):
    costs = matching_costs(*draw(2, n, d, seed=seed))
    assert 0 <= costs.optimal <= costs.pair
    assert costs.optimal <= costs.random * (1 + 1e-12)


def test_rho_survives_a_large_common_offset():
    s, t = draw(2, 50, 3)
    # 2¹⁶ is added without rounding to numbers on a grid of 2⁻²⁰.
    s, t = (np.round(x * 2**20) / 2**20 for x in (s, t))
    moved = relative_pair_error(s + 2.0**16, t + 2.0**16)
    assert moved == pytest.approx(relative_pair_error(s, t), rel=1e-12)


def test_a_copy_reads_zero():
    t = draw(60, 5)
    costs = matching_costs(t, t)
    assert relative_pair_error(t, t) == 0
    assert pairing_inefficiency(costs) == 0
    assert cosine(t, t) == pytest.approx(1, abs=1e-12)
    ranks = pair_ranks(t, t)
    assert retrieval_at_k(ranks, 1) == 1
    assert normalised_rank(ranks) == pytest.approx(1 / 60)


@pytest.mark.parametrize("d", [2, 64])
def test_independent_samples_read_one_within_a_student_t_interval(d):
    rhos = [relative_pair_error(*draw(2, 400, d, seed=seed)) for seed in range(20)]
    half = 2.86 * np.std(rhos, ddof=1) / np.sqrt(len(rhos))  # 99 % at 19 degrees of freedom
    assert abs(np.mean(rhos) - 1) < half < 0.05


def test_anti_paired_samples_read_two():
    t = draw(2_000, 3)
    t -= t.mean(axis=0)
    # mean ‖−t − t‖² = 4·E‖t‖², against 2·E‖t‖² for unrelated samples
    assert relative_pair_error(-t, t) == pytest.approx(2, rel=2e-3)
    assert cosine(-t, t) == pytest.approx(-1, abs=1e-12)


def test_weak_correlation_c_reads_one_minus_c():
    s, e = draw(2, 4_000, 32)
    t = 0.3 * s + np.sqrt(1 - 0.3**2) * e
    assert relative_pair_error(s, t) == pytest.approx(0.7, abs=0.01)


def test_monotone_maps_of_the_line_are_optimally_paired_whatever_rho_says():
    z = draw(200, 1)
    costs = matching_costs(z, 3 * z)
    assert pairing_inefficiency(costs) == 0
    assert costs.pair / costs.random == pytest.approx(0.4, abs=0.02)  # (3 − 1)² / (3² + 1²)


def test_metrics_are_in_double_precision_for_single_precision_input():
    s, t = draw(2, 40, 4).astype(np.float32)
    expected = relative_pair_error(s.astype(np.float64), t.astype(np.float64))
    assert relative_pair_error(s, t) == expected


def test_undefined_ratios_are_nan_without_warnings():
    t = draw(10, 2)
    assert np.isnan(relative_pair_error(np.ones((4, 2)), np.ones((4, 2))))
    assert np.isnan(pairing_inefficiency(matching_costs(np.full((10, 2), 0.1), t)))
    assert np.isnan(normalised_excess_cost(matching_costs(t[::-1], t)))


def test_delta_e_of_many_pairs_uses_the_first_ones(monkeypatch):
    monkeypatch.setattr("dmdpipe.copying.pairing_metrics.ASSIGNMENT_LIMIT", 30)
    s, t = draw(2, 50, 2)
    assert matching_costs(s, t) == matching_costs(s[:30], t[:30])
    assert ASSIGNMENT_LIMIT >= 4_000


@pytest.mark.parametrize(
    ("first", "second"),
    [((3, 2), (4, 2)), ((3, 2), (3, 1)), ((1, 2), (1, 2)), ((3,), (3,)), ((0, 2), (0, 2))],
)
def test_unpaired_arrays_are_refused(first, second):
    with pytest.raises(ValueError, match="expected"):
        relative_pair_error(np.ones(first), np.ones(second))


@few
@shapes
def test_ranks_agree_with_sorting(n, d, seed):
    s, t = draw(2, n, d, seed=seed)
    brute = []
    for i in range(n):
        by_distance = sorted(range(n), key=lambda j: np.linalg.norm(s[i] - t[j]))  # noqa: B023
        brute.append(by_distance.index(i) + 1)
    ranks = pair_ranks(s, t)
    assert ranks.tolist() == brute
    for k in (1, 2, n):
        assert retrieval_at_k(ranks, k) == sum(rank <= k for rank in brute) / n
    assert normalised_rank(ranks) == pytest.approx(sum(brute) / n**2)


@pytest.mark.parametrize("d", [1, 2, 17, 64])
def test_ranks_of_many_pairs_agree_with_all_distances(d):
    s, t = draw(2, 1_101, d)
    all_distances = cdist(s, t, "sqeuclidean")
    assert np.array_equal(pair_ranks(s, t), 1 + (all_distances < np.diag(all_distances)[:, None]).sum(axis=1))


def test_a_teacher_of_one_point_is_not_retrieved():
    ranks = pair_ranks(draw(11, 2), np.ones((11, 2)))
    assert retrieval_at_k(ranks, 1) == 0
    assert normalised_rank(ranks) == pytest.approx(6 / 11)


def test_cosine_agrees_with_a_loop_and_ignores_each_maps_offset():
    s, t = draw(2, 30, 4)
    a, b = s - s.mean(0), t - t.mean(0)
    brute = np.mean([x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for x, y in zip(a, b, strict=True)])
    assert cosine(s, t) == pytest.approx(brute, abs=1e-14)
    assert cosine(s + 3, t - 5) == pytest.approx(brute, abs=1e-12)


def test_cosine_of_a_sample_on_its_mean_counts_as_zero():
    s = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert cosine(s, s) == pytest.approx(2 / 3)


def test_whitening_gives_unit_variances_in_the_smallest_sufficient_rank():
    spread = np.array([3.0, 2.0, 1.0, 0.1, 0.0])  # variances 9, 4, 1, .01, 0: shares .642, .928, .9993
    samples = draw(200, 5)
    samples = np.linalg.qr(samples - samples.mean(axis=0))[0] * np.sqrt(200) * spread
    rotation = ortho_group.rvs(5, random_state=0)
    for variance, rank in ((0.5, 1), (0.9, 2), (0.99, 3), (0.9999, 4), (1.0, 4)):
        axes = whitening(samples @ rotation + 4, variance)
        assert axes.shape == (5, rank)
        white = samples @ rotation @ axes
        assert np.cov(white.T, bias=True).reshape(rank, rank) == pytest.approx(np.eye(rank), abs=1e-9)


def test_whitened_cosine_sees_a_lost_fine_direction_that_the_raw_one_misses():
    t = draw(4_000, 2) * [100.0, 1.0]
    s = np.stack([t[:, 0], np.random.default_rng(1).permutation(t[:, 1])], axis=1)
    axes = whitening(draw(4_000, 2, seed=2) * [100.0, 1.0], 1.0)
    assert cosine(s, t) > 0.98
    assert cosine(s @ axes, t @ axes) == pytest.approx(0.5, abs=0.05)


def test_whitening_refuses_constant_samples():
    with pytest.raises(ValueError, match="do not vary"):
        whitening(np.ones((5, 2)), 0.99)


@few
@given(n=st.integers(2, 40), k=st.integers(2, 5), seed=st.integers(0, 2**32 - 1))
def test_mode_agreement_agrees_with_a_contingency_table(n, k, seed):
    modes, (s, t) = draw(k, 2, seed=seed), draw(2, n, 2, seed=seed + 1)
    table = np.zeros((k, k))
    for a, b in zip(s, t, strict=True):
        nearest = [min(range(k), key=lambda m: np.linalg.norm(x - modes[m])) for x in (a, b)]  # noqa: B023
        table[tuple(nearest)] += 1 / n
    chance = table.sum(axis=0) @ table.sum(axis=1)
    expected = (np.trace(table) - chance) / (1 - chance) if chance < 1 - 1e-12 else np.nan
    assert mode_agreement(s, t, modes) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_mode_agreement_at_its_ends():
    modes = np.array([[0.0, 0.0], [10.0, 0.0]])
    t = modes[np.arange(1_000) % 2] + 0.1 * draw(1_000, 2)
    assert mode_agreement(t + 0.5, t, modes) == 1
    assert mode_agreement(np.roll(t, 1, axis=0), t, modes) == pytest.approx(-1)
    assert abs(mode_agreement(np.random.default_rng(0).permutation(t), t, modes)) < 0.1
    assert np.isnan(mode_agreement(modes[[0, 0]], modes[[0, 0]], modes))


def test_the_named_costs_enter_delta_e_as_documented():
    costs = MatchingCosts(pair=3.0, random=5.0, optimal=1.0)
    assert pairing_inefficiency(costs) == 0.5
    assert normalised_excess_cost(costs) == 2.0


MODES = np.array([[-5.0, 0.0], [5.0, 0.0], [0.0, 90.0]])


def blobs(n=600, seed=0):
    """Samples around two of three centres, unequal in number, one alone at the third; and their modes."""
    rng = np.random.default_rng(seed)
    mode = np.append(np.sort(rng.integers(0, 3, n - 1) // 2), 2)
    return MODES[mode] + rng.standard_normal((n, 2)), mode


def test_rho_within_modes_is_rho_of_every_mode_and_tells_a_copy_from_a_copy_of_the_mode():
    t, mode = blobs()
    rng = np.random.default_rng(1)
    same_mode = t.copy()
    for one in (0, 1):
        rows = np.flatnonzero(mode == one)
        same_mode[rows] = t[rng.permutation(rows)]
    assert relative_pair_error_within(t, t, MODES) == 0
    assert relative_pair_error_within(same_mode, t, MODES) == pytest.approx(1, abs=0.05)
    assert relative_pair_error_within(rng.permutation(t), t, MODES) == pytest.approx(1, abs=0.05)
    # ρ itself takes the copied mode for copying, and same_mode_error says for how much of it.
    assert relative_pair_error(same_mode, t) == pytest.approx(same_mode_error(t, MODES), rel=0.1)
    assert same_mode_error(t, MODES) < 0.2


def test_rho_within_modes_by_counting():
    t, mode = blobs(30)
    s = t + np.random.default_rng(2).standard_normal(t.shape)
    rows = range(len(t) - 1)
    pair = np.mean([((s[i] - t[i]) ** 2).sum() for i in rows])
    mismatched = [[((s[i] - t[j]) ** 2).sum() for j in rows if j != i and mode[j] == mode[i]] for i in rows]
    expected = pair / np.mean([np.mean(of_one) for of_one in mismatched])
    assert relative_pair_error_within(s, t, MODES) == pytest.approx(expected)
    assert relative_pair_error_within(s, t, MODES[:1]) == pytest.approx(relative_pair_error(s, t))
    assert same_mode_error(t, MODES[:1]) == pytest.approx(1)
    assert np.isnan(relative_pair_error_within(MODES, MODES, MODES)) and np.isnan(same_mode_error(MODES, MODES))
