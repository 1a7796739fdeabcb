"""The distribution-matching gradient against the published formula, and the two losses' own gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from dmdpipe.diffusion.losses import edm_weight, weighted_squared_error
from dmdpipe.distill.dmd import dm_gradient, fake_score_loss, noisy_score


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def published(x, real, fake):
    """DMD2's recipe, transcribed from its paper and its EDM branch, in NumPy and double precision."""
    x, real, fake = (tensor.double().numpy() for tensor in (x, real, fake))
    p_real, p_fake = x - real, x - fake
    other_axes = tuple(range(1, x.ndim))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (p_real - p_fake) / np.abs(p_real).mean(axis=other_axes, keepdims=True)


def published_by_fastgen(x, real, fake):
    """FastGen's weight 1/(mean|x − teacher| + 1e-6), times fake − teacher."""
    x, real, fake = (tensor.double().numpy() for tensor in (x, real, fake))
    weight = 1 / (np.abs(x - real).mean(axis=tuple(range(1, x.ndim)), keepdims=True) + 1e-6)
    return (fake - real) * weight


shapes = pytest.mark.parametrize("shape", [(7, 5), (6, 1), (4, 3, 8, 8)], ids=str)


@shapes
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_the_gradient_is_the_published_one(shape, scale):
    x, real, fake = scale * draw(3, *shape)
    np.testing.assert_allclose(dm_gradient(x, real, fake), published(x, real, fake), rtol=1e-5, atol=1e-6)


@shapes
def test_fastgens_normaliser_is_the_same_with_an_offset(shape):
    x, real, fake = 1e-5 * draw(3, *shape).double()  # so small that the offset counts
    found = dm_gradient(x, real, fake, normaliser_offset=1e-6)
    np.testing.assert_allclose(found, published_by_fastgen(x, real, fake), rtol=1e-9)
    assert not np.allclose(found, published(x, real, fake), rtol=1e-2)


@shapes
def test_it_points_from_the_teachers_answer_to_the_fake_scores(shape):
    """Descending along it moves a sample towards what the teacher, and not the student's score, makes of it."""
    x, real, fake = draw(3, *shape)
    gradient = dm_gradient(x, real, fake)
    assert ((gradient * (fake - real)).flatten(1).sum(1) > 0).all()
    assert_close(dm_gradient(x, real, fake, normalise=False), fake - real)


@shapes
def test_a_sample_is_normalised_by_itself_and_blind_to_a_common_scale(shape):
    x, real, fake = draw(3, *shape)
    gradient = dm_gradient(x, real, fake)
    assert_close(dm_gradient(9 * x, 9 * real, 9 * fake), gradient)
    x[0] += 100
    changed = dm_gradient(x, real, fake)
    assert torch.equal(changed[1:], gradient[1:])
    assert not torch.allclose(changed[0], gradient[0])


def test_what_is_no_number_becomes_zero_and_what_is_infinite_the_largest_number():
    x = torch.zeros(2, 2)
    fake = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    largest = torch.finfo(torch.float32).max
    assert torch.equal(dm_gradient(x, x, fake), torch.tensor([[0.0, 0.0], [largest, -largest]]))
    broken = torch.tensor([[float("nan"), 1.0], [1.0, 3.0]])
    assert_close(dm_gradient(x, torch.ones(2, 2), broken), torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
    # A teacher's answer that is no number spoils its own sample, not its neighbour.
    assert_close(dm_gradient(x, broken, torch.zeros(2, 2)), torch.tensor([[0.0, 0.0], [-0.5, -1.5]]))


def test_the_clamp_bounds_the_divisor_from_below_only():
    x = torch.tensor([[1e-4, 1e-4], [4.0, 2.0]])
    real, fake = torch.zeros(2, 2), torch.ones(2, 2)
    assert_close(dm_gradient(x, real, fake, normaliser_min=0.1), torch.tensor([[10.0, 10.0], [1 / 3, 1 / 3]]))
    both = dm_gradient(x, real, fake, normaliser_offset=0.4, normaliser_min=0.1)
    assert_close(both, torch.tensor([[1 / 0.4001, 1 / 0.4001], [1 / 3.4, 1 / 3.4]]))


@shapes
def test_the_published_loss_has_g_over_the_number_of_entries_as_its_gradient(shape):
    """The stop-gradient trick of the published code, written out: why the loop hands g/x.numel() to the student."""
    x, g = draw(2, *shape)
    x.requires_grad_(True)
    (0.5 * F.mse_loss(x, (x - g).detach())).backward()
    assert_close(x.grad, g / x.numel(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("weighting", "weight"), [("edm", lambda s: s**-2 + 1 / 0.5**2), ("none", lambda s: 1 + 0 * s)]
)
def test_the_fake_scores_loss_is_weighted_as_published(weighting, weight):
    denoised, x = draw(2, 6, 3)
    sigma = torch.tensor([[0.002], [0.05], [0.5], [1.0], [10.0], [80.0]])
    expected = np.mean(weight(sigma.double().numpy()) * (denoised - x).double().numpy() ** 2)
    loss, _ = fake_score_loss(denoised, x, sigma, weighting=weighting)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weighting", ["edm", "none"])
def test_the_fake_scores_gradient_is_that_of_its_loss(weighting):
    denoised, x = draw(2, 6, 3).double()
    denoised.requires_grad_(True)
    loss, gradient = fake_score_loss(denoised, x, draw(6, 1, seed=1).double().exp(), weighting=weighting)
    (expected,) = torch.autograd.grad(loss, denoised)
    assert_close(gradient.detach(), expected)


def test_the_fake_score_minimises_what_a_teacher_minimises():
    """1/σ² + 1/σ_data² is EDM's λ(σ): on the same draws the two losses are one number."""
    x, noise = draw(2, 50, 3)
    sigma = draw(50, 1, seed=1).exp()

    def denoiser(noisy, level):
        return noisy / (1 + level)

    denoised = denoiser(x + sigma * noise, sigma)
    ours, _ = fake_score_loss(denoised, x, sigma)
    teachers, _ = weighted_squared_error(denoised, x, edm_weight(sigma))
    assert_close(ours, teachers)
    assert_close(edm_weight(sigma), (sigma**2 + 0.25) / (0.5 * sigma) ** 2)


# Noise in the teacher's score


@pytest.mark.parametrize(("sigma", "spread"), [(1e-3, 1e-3), (0.5, 0.5 / 2**0.5), (80.0, 0.5)])
def test_noise_in_a_score_has_the_spread_of_what_the_network_adds(sigma, spread):
    """At small σ that of the noise which is taken away, at large σ that of the data, 0.5; between, both count alike."""
    real, noise = draw(1, 2).expand(40_000, 2), draw(40_000, 2, seed=1)
    error = noisy_score(real, torch.full((40_000, 1), sigma), noise, 0.3) - real
    assert_close(error.std(), torch.tensor(0.3 * spread), rtol=0.01, atol=1e-6)
    assert error.mean().abs() < 0.3 * spread / 40
    assert (error.sign() == noise.sign()).float().mean() > 0.99


def test_no_noise_in_a_score_leaves_it_to_the_byte():
    real = draw(9, 2)
    assert torch.equal(noisy_score(real, torch.linspace(0.01, 80, 9)[:, None], draw(9, 2, seed=1), 0.0), real)
