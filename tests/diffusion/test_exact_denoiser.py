"""Exact teachers against numerical integration, Tweedie's formula, the Gaussian closed form, and the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.testing import assert_close

from dmdpipe.data.prepare import prepare
from dmdpipe.diffusion.exact import ExactDenoiser
from dmdpipe.specs.data import Gaussian, Mixture, Ring

SIGMAS = (0.02, 0.3, 2.0, 80.0)


def mixture(dim, modes, seed=0):
    """Return a mixture with unequal weights, and modes that are no spheres."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 2, modes)
    return {
        "exact.weights": weights / weights.sum(),
        "exact.means": rng.standard_normal((modes, dim)),
        "exact.basis": ortho_group.rvs(dim, random_state=seed) if dim > 1 else np.eye(1),
        "exact.variances": rng.uniform(0.02, 0.3, (modes, dim)),
    }


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def level(sigma, rows):
    return torch.full((rows, 1), sigma, dtype=torch.float64)


def noised(tensors, sigma):
    """Return the law of x₀ + σε, written with full covariance matrices."""
    basis = torch.from_numpy(tensors["exact.basis"])
    covariances = basis @ torch.diag_embed(torch.from_numpy(tensors["exact.variances"])) @ basis.T
    covariances = covariances + sigma**2 * torch.eye(len(basis), dtype=torch.float64)
    modes = MultivariateNormal(torch.from_numpy(tensors["exact.means"]), covariances)
    return MixtureSameFamily(Categorical(torch.from_numpy(tensors["exact.weights"])), modes)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("dim", [1, 2])
def test_it_is_the_posterior_mean_by_numerical_integration(dim, sigma):
    tensors = mixture(dim, modes=3)
    axis = torch.linspace(-4.5, 4.5, 4001 if dim == 1 else 501, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    log_prior = noised(tensors, 0.0).log_prob(points)
    x = 0.7 * torch.tensor([[0.2, 1.0], [-1.1, 0.4], [2.0, -1.5]], dtype=torch.float64)[:, :dim] * max(1, sigma)
    log_likelihood = -0.5 * torch.cdist(x, points) ** 2 / sigma**2
    expected = (log_prior + log_likelihood).softmax(dim=1) @ points
    assert_close(ExactDenoiser(tensors, torch.float64)(x, level(sigma, 3)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize(("dim", "modes"), [(3, 4), (8, 2)])
def test_it_obeys_tweedies_formula(dim, modes, sigma):
    """D(x, σ) = x + σ²·∇log p_σ(x), the gradient taken by autograd."""
    tensors = mixture(dim, modes)
    x = ((1 + sigma) * draw(20, dim)).requires_grad_(True)
    (score,) = torch.autograd.grad(noised(tensors, sigma).log_prob(x).sum(), x)
    expected = x.detach() + sigma**2 * score
    assert_close(ExactDenoiser(tensors, torch.float64)(x.detach(), level(sigma, 20)), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_one_mode_is_the_linear_answer(sigma):
    tensors, _ = prepare(Gaussian(dim=5, n_train=4, n_held_out=4))
    denoiser = ExactDenoiser(tensors, torch.float64)
    covariance = noised(tensors, 0.0).component_distribution.covariance_matrix[0]
    assert_close(denoiser.covariance(), covariance)
    x = draw(6, 5)
    total = covariance + sigma**2 * torch.eye(5, dtype=torch.float64)
    assert_close(denoiser(x, level(sigma, 6)), torch.linalg.solve(total, x.T).T @ covariance.T)


def test_rows_of_a_batch_have_their_own_noise_levels():
    denoiser = ExactDenoiser(mixture(4, 3), torch.float64)
    x, sigma = draw(4, 4), torch.tensor(SIGMAS, dtype=torch.float64)[:, None]
    assert_close(denoiser(x, sigma), torch.cat([denoiser(x[i : i + 1], sigma[i : i + 1]) for i in range(4)]))


@pytest.mark.parametrize("data", [Ring(n_train=20_000), Mixture(dim=8, n_train=20_000)], ids=lambda d: d.family)
@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
def test_it_belongs_to_the_prepared_data(data, sigma):
    """Its error is orthogonal to every function of the noisy sample: E[(x₀ − D)·h(x)] = 0."""
    tensors, _ = prepare(data)
    x0 = torch.from_numpy(tensors["train"]).double()
    x = x0 + sigma * draw(*x0.shape, seed=1)
    error = x0 - ExactDenoiser(tensors, torch.float64)(x, level(sigma, len(x)))
    for h in (torch.ones_like(x), x, x.roll(1, dims=1), x.tanh()):
        products = error * h
        assert (products.mean(0).abs() < 4.5 * products.std(0) / len(x) ** 0.5).all()


def test_single_precision_follows_double():
    tensors, _ = prepare(Ring(n_train=10))
    x = 80 * draw(50, 2)
    for sigma in (0.002, 1.0, 80.0):
        double = ExactDenoiser(tensors, torch.float64)(x / 80 * sigma, level(sigma, 50))
        single = ExactDenoiser(tensors, torch.float32)((x / 80 * sigma).float(), level(sigma, 50).float())
        assert_close(single.double(), double, atol=2e-4, rtol=0)
