"""Intervals cover at the rate that they state."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from dmdpipe.evidence.intervals import error_of_sum, seed_pair_interval, student_t_interval, sum_interval


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_student_t_covers_at_its_rate(n: int, confidence: float) -> None:
    rng = np.random.default_rng(1)
    studies = 3.0 + 0.2 * rng.standard_normal((4_000, n))
    intervals = [student_t_interval(values, confidence) for values in studies]
    covered = np.mean([interval.low <= 3.0 <= interval.high for interval in intervals])
    assert covered == pytest.approx(confidence, abs=0.02 if confidence == 0.95 else 0.006)


def test_student_t_agrees_with_scipy_stats() -> None:
    values = [0.1, 0.4, 0.35, 0.2]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    interval = student_t_interval(values, 0.9)
    assert interval.mean == pytest.approx(0.2625)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_without_two_values_there_are_no_bounds() -> None:
    assert student_t_interval([0.5]).mean == 0.5
    assert np.isnan(student_t_interval([0.5])[1:]).all()
    assert np.isnan(student_t_interval([])).all()


def test_a_missing_value_is_not_skipped() -> None:
    assert np.isnan(student_t_interval([0.5, np.nan, 0.6])).all()


def pairs_of(matrix: np.ndarray) -> dict[tuple[int, int], float]:
    return {(a, b): float(matrix[a, b]) for a in range(len(matrix)) for b in range(a + 1, len(matrix))}


def test_the_interval_over_pairs_is_student_t_where_pairs_are_sums_of_their_seeds() -> None:
    seeds = np.array([0.3, 0.1, 0.7, 0.4])
    interval = seed_pair_interval(pairs_of((seeds[:, None] + seeds) / 2))
    assert tuple(interval) == pytest.approx(tuple(student_t_interval(seeds)), rel=1e-12)


def test_the_interval_over_pairs_covers_at_least_at_its_rate() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(1_500):
        seeds, noise = rng.standard_normal(5), rng.standard_normal((5, 5))
        interval = seed_pair_interval(pairs_of(1.0 + seeds[:, None] + seeds + 0.5 * noise))
        covered += interval.low <= 1.0 <= interval.high
    assert covered / 1_500 > 0.95 - 0.015


def test_two_seeds_are_one_pair_without_bounds() -> None:
    interval = seed_pair_interval({(0, 1): 0.9})
    assert interval.mean == 0.9
    assert np.isnan(interval[1:]).all()


# Sums of independent means


@pytest.mark.parametrize(("n", "spread"), [((10, 5), (0.16, 0.02)), ((5, 10), (1.0, 0.3)), ((3, 4), (0.1, 5.0))])
def test_two_groups_are_welchs_t_test(n: tuple[int, int], spread: tuple[float, float]) -> None:
    rng = np.random.default_rng(3)
    a, b = (s * rng.standard_normal(m) for m, s in zip(n, spread, strict=True))
    expected = stats.ttest_ind(a, b, equal_var=False)
    error = error_of_sum([a.std(ddof=1), b.std(ddof=1)], n)
    assert error.degrees_of_freedom == pytest.approx(expected.df, rel=1e-12)
    assert error.standard_error == pytest.approx((a.mean() - b.mean()) / expected.statistic, rel=1e-12)
    bounds = expected.confidence_interval(0.9)
    assert sum_interval([a, -b], 0.9) == pytest.approx((a.mean() - b.mean(), bounds.low, bounds.high), rel=1e-12)


@pytest.mark.parametrize("n", range(2, 60))
def test_one_group_is_student_t_to_the_last_bit(n: int) -> None:
    """As computed before there were groups. Also where 1/(1/(n − 1)) is not n − 1, as for n = 50."""
    x = np.random.default_rng(n).lognormal(size=n)
    half = float(special.stdtrit(n - 1, 0.5 + 0.99 / 2)) * (float(x.std(ddof=1)) / np.sqrt(n))
    mean = float(x.mean())
    assert tuple(sum_interval([x], 0.99)) == tuple(student_t_interval(x, 0.99)) == (mean, mean - half, mean + half)
    assert error_of_sum(x.std(ddof=1), n) == (x.std(ddof=1) / np.sqrt(n), n - 1)


def test_groups_without_spread_divide_nothing_by_zero() -> None:
    with np.errstate(all="raise"):
        assert error_of_sum([0.0, 0.3], [4, 9]) == pytest.approx((0.1, 8))
        assert error_of_sum([0.0, 0.0], [4, 9]) == (0.0, 3.0)
        assert sum_interval([[1.0, 1.0, 1.0], [0.5, 0.5]]) == (1.5, 1.5, 1.5)


def test_a_group_without_numbers_leaves_the_sum_open() -> None:
    assert np.isnan(sum_interval([])).all()
    assert np.isnan(sum_interval([[0.1, 0.2], []])).all()
    alone = sum_interval([[0.1, 0.2], [0.3]])
    assert alone.mean == pytest.approx(0.45) and np.isnan(alone[1:]).all()
    assert np.isnan(sum_interval([[0.1, 0.2], [0.3, np.nan]])).all()


@pytest.mark.parametrize("n", [(10, 5), (5, 10)])
@pytest.mark.parametrize("level", [0.05 / 6, 0.05 / 12])
def test_unequal_groups_decide_wrongly_no_more_often_than_said(n: tuple[int, int], level: float) -> None:
    rng = np.random.default_rng(4)
    studies = 10_000
    a, b = (s * rng.standard_normal((studies, m)) for m, s in zip(n, (0.16, 0.02), strict=True))
    bounds = np.array([sum_interval(groups, 1 - 2 * level)[1:] for groups in zip(a, b, strict=True)])
    most = level + 3 * np.sqrt(level / studies)
    for wrong in (np.mean(bounds[:, 0] > 0), np.mean(bounds[:, 1] < 0)):
        assert level / 2 < wrong < most
