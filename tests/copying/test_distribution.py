"""Distribution distances against assignment, double loops, SciPy and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import energy_distance as scipy_energy_distance

from dmdpipe.copying.distances import mean_distance, squared_distances
from dmdpipe.copying.distribution import (
    Distances,
    energy_distance,
    fixed_projections,
    gate_ratio,
    mean_distances,
    reference_floors,
    sample_set,
    sliced_w2,
)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


sizes = given(n=st.integers(1, 9), m=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
few = settings(max_examples=40, deadline=None, derandomize=True)


@few
@sizes
def test_sliced_w2_of_unequal_sets_agrees_with_an_assignment_of_repeated_points(n, m, seed):
    x, y = draw(n, 3, seed=seed), draw(m, 3, seed=seed + 1)
    directions = fixed_projections(3, 4, seed)
    squared = []
    for direction in directions:
        cost = np.subtract.outer(np.repeat(x @ direction, m), np.repeat(y @ direction, n)) ** 2
        squared.append(cost[linear_sum_assignment(cost)].mean())
    found = sliced_w2(sample_set(x, directions), sample_set(y, directions))
    assert found == pytest.approx(np.sqrt(np.mean(squared)), rel=1e-9)


@few
@sizes
def test_energy_distance_agrees_with_double_loops_and_in_1d_with_scipy(n, m, seed):
    x, y = draw(n, 3, seed=seed), draw(m, 3, seed=seed + 1) + 1
    directions = fixed_projections(3, 2, 0)
    brute = np.sqrt(2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean())
    found = energy_distance(sample_set(x, directions), sample_set(y, directions))
    assert found == pytest.approx(brute, abs=1e-6)
    line = fixed_projections(1, 2, 0)
    flat = energy_distance(sample_set(x[:, :1], line), sample_set(y[:, :1], line))
    assert flat == pytest.approx(scipy_energy_distance(x[:, 0], y[:, 0]), abs=1e-6)


def test_sliced_w2_of_a_shift_is_the_shift_along_the_projections():
    x, shift = draw(300, 5), np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    directions = fixed_projections(5, 2_000, 7)
    distance = sliced_w2(sample_set(x, directions), sample_set(x + shift, directions))
    assert distance == pytest.approx(np.sqrt(np.mean((directions @ shift) ** 2)), rel=1e-12)
    assert distance == pytest.approx(np.linalg.norm(shift) / np.sqrt(5), rel=0.05)


def test_sliced_w2_of_two_gaussians_in_1d():
    # W₂² of N(0, 1) and N(2, 3²) is 2² + (3 − 1)²
    line = fixed_projections(1, 3, 0)
    x, y = draw(4_000, 1), 2 + 3 * draw(3_000, 1, seed=1)
    assert sliced_w2(sample_set(x, line), sample_set(y, line)) == pytest.approx(np.sqrt(8), rel=0.05)


def test_the_energy_distance_of_two_points_is_closed():
    directions = fixed_projections(2, 2, 0)
    x, y = sample_set([[0.0, 0.0]], directions), sample_set([[3.0, 4.0]], directions)
    assert energy_distance(x, y) == pytest.approx(np.sqrt(10))


def test_distances_are_metrics_like_symmetric_and_zero_on_equal_sets():
    directions = fixed_projections(4, 8, 0)
    x, y = draw(50, 4), draw(60, 4, seed=1)
    a, b = sample_set(x, directions), sample_set(y, directions)
    shuffled = sample_set(x[::-1], directions)
    for distance in (sliced_w2, energy_distance):
        assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9)
        assert distance(a, shuffled) == pytest.approx(0, abs=1e-6)
        assert distance(a, b) > 0


def test_projections_are_unit_vectors_fixed_by_their_seed():
    directions = fixed_projections(16, 100, 3)
    assert directions.shape == (100, 16)
    assert np.linalg.norm(directions, axis=1) == pytest.approx(np.ones(100))
    assert np.array_equal(directions, fixed_projections(16, 100, 3))
    assert not np.array_equal(directions, fixed_projections(16, 100, 4))
    assert abs(directions.mean()) < 0.05
    assert set(np.unique(fixed_projections(1, 20, 0))) == {-1.0, 1.0}


def test_block_size_does_not_matter(monkeypatch):
    x, y = draw(70, 3), draw(31, 3, seed=1) + 1_000
    whole = squared_distances(x, y)
    assert whole == pytest.approx(cdist(x, y, "sqeuclidean"), rel=1e-9)
    monkeypatch.setattr("dmdpipe.copying.distances.TILE", (7, 11))
    assert squared_distances(x, y) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("d", [1, 2, 17, 64])
def test_mean_distance_of_many_samples_is_scipys(d):
    x, y = draw(700, d), draw(1_101, d, seed=1) + 1_000
    assert mean_distance(x, y) == pytest.approx(cdist(x, y).mean(), rel=1e-12)


def test_squared_distances_keep_their_digits_far_from_the_origin():
    x, y = (np.round(draw(20, 3, seed=seed) * 2**20) / 2**20 for seed in (0, 1))
    assert squared_distances(x + 2.0**20, y + 2.0**20) == pytest.approx(cdist(x, y, "sqeuclidean"), rel=1e-9)


def test_floors_average_over_all_pairs_of_sets():
    directions = fixed_projections(2, 8, 0)
    a, b, c = (sample_set(draw(30, 2, seed=seed), directions) for seed in range(3))
    floors = reference_floors([a, b, c])
    assert floors.sliced_w2 == pytest.approx(np.mean([sliced_w2(a, b), sliced_w2(a, c), sliced_w2(b, c)]))
    assert floors.energy == pytest.approx(
        np.mean([energy_distance(a, b), energy_distance(a, c), energy_distance(b, c)])
    )
    with pytest.raises(ValueError, match="no pairs"):
        reference_floors([a])


def test_the_gate_lets_the_teachers_own_samples_through_and_holds_a_collapsed_student():
    directions = fixed_projections(8, 64, 0)
    references = [sample_set(draw(500, 8, seed=seed), directions) for seed in range(4)]
    floors = reference_floors(references)
    faithful = sample_set(draw(500, 8, seed=10), directions)
    shrunk = sample_set(0.7 * draw(500, 8, seed=10), directions)
    collapsed = sample_set(np.zeros((500, 8)), directions)
    ratios = [
        gate_ratio(mean_distances([(student, reference) for reference in references]), floors)
        for student in (faithful, shrunk, collapsed)
    ]
    assert 0.8 < ratios[0] < 1.2
    assert 2 < ratios[1] < ratios[2]


def test_the_gate_takes_the_worse_of_the_two_distances():
    floors = Distances(sliced_w2=1.0, energy=2.0)
    assert gate_ratio(Distances(3.0, 2.0), floors) == 3
    assert gate_ratio(Distances(1.0, 5.0), floors) == 2.5
    assert gate_ratio(Distances(1.0, 1.0), Distances(0.0, 1.0)) == np.inf
