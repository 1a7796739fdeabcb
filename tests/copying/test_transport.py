"""The optimal-transport map: closed forms, and how well assignments read it."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from dmdpipe.copying.maps import MAP_CONSTANTS, exact_moments, named_maps
from dmdpipe.copying.pairing_metrics import relative_pair_error
from dmdpipe.copying.transport import assigned_maps, estimate_transport, gaussian_transport
from dmdpipe.data.rotations import haar_rotation


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def root(d: int) -> np.ndarray:
    basis = haar_rotation(d, 3)
    return basis @ np.diag(1 / np.sqrt(np.arange(1, d + 1))) @ basis.T


@pytest.mark.parametrize("d", [1, 5])
def test_between_gaussians_the_map_is_the_root_of_the_covariance(d: int) -> None:
    z = exact_moments(rng().standard_normal((50, d)))
    # Another map of the same distribution: only the moments of the samples may count.
    samples = 3 + z @ (root(d) @ haar_rotation(d, 9)).T
    np.testing.assert_allclose(gaussian_transport(samples)(z), 3 + z @ root(d), atol=1e-12)


def test_an_assignment_is_the_cheapest_of_all_orders() -> None:
    z, targets = rng(1).standard_normal((6, 2)), rng(2).standard_normal((2, 6, 2))
    for points, found in zip(targets, assigned_maps(z, targets), strict=True):
        least = min(np.square(z - points[list(order)]).sum() for order in permutations(range(6)))
        assert np.square(z - found).sum() == pytest.approx(least)
        assert sorted(found[:, 0]) == pytest.approx(sorted(points[:, 0]))


def test_on_a_line_assignments_are_sorted() -> None:
    z, targets = rng(1).standard_normal((40, 1)), rng(2).standard_normal((1, 40, 1)) ** 3
    assert (np.argsort(assigned_maps(z, targets)[0], axis=0) == np.argsort(z, axis=0)).all()


@pytest.mark.parametrize("d", [2, 16])
@pytest.mark.parametrize("correlation", [1.0, 0.6, 0.0])
def test_of_a_gaussian_the_estimate_reads_the_true_rho(d: int, correlation: float) -> None:
    """S(z) = Σ^{1/2}w with w correlated with z: ρ is 1 − correlation, in every dimension."""
    n = 250
    z, free = (exact_moments(rng(seed).standard_normal((n, d))) for seed in (1, 3))
    targets = rng(4).standard_normal((4, n, d)) @ root(d)
    estimate = estimate_transport(z, targets, rng(5))
    samples = (correlation * z + np.sqrt(1 - correlation**2) * free) @ root(d)
    assert estimate.rho(samples) == pytest.approx(1 - correlation, abs=0.15)
    # Also before the student has the distribution: a small start is no sooner near the map.
    assert estimate.rho(0.01 * samples) == pytest.approx(1, abs=0.03)
    low, high = (0.9, 1.1) if d == 2 else (0.5, 0.9)
    assert low < estimate.slope < high


def test_named_maps_tell_a_flow_over_the_gate_from_one_that_arrived() -> None:
    d, n = 3, 60
    noise = {"paired": rng(1).standard_normal((n, d)), "held_out": rng(2).standard_normal((200, d))}
    teacher = {"teacher": noise["paired"] @ root(d), "held_out": noise["held_out"] @ root(d)}
    teacher["reference"] = rng(3).standard_normal((3, n, d)) @ root(d)
    turned = noise["paired"] @ (root(d) @ haar_rotation(d, 9)).T
    maps, estimate, constants = named_maps(noise, teacher, turned, pairs=40)
    assert set(constants) == set(MAP_CONSTANTS) - {"jacobian_asymmetry_teacher"}
    assert estimate.assigned.shape == (3, 40, d)
    assert constants["transport_pairs"] == 40
    assert constants["flow_gate_ratio"] < 2
    assert constants["rho_flow_teacher"] == relative_pair_error(teacher["teacher"], turned)
    # The teacher is linear here, so that the best affine map is the teacher.
    assert relative_pair_error(maps["linear"], teacher["teacher"]) < 1e-20
    for bad in (0.1 * turned, np.full((n, d), np.nan)):
        maps, _, constants = named_maps(noise, teacher, bad, pairs=40)
        assert np.isnan(maps["flow"]).all() and np.isnan(constants["rho_flow_teacher"])
        assert constants["flow_gate_ratio"] > 2
