"""Power in closed form agrees with simulation, with published tables and with its limits."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from dmdpipe.evidence.power import MOST_SEEDS, detectable_difference, power, seeds_needed


@pytest.mark.parametrize(("effect", "n", "level"), [(1.0, 14, 0.05 / 6), (1.5, 5, 0.05), (0.5, 10, 0.05 / 12)])
def test_power_is_the_rate_at_which_simulated_tests_decide(effect: float, n: int, level: float) -> None:
    rng = np.random.default_rng(11)
    studies = 20_000
    samples = effect + rng.standard_normal((studies, n))
    decided = np.mean(stats.ttest_1samp(samples, 0, axis=1, alternative="greater").pvalue < level)
    assert power(effect, n, 1.0, level) == pytest.approx(decided, abs=4 * np.sqrt(0.25 / studies))


# As G*Power 3.1 and R's power.t.test(type = "one.sample", alternative = "one.sided", power = 0.8) give them.
TABULATED = [(0.2, 0.05, 156), (0.5, 0.05, 27), (0.8, 0.05, 12), (0.2, 0.025, 199), (0.5, 0.025, 34), (0.8, 0.025, 15)]


@pytest.mark.parametrize(("effect", "level", "n"), TABULATED)
def test_tabulated_numbers_of_seeds(effect: float, level: float, n: int) -> None:
    assert seeds_needed(effect, 1.0, level) == n
    assert power(effect, n - 1, 1.0, level) < 0.8 <= power(effect, n, 1.0, level)


def test_without_an_effect_the_power_is_the_level() -> None:
    assert power(0.0, 7, 1.0, 0.05 / 6) == pytest.approx(0.05 / 6, rel=1e-9)
    assert power(-1.0, 7, 1.0, 0.05 / 6) < 1e-4
    assert power(50.0, 7, 1.0, 0.05 / 6) == pytest.approx(1.0)


def test_for_many_seeds_it_is_the_normal_test() -> None:
    z = stats.norm.ppf(1 - 0.05 / 6)
    n = 10_000
    assert power(0.03, n, 1.0, 0.05 / 6) == pytest.approx(stats.norm.sf(z - 0.03 * np.sqrt(n)), abs=1e-3)
    assert detectable_difference(n, 2.0, 0.05 / 6) == pytest.approx(2 * (z + stats.norm.ppf(0.8)) / 100, rel=1e-3)


@pytest.mark.parametrize("n", [2, 3, 5, 14, 1_000])
@pytest.mark.parametrize("level", [0.05, 0.05 / 6, 0.05 / 24])
@pytest.mark.parametrize("probability", [0.5, 0.8, 0.95])
def test_the_detectable_difference_is_decided_with_its_probability(n: int, level: float, probability: float) -> None:
    difference = detectable_difference(n, 0.3, level, probability)
    assert power(difference, n, 0.3, level) == pytest.approx(probability, abs=1e-5)
    assert seeds_needed(difference * 1.0001, 0.3, level, probability) == n


def test_only_the_ratio_to_the_spread_counts() -> None:
    assert seeds_needed(0.3, 0.4, 0.01) == seeds_needed(30, 40, 0.01)
    assert detectable_difference(8, 4.0, 0.01) == pytest.approx(10 * detectable_difference(8, 0.4, 0.01))


@pytest.mark.parametrize(("difference", "spread"), [(0.0, 1.0), (0.0, 0.0), (1e-4, 1.0)])
def test_what_no_number_of_seeds_decides_has_none(difference: float, spread: float) -> None:
    assert seeds_needed(difference, spread, 0.01) is None


def test_a_difference_far_beyond_the_spread_takes_two_seeds() -> None:
    assert seeds_needed(1.0, 0.0, 0.01) == seeds_needed(1.0, 1e-15, 0.01) == 2


def test_the_largest_number_is_given_and_the_next_is_not() -> None:
    least = detectable_difference(MOST_SEEDS, 1.0, 0.01)
    assert seeds_needed(least * 1.00001, 1.0, 0.01) == MOST_SEEDS
    assert seeds_needed(least * 0.99999, 1.0, 0.01) is None


# Several groups of seeds: n and spread of each


@pytest.mark.parametrize(("n", "spread"), [((10, 5), (0.16, 0.02)), ((10, 5), (0.1, 0.1)), ((14, 14), (0.3, 0.1))])
def test_power_over_groups_is_near_the_rate_at_which_welchs_tests_decide(
    n: tuple[int, int], spread: tuple[float, float]
) -> None:
    rng = np.random.default_rng(12)
    level, studies = 0.05 / 6, 20_000
    difference = detectable_difference(n, spread, level)
    assert power(difference, n, spread, level) == pytest.approx(0.8, abs=1e-5)
    a, b = (s * rng.standard_normal((studies, m)) for m, s in zip(n, spread, strict=True))
    test = stats.ttest_ind(a + difference, b, axis=1, equal_var=False, alternative="greater")
    # Welch's degrees of freedom are an approximation, so the power is one.
    assert np.mean(test.pvalue < level) == pytest.approx(0.8, abs=0.03)


def test_a_group_without_spread_changes_nothing() -> None:
    assert power(0.2, [10, 5], [0.3, 0.0], 0.01) == pytest.approx(power(0.2, 10, 0.3, 0.01), rel=1e-12)
    assert seeds_needed(1.0, [0.0, 0.0], 0.01, proportions=[10, 5]) == 2


def test_seeds_needed_grow_in_proportion_and_count_the_smallest_group() -> None:
    n = seeds_needed(0.2, [0.3, 0.1], 0.01, proportions=[10, 5])
    assert n is not None
    assert power(0.2, [2 * n - 2, n - 1], [0.3, 0.1], 0.01) < 0.8 <= power(0.2, [2 * n, n], [0.3, 0.1], 0.01)
    assert seeds_needed(0.2, [0.3, 0.1], 0.01, proportions=[4, 2]) == n
    odd = seeds_needed(0.2, [0.3, 0.1], 0.01, proportions=[5, 3])
    assert odd is not None
    assert power(0.2, [math.ceil(odd * 5 / 3), odd], [0.3, 0.1], 0.01) >= 0.8


def test_verdicts_need_no_torch() -> None:
    code = "import sys, dmdpipe.evidence.judge, dmdpipe.evidence.power; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
