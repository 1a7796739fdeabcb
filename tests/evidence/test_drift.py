"""Speeds and power laws of the drift, against closed forms and planted laws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dmdpipe.evidence.drift import drift_speed, power_law, stretch

STEPS = np.array([0, 1, 4, 16, 63, 250, 1000, 2000])


def test_the_stretch_begins_where_no_later_snapshot_is_over_the_gate() -> None:
    within = [True, False, True, True, False, True, True, True]
    assert STEPS[stretch(STEPS, within)].tolist() == [250, 1000, 2000]
    assert STEPS[stretch(STEPS, [True] * 8)].tolist() == STEPS[1:].tolist()
    assert not stretch(STEPS, [*[True] * 7, False]).any()


def test_the_speed_is_that_of_a_line_whatever_came_before_the_gate() -> None:
    within = STEPS >= 16
    rho = np.where(within, 0.2 + 3e-5 * STEPS, 7.0)
    assert drift_speed(STEPS, rho, within) == pytest.approx(3e-5)
    assert drift_speed(STEPS, -rho, within) == pytest.approx(-3e-5)


def test_the_speed_is_polyfits_slope_over_the_stretch() -> None:
    rho = np.random.default_rng(0).standard_normal(8)
    expected = np.polyfit(STEPS[4:], rho[4:], 1)[0]
    assert drift_speed(STEPS, rho, STEPS > 16) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("first", [1000, 2000, 3000])
def test_no_speed_from_fewer_than_three_snapshots(first: int) -> None:
    assert np.isnan(drift_speed(STEPS, STEPS / 1000, first <= STEPS))


def test_no_speed_of_a_student_that_is_not_finite() -> None:
    assert np.isnan(drift_speed(STEPS, np.where(STEPS == 1000, np.nan, 0.1), STEPS > 16))


def test_a_planted_law_is_found_exactly_with_one_block_and_with_one_block_a_value() -> None:
    x = np.array([4.0, 16.0, 64.0])
    speeds = np.outer([1.0, 2.0, 5.0], 1e-5 * x**-1.5)
    assert power_law(x, speeds, [0, 0, 0]) == pytest.approx((-1.5, -1.5, -1.5))
    # Seeds of different blocks have nothing to do with one another: what they share does not drop out.
    mean, low, high = power_law(x, speeds, [0, 1, 2])
    assert mean == pytest.approx(-1.5)
    assert low < -1.6 and high > -1.4


def test_the_exponent_is_the_seeds_own_slopes_with_students_interval() -> None:
    rng = np.random.default_rng(1)
    x = np.array([5e-5, 1e-4, 2e-4, 4e-4])
    speeds = np.exp(rng.standard_normal((5, 4)))
    speeds[3, 2] = np.nan  # this seed does not count
    slopes = [stats.linregress(np.log(x), np.log(row)).slope for row in np.delete(speeds, 3, axis=0)]
    half = stats.t.ppf(0.975, 3) * np.std(slopes, ddof=1) / 2
    expected = (np.mean(slopes), np.mean(slopes) - half, np.mean(slopes) + half)
    assert power_law(x, speeds, np.zeros(4)) == pytest.approx(expected)


def test_the_exponent_of_two_blocks_is_welchs() -> None:
    rng = np.random.default_rng(2)
    speeds = np.exp(rng.standard_normal((6, 2)) * [0.3, 1.0])
    speeds[4:, 1] = np.nan  # four seeds in the second block, six in the first
    known = np.log(speeds) / np.log(4.0)
    expected = stats.ttest_ind(known[:4, 1], known[:, 0], equal_var=False).confidence_interval()
    law = power_law([4.0, 16.0], speeds, [4, 16])
    assert law == pytest.approx((known[:4, 1].mean() - known[:, 0].mean(), expected.low, expected.high))


@pytest.mark.parametrize("blocks", [[0, 0, 0], [0, 1, 2]])
def test_the_interval_covers_a_planted_exponent(blocks: list[int]) -> None:
    rng = np.random.default_rng(3)
    x = np.array([64.0, 256.0, 1024.0])
    covered = 0
    for _ in range(1500):
        of_seed = rng.standard_normal((5, 1 if len(set(blocks)) == 1 else 3))
        law = power_law(x, 1e-4 * x**-1.0 * np.exp(of_seed + 0.4 * rng.standard_normal((5, 3))), blocks)
        covered += law.low < -1.0 < law.high
    # Welch's degrees of freedom are estimated, which costs a little.
    assert 0.93 < covered / 1500 < 0.975


@pytest.mark.parametrize("wrong", [0.0, -1e-6])
def test_no_law_where_a_speed_is_not_positive(wrong: float) -> None:
    x, speeds = np.array([1.0, 2.0, 4.0]), np.full((4, 3), 1e-5)
    speeds[2, 1] = wrong
    assert np.isnan(power_law(x, speeds, [0, 0, 0])).all()


def test_no_law_from_one_value_or_from_one_seed() -> None:
    assert np.isnan(power_law([2.0, 2.0], np.full((4, 2), 1e-5), [0, 0])).all()
    assert np.isnan(power_law([1.0, 2.0], np.full((1, 2), 1e-5), [0, 0])).all()
    one_seed_at_the_second = np.array([[1e-5, 1e-5], [1e-5, np.nan], [1e-5, np.nan]])
    assert np.isnan(power_law([1.0, 2.0], one_seed_at_the_second, [0, 1])).all()
