"""The particle flow against closed forms: where it ends, and that it keeps what it must not touch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmdpipe.copying.maps import exact_moments
from dmdpipe.copying.pairing_metrics import relative_pair_error
from dmdpipe.data.rotations import haar_rotation
from dmdpipe.diffusion.exact import ExactDenoiser
from dmdpipe.diffusion.schedule import karras_grid
from dmdpipe.pairing.flow import gaussian_denoiser, kernel_denoiser, particle_flow
from dmdpipe.pairing.jacobians import jacobian_asymmetry, jacobians
from dmdpipe.specs.diffusion import NoiseRange

D = 6
LEVELS = karras_grid(NoiseRange(), 1000)[20:981]
BASIS = haar_rotation(D, 3)
VARIANCES = 0.25 * D / np.arange(1, D + 1) / (1 / np.arange(1, D + 1)).sum()
ROOT = BASIS @ np.diag(VARIANCES**0.5) @ BASIS.T
TEACHER = ExactDenoiser(
    {
        "exact.weights": np.ones(1),
        "exact.means": np.zeros((1, D)),
        "exact.basis": BASIS,
        "exact.variances": VARIANCES[None],
    },
    torch.float64,
)


def noise(n: int, seed: int, d: int = D) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def flow(start: np.ndarray, steps: int = 600, seed: int = 0, normalise: bool = True) -> np.ndarray:
    """Φ∘S₀ at 200 noises, from S₀(z) = start·z."""
    cloud, tracers = (torch.tensor(z @ start.T) for z in (exact_moments(noise(500, 1)), noise(200, 2)))
    generator = torch.Generator().manual_seed(seed)
    kinds = {"fake": "gaussian", "steps": steps, "normalise": normalise}
    return particle_flow(cloud, tracers, TEACHER, LEVELS, noise=generator, **kinds).numpy()


ONE_STEP = 80 * BASIS @ np.diag(VARIANCES / (VARIANCES + 80**2)) @ BASIS.T


@pytest.mark.parametrize("rotation", [np.eye(D), haar_rotation(D, 5)])
def test_the_flow_of_a_linear_start_ends_in_the_root_of_the_covariance_behind_its_own_rotation(
    rotation: np.ndarray,
) -> None:
    """From A₀Q, A₀ commuting with Σ, the expected gradient leads to Σ^{1/2}Q."""
    ends, z = flow(ONE_STEP @ rotation), noise(200, 2)
    assert relative_pair_error(ends, z @ (ROOT @ rotation).T) < 1e-3
    if rotation[0, 0] != 1:
        assert relative_pair_error(ends, z @ ROOT.T) > 0.5


def test_a_start_that_has_the_distribution_stays_where_it_is() -> None:
    start = ROOT @ haar_rotation(D, 7)
    assert relative_pair_error(flow(start, steps=50), noise(200, 2) @ start.T) < 1e-12


def test_where_scores_are_linear_the_noise_cancels() -> None:
    one, other = (flow(ONE_STEP, 50, seed, normalise=False) for seed in (0, 1))
    np.testing.assert_allclose(one, other, atol=1e-12)
    assert relative_pair_error(one, noise(200, 2) @ ONE_STEP.T) > 0.01


def test_the_kernel_is_the_posterior_mean_over_the_points_and_the_own_one() -> None:
    cloud, noisy, own = (torch.tensor(noise(n, seed, 2)) for n, seed in ((5, 1), (3, 2), (3, 3)))
    for i in range(3):
        points = torch.cat([cloud, own[i : i + 1]])
        weights = torch.exp(-(noisy[i] - points).square().sum(dim=1) / (2 * 0.7**2))
        expected = (weights[:, None] * points).sum(dim=0) / weights.sum()
        torch.testing.assert_close(kernel_denoiser(noisy, 0.7, cloud, own)[i], expected)
    torch.testing.assert_close(kernel_denoiser(noisy, 1e6, cloud)[0], cloud.mean(dim=0))


def test_kernel_and_gaussian_agree_on_a_gaussian_cloud_at_large_noise() -> None:
    cloud, noisy = torch.tensor(noise(4000, 1, 2)), 4 * torch.tensor(noise(50, 2, 2))
    kernel, gaussian = kernel_denoiser(noisy, 4.0, cloud), gaussian_denoiser(noisy, 4.0, cloud)
    assert (kernel - gaussian).abs().max() < 0.02
    sigma = torch.full((1, 1), 0.3, dtype=torch.float64)
    of_teacher = gaussian_denoiser(torch.tensor(noise(9, 4)), 0.3, torch.tensor(exact_moments(noise(99, 5)) @ ROOT.T))
    torch.testing.assert_close(of_teacher, TEACHER(torch.tensor(noise(9, 4)), sigma))


def test_the_jacobian_of_a_linear_map_is_its_matrix_and_a_rotation_has_its_own_asymmetry() -> None:
    matrix = torch.tensor(noise(4, 1, 4))
    found = jacobians(lambda z: z @ matrix.T, torch.tensor(noise(3, 2, 4)))
    torch.testing.assert_close(found, matrix.expand(3, 4, 4))
    angle = 0.4
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])[None]
    assert jacobian_asymmetry(turn) == pytest.approx(2 * np.sin(angle))
    assert jacobian_asymmetry(matrix[None] + matrix.T) == 0
    assert np.isnan(jacobian_asymmetry(torch.zeros(1, 2, 2)))


def test_a_gradient_map_is_symmetric_at_every_point_and_one_composed_with_a_rotation_is_not() -> None:
    z = torch.tensor(noise(5, 3, D))
    sigma = torch.full((1, 1), 0.5, dtype=torch.float64)
    rotation = torch.tensor(haar_rotation(D, 5))
    assert jacobian_asymmetry(jacobians(lambda x: TEACHER(x, sigma), z)) < 1e-12
    assert jacobian_asymmetry(jacobians(lambda x: TEACHER(x @ rotation.T, sigma), z)) > 0.5
