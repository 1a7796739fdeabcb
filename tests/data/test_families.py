"""The synthetic families against the closed forms of their definitions, in raw units."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import kstest, norm

from dmdpipe.data import checkerboard, gaussian, mixture, moons, ring, swiss_roll
from dmdpipe.data.raw import GaussianMixture
from dmdpipe.data.rotations import random_rotation
from dmdpipe.specs.data import Checkerboard, Gaussian, Mixture, Moons, Ring, SwissRoll

N = 40_000


def rng():
    return np.random.Generator(np.random.Philox(key=2))


KNOWN = [
    (ring, Ring(n_train=N)),
    (ring, Ring(n_train=N, modes=1, spread=0.3)),
    (gaussian, Gaussian(n_train=N, dim=6)),
    (gaussian, Gaussian(n_train=N, dim=6, rotated=False)),
    (gaussian, Gaussian(n_train=N, dim=6, spectrum="isotropic")),
    (gaussian, Gaussian(n_train=N, dim=1)),
    (mixture, Mixture(n_train=N, dim=12, modes=5)),
]


@pytest.mark.parametrize(("family", "spec"), KNOWN)
def test_the_exact_distribution_has_the_moments_of_the_samples(family, spec):
    raw = family.draw(spec, rng())
    exact = raw.exact
    mean = exact.weights @ exact.means
    covariances = np.einsum("ia,ka,ja->kij", exact.basis, exact.variances, exact.basis)
    centred = exact.means - mean
    covariance = np.einsum("k,kij->ij", exact.weights, covariances) + (exact.weights * centred.T) @ centred
    standard_error = np.sqrt(covariance.diagonal().max() / N)
    assert_allclose(raw.train.mean(axis=0), mean, atol=5 * standard_error)
    scale = covariance.diagonal().max()
    assert_allclose(np.cov(raw.train.T).reshape(covariance.shape), covariance, atol=5 * scale * np.sqrt(2 / N))
    assert_allclose(exact.mean(), mean, atol=1e-15)
    assert_allclose(exact.mean_variance(), covariance.trace() / len(mean), rtol=1e-12)


@pytest.mark.parametrize(("family", "spec"), KNOWN)
def test_samples_follow_the_exact_density_along_a_random_direction(family, spec):
    """Kolmogorov–Smirnov of a projection against the projected mixture: sees shapes, not only moments."""
    raw = family.draw(spec, rng())
    direction = np.random.default_rng(0).standard_normal(raw.train.shape[1])
    direction /= np.linalg.norm(direction)
    centres = raw.exact.means @ direction
    deviations = np.sqrt(raw.exact.variances @ (direction @ raw.exact.basis) ** 2)
    result = kstest(
        raw.held_out @ direction,
        lambda x: norm.cdf((x[:, None] - centres) / deviations) @ raw.exact.weights,
    )
    assert result.pvalue > 1e-3


def test_modes_with_unequal_weights_and_variances_are_sampled_as_such():
    truth = GaussianMixture(
        weights=np.array([0.2, 0.8]),
        means=np.array([[-50.0, 0.0], [50.0, 0.0]]),
        basis=random_rotation(2, np.random.default_rng(3)),
        variances=np.array([[1.0, 4.0], [9.0, 0.25]]),
    )
    samples = truth.sample(N, rng())
    is_left = samples[:, 0] < 0
    assert_allclose(is_left.mean(), 0.2, atol=5 * np.sqrt(0.16 / N))
    for mode, chosen in enumerate((is_left, ~is_left)):
        along = (samples[chosen] - truth.means[mode]) @ truth.basis
        assert_allclose(along.var(axis=0), truth.variances[mode], rtol=0.1)
        assert abs(np.corrcoef(along.T)[0, 1]) < 0.05


def test_scaling_a_mixture_scales_its_samples():
    truth = mixture.draw(Mixture(dim=3, modes=2), rng()).exact
    shift, factor = np.array([1.0, -2.0, 3.0]), 0.25
    expected = (truth.sample(100, rng()) - shift) * factor
    assert_allclose(truth.scaled(shift, factor).sample(100, rng()), expected, atol=1e-12)


def test_ring_modes_lie_on_the_unit_circle_evenly():
    raw = ring.draw(Ring(modes=6, n_train=10), rng())
    assert_allclose(np.hypot(*raw.modes.T), 1)
    neighbours = np.linalg.norm(raw.modes - np.roll(raw.modes, 1, axis=0), axis=1)
    assert_allclose(neighbours, 2 * np.sin(np.pi / 6))
    assert np.array_equal(raw.modes, raw.exact.means)


def test_one_mode_is_no_known_mode():
    assert ring.draw(Ring(modes=1, n_train=10), rng()).modes is None
    assert gaussian.draw(Gaussian(n_train=10), rng()).modes is None


def test_gaussian_eigenvalues():
    raw = gaussian.draw(Gaussian(dim=5, n_train=10), rng())
    covariance = raw.exact.basis @ np.diag(raw.exact.variances[0]) @ raw.exact.basis.T
    assert_allclose(np.linalg.eigvalsh(covariance)[::-1], 1 / np.arange(1, 6))
    assert np.abs(covariance - np.diag(covariance.diagonal())).max() > 0.01


def test_mixture_centres_are_separation_apart_in_units_of_a_mode():
    raw = mixture.draw(Mixture(dim=2000, modes=6, separation=9, n_train=10, n_held_out=10), rng())
    assert np.array_equal(raw.exact.variances, np.ones((6, 2000)))
    assert_allclose(np.linalg.norm(raw.modes, axis=1), 9 / np.sqrt(2))
    gaps = np.linalg.norm(raw.modes[:, None] - raw.modes, axis=2)[np.triu_indices(6, 1)]
    assert_allclose(gaps, 9, rtol=0.05)


def test_moons_lie_on_two_half_circles():
    points = moons.draw(Moons(n_train=N, noise=1e-9), rng()).train
    upper = points[np.abs(np.hypot(*points.T) - 1) < 1e-6]
    lower = points[np.abs(np.hypot(points[:, 0] - 1, points[:, 1] - 0.5) - 1) < 1e-6]
    assert_allclose(len(upper) / N, 0.5, atol=5 * 0.5 / np.sqrt(N))
    assert len(np.unique(np.concatenate([upper, lower]), axis=0)) == N
    assert upper[:, 1].min() > -1e-6 and lower[:, 1].max() < 0.5 + 1e-6
    assert kstest(np.arctan2(upper[:, 1], upper[:, 0]) / np.pi, "uniform").pvalue > 1e-3
    assert kstest(np.arctan2(0.5 - lower[:, 1], 1 - lower[:, 0]) / np.pi, "uniform").pvalue > 1e-3


def test_moons_noise_has_the_stated_spread():
    quiet, loud = (moons.draw(Moons(n_train=N, noise=noise), rng()).train for noise in (1e-9, 0.2))
    assert_allclose((loud - quiet).std(axis=0), 0.2, rtol=0.02)


@pytest.mark.parametrize("cells", [2, 3, 4])
def test_checkerboard_fills_the_dark_squares_only(cells):
    raw = checkerboard.draw(Checkerboard(n_train=N, cells=cells), rng())
    squares = np.floor(raw.train).astype(int)
    assert ((squares >= 0) & (squares < cells)).all()
    assert (squares.sum(axis=1) % 2 == 0).all()
    _, counts = np.unique(squares, axis=0, return_counts=True)
    assert len(counts) == len(raw.modes) == (cells**2 + 1) // 2
    assert_allclose(counts / N, 1 / len(counts), atol=5 * np.sqrt(1 / len(counts) / N))
    for within in (raw.train - squares).T:
        assert kstest(within, "uniform").pvalue > 1e-3


def test_checkerboard_modes_tell_the_square():
    raw = checkerboard.draw(Checkerboard(n_train=2000), rng())
    nearest = raw.modes[np.linalg.norm(raw.train[:, None] - raw.modes, axis=2).argmin(axis=1)]
    assert np.array_equal(nearest - 0.5, np.floor(raw.train))


def test_swiss_roll_is_a_spiral_of_one_and_a_half_turns_that_ends_at_radius_1():
    points = swiss_roll.draw(SwissRoll(n_train=N, noise=1e-9), rng()).train
    radius = np.hypot(*points.T)
    assert_allclose([radius.min(), radius.max()], [1 / 3, 1], atol=1e-3)
    angle = radius * 4.5 * np.pi
    assert_allclose(points, radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1), atol=1e-6)
    assert kstest((radius - 1 / 3) * 1.5, "uniform").pvalue > 1e-3


def test_swiss_roll_noise_has_the_stated_spread():
    quiet, loud = (swiss_roll.draw(SwissRoll(n_train=N, noise=noise), rng()).train for noise in (1e-9, 0.1))
    assert_allclose((loud - quiet).std(axis=0), 0.1, rtol=0.02)


@pytest.mark.parametrize("dim", [1, 2, 3, 40])
def test_rotations_are_orthogonal_and_proper(dim):
    generator = np.random.default_rng(dim)
    for _ in range(10):
        rotation = random_rotation(dim, generator)
        assert_allclose(rotation @ rotation.T, np.eye(dim), atol=1e-13)
        assert_allclose(np.linalg.det(rotation), 1)


def test_rotations_are_uniform():
    """In the plane the angle is uniform; in space the image of every axis is uniform on the sphere, hence its
    coordinates are uniform on −1…1 (Archimedes), and the trace has mean 0."""
    generator = np.random.default_rng(5)
    plane = np.array([random_rotation(2, generator) for _ in range(2000)])
    turns = np.arctan2(plane[:, 1, 0], plane[:, 0, 0]) / (2 * np.pi) + 0.5
    assert kstest(turns, "uniform").pvalue > 1e-3
    space = np.array([random_rotation(3, generator) for _ in range(2000)])
    for i in range(3):
        for j in range(3):
            assert kstest((space[:, i, j] + 1) / 2, "uniform").pvalue > 1e-3
    assert abs(np.trace(space, axis1=1, axis2=2).mean()) < 5 / np.sqrt(2000)
