"""Teachers that repeat their training data, and teachers that do not, against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest

from dmdpipe.copying.distances import TILE
from dmdpipe.copying.memorization import memorized_share, nearest_distances, nearest_ratios


def draw(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def test_ratios_by_hand() -> None:
    training = np.array([[0.0], [1.0], [5.0]])
    found = nearest_ratios(np.array([[0.0], [0.25], [0.5], [7.0]]), training)
    np.testing.assert_allclose(found, [0, 1 / 3, 1, 2 / 6], atol=1e-7)


def test_against_sorted_distances() -> None:
    """Over more points than one tile has, in every order of the tiles."""
    x, training = draw(TILE[0] + 9, 3, 0), draw(2 * TILE[1] + 1, 3, 1)
    distances = np.sort(np.linalg.norm(x[:, None] - training, axis=2), axis=1)
    np.testing.assert_allclose(nearest_ratios(x, training), distances[:, 0] / distances[:, 1], rtol=1e-6)
    np.testing.assert_allclose(nearest_distances(x, training), distances[:, 0], rtol=1e-6)


def test_a_teacher_that_repeats_training_points_reads_zero_and_fresh_samples_the_null() -> None:
    training, fresh = draw(500, 16, 0), draw(400, 16, 1)
    copied = training[:400] + 1e-3 * draw(400, 16, 2)
    assert nearest_ratios(copied, training).mean() < 0.01
    assert memorized_share(nearest_ratios(copied, training)) == 1
    null = nearest_ratios(draw(400, 16, 3), training)
    assert nearest_ratios(fresh, training).mean() == pytest.approx(null.mean(), abs=0.02)
    assert memorized_share(nearest_ratios(fresh, training)) == 0


@pytest.mark.parametrize("share", [0.25, 0.6])
def test_a_planted_share_of_copies_is_read(share: float) -> None:
    training = draw(300, 32, 0)
    samples = draw(200, 32, 1)
    copies = round(200 * share)
    samples[:copies] = training[:copies]
    assert memorized_share(nearest_ratios(samples, training)) == pytest.approx(share)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_evenly_spread_points_follow_the_closed_form(d: int) -> None:
    """P(ratio < r) = r^d, so the mean is d/(d + 1) and the share below a third 3^−d; away from the edges."""
    rng = np.random.default_rng(d)
    ratios = nearest_ratios(rng.uniform(0.3, 0.7, (3_000, d)), rng.random((20_000, d)))
    assert ratios.mean() == pytest.approx(d / (d + 1), abs=0.02)
    assert memorized_share(ratios) == pytest.approx(3.0**-d, abs=0.03)


def test_points_that_stand_twice_count_once() -> None:
    training = draw(50, 4, 0)
    x = draw(20, 4, 1)
    np.testing.assert_array_equal(nearest_ratios(x, np.tile(training, (3, 1))), nearest_ratios(x, training))


def test_one_training_point_has_no_second_nearest() -> None:
    ratios = nearest_ratios(draw(5, 2, 0), np.zeros((9, 2)))
    assert np.isnan(ratios).all()
    assert np.isnan(memorized_share(ratios))


def test_scale_and_place_do_not_count() -> None:
    x, training = draw(40, 3, 0), draw(60, 3, 1)
    np.testing.assert_allclose(nearest_ratios(7 * x + 3, 7 * training + 3), nearest_ratios(x, training), rtol=1e-5)
