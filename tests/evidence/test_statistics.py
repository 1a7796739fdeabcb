"""Slopes and rank correlations against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dmdpipe.evidence.statistics import mean_over_points, rank_correlation, slope_per_doubling

RNG = np.random.default_rng(3)
VALUES = RNG.standard_normal((6, 5))
OTHERS = RNG.standard_normal((6, 5))


def test_mean_is_over_points_not_seeds() -> None:
    assert mean_over_points(np.array([[1.0, 3.0], [5.0, 7.0]]), 2).tolist() == [2.0, 6.0]


def test_slope_is_polyfits() -> None:
    x = np.array([4.0, 16.0, 64.0, 64.0, 256.0])
    expected = [np.polyfit(np.log2(x), row, 1)[0] for row in VALUES]
    np.testing.assert_allclose(slope_per_doubling(VALUES, x), expected, rtol=1e-10)


def test_slope_is_per_doubling() -> None:
    slope = slope_per_doubling(np.array([[0.9, 0.7, 0.5]]), np.array([4.0, 8.0, 16.0]))
    assert slope == pytest.approx([-0.2])


def test_parts_add_up_to_the_whole() -> None:
    x, part = np.array([4.0, 16.0, 64.0, 64.0, 256.0]), np.array([True, False, True, False, False])
    slopes = [slope_per_doubling(VALUES[:, some], x, some) for some in (part, ~part)]
    np.testing.assert_allclose(sum(slopes), slope_per_doubling(VALUES, x), rtol=1e-10)
    means = [mean_over_points(VALUES[:, some], 5) for some in (part, ~part)]
    np.testing.assert_allclose(sum(means), VALUES.mean(axis=1), rtol=1e-10)
    assert mean_over_points(VALUES, 5).tolist() == VALUES.mean(axis=1).tolist()


def test_slope_over_one_abscissa_is_undefined() -> None:
    assert np.isnan(slope_per_doubling(np.array([[0.9, 0.7]]), np.array([4.0, 4.0]))).all()


@pytest.mark.parametrize("others", [OTHERS, np.round(OTHERS)], ids=["distinct", "with ties"])
def test_rank_correlation_is_spearmans(others: np.ndarray) -> None:
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(VALUES, others, strict=True)]
    np.testing.assert_allclose(rank_correlation(VALUES, others), expected, rtol=1e-10)


def test_rank_correlation_ignores_monotone_changes() -> None:
    np.testing.assert_allclose(
        rank_correlation(VALUES, OTHERS), rank_correlation(np.exp(VALUES), OTHERS**3), rtol=1e-12
    )
    np.testing.assert_allclose(rank_correlation(VALUES, np.exp(VALUES)), 1.0, rtol=1e-12)


def test_rank_correlation_with_a_constant_is_undefined() -> None:
    assert np.isnan(rank_correlation(VALUES, np.ones_like(VALUES))).all()
