"""Linear baselines on maps whose answer is known."""

import numpy as np
import pytest

from dmdpipe.copying.baselines import (
    fit_affine,
    jacobian_alignment,
    match_variance,
    mean_jacobian,
    scale_ratio,
    total_variance,
)
from dmdpipe.copying.pairing_metrics import relative_pair_error


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_an_affine_teacher_is_found_exactly():
    weight, offset = draw(6, 6, seed=1), draw(6, seed=2)
    z, fresh = draw(200, 6), draw(100, 6, seed=3)
    affine = fit_affine(z, z @ weight + offset)
    assert affine.weight == pytest.approx(weight, abs=1e-12)
    assert affine.mean == pytest.approx(offset, abs=1e-12)
    assert relative_pair_error(affine(fresh), fresh @ weight + offset) < 1e-24
    matched = match_variance(affine, z, z @ weight + offset)
    assert relative_pair_error(matched(fresh), fresh @ weight + offset) < 1e-24


def test_the_fit_agrees_with_least_squares_on_a_column_of_ones():
    z, x = draw(120, 5), draw(120, 5, seed=1) ** 3
    coefficients = np.linalg.lstsq(np.column_stack([z, np.ones(120)]), x, rcond=None)[0]
    affine = fit_affine(z, x)
    assert affine.weight == pytest.approx(coefficients[:5], abs=1e-12)
    assert affine.mean == pytest.approx(coefficients[5], abs=1e-12)


def test_rho_of_the_best_affine_map_of_a_cube():
    # E[z·z³] = 3, so L = 3z; E(z³ − 3z)² = 6; E z⁶ + E L² = 15 + 9. Matched: factor √(15/9) on L.
    z, fresh = draw(200_000, 1), draw(200_000, 1, seed=1)
    affine = fit_affine(z, z**3 + 5)
    matched = match_variance(affine, z, z**3 + 5)
    factor = np.sqrt(15 / 9)
    expected = (15 + 9 * factor**2 - 2 * factor * 9) / (15 + 9 * factor**2)
    assert relative_pair_error(affine(fresh), fresh**3 + 5) == pytest.approx(6 / 24, abs=0.01)
    assert relative_pair_error(matched(fresh), fresh**3 + 5) == pytest.approx(expected, abs=0.01)


def test_variance_matching_rescales_about_the_mean():
    z, x = draw(400, 3), np.sin(3 * draw(400, 3)) + 10
    affine = fit_affine(z, x)
    matched = match_variance(affine, z, x)
    assert total_variance(affine(z)) < total_variance(x)
    assert total_variance(matched(z)) == pytest.approx(total_variance(x), rel=1e-12)
    assert matched(z).mean(axis=0) == pytest.approx(affine(z).mean(axis=0), abs=1e-12)


def test_a_constant_map_stays_constant():
    z = draw(20, 2)
    affine = fit_affine(z, np.ones((20, 2)))
    assert match_variance(affine, z, np.ones((20, 2)))(z) == pytest.approx(np.ones((20, 2)))


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="too few"):
        fit_affine(draw(11, 6), draw(11, 6, seed=1))


def test_stein_gives_the_matrix_of_a_linear_map_and_the_mean_slope_of_a_curved_one():
    z, weight = draw(200_000, 3), draw(3, 3, seed=1)
    assert mean_jacobian(z, z @ weight + 7) == pytest.approx(weight.T, abs=0.03)
    # E[cos z] = e^(−1/2)
    assert mean_jacobian(z, np.sin(z)) == pytest.approx(np.exp(-0.5) * np.eye(3), abs=0.01)


def test_alignment_of_jacobians():
    z = draw(20_000, 2)
    turned = z @ np.array([[0.0, 1.0], [-1.0, 0.0]])
    j = mean_jacobian(z, z)
    assert jacobian_alignment(j, mean_jacobian(z, 5 * z + 3)) == pytest.approx(1)
    assert jacobian_alignment(j, mean_jacobian(z, -z)) == pytest.approx(-1)
    assert jacobian_alignment(j, mean_jacobian(z, turned)) == pytest.approx(0, abs=0.03)
    assert np.isnan(jacobian_alignment(j, np.zeros((2, 2))))


def test_scale_ratio():
    t = draw(100, 3)
    assert scale_ratio(2.5 * t + 9, t) == pytest.approx(2.5)
    assert scale_ratio(np.ones((100, 3)), t) == 0
    assert np.isnan(scale_ratio(t, np.ones((100, 3))))
