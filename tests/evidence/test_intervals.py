"""Intervals cover at the rate that they state."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dmdpipe.evidence.intervals import seed_pair_interval, student_t_interval


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
