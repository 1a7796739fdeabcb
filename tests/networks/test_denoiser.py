"""EDM preconditioning: the identities that define its four coefficients, read off with planted networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dmdpipe.networks.denoiser import SIGMA_DATA, Denoiser

SIGMAS = (0.002, 0.05, 0.5, 3.0, 80.0)


class Planted(nn.Module):
    """Answers one number everywhere and remembers what it was asked."""

    def __init__(self, answer: float):
        super().__init__()
        self.answer = answer

    def forward(self, x, c_noise):
        self.x, self.c_noise = x, c_noise
        return torch.full_like(x, self.answer)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def level(sigma, rows):
    return torch.full((rows, 1), sigma, dtype=torch.float64)


def coefficients(sigma):
    """Return c_skip and c_out at one noise level, measured: D(1) with F = 0, and what F = 1 adds to it."""
    one = torch.ones(1, 1, dtype=torch.float64)
    skip = Denoiser(Planted(0.0))(one, level(sigma, 1))
    return float(skip), float(Denoiser(Planted(1.0))(one, level(sigma, 1)) - skip)


def test_the_data_are_scaled_to_what_the_preconditioning_assumes():
    from dmdpipe.specs import data

    assert SIGMA_DATA == data.SIGMA_DATA == 0.5


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_silent_network_leaves_the_linear_posterior_mean(sigma):
    """With F = 0 the denoiser is c_skip·x, the exact answer for N(0, σ_data²)."""
    x = draw(5, 3)
    assert_close(Denoiser(Planted(0.0))(x, level(sigma, 5)), x * 0.25 / (0.25 + sigma**2))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_network_sees_inputs_of_unit_variance(sigma):
    """For any x₀ of spread σ_data: two opposite points here, so that the variance is exact."""
    network = Planted(0.0)
    corners = torch.tensor([[a * 0.5 + b * sigma] for a in (1.0, -1.0) for b in (1.0, -1.0)], dtype=torch.float64)
    Denoiser(network)(corners, level(sigma, 4))
    assert network.x.var(unbiased=False).item() == pytest.approx(1, rel=1e-12)
    assert network.c_noise.flatten().tolist() == pytest.approx([math.log(sigma) / 4] * 4, rel=1e-12)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_network_is_asked_for_targets_of_unit_variance(sigma):
    """(x₀ − c_skip·(x₀ + σε))/c_out has variance 1 and, at that c_skip, the smallest c_out that allows it."""
    c_skip, c_out = coefficients(sigma)

    def spread(skip):
        return (1 - skip) ** 2 * 0.25 + skip**2 * sigma**2

    assert spread(c_skip) == pytest.approx(c_out**2, rel=1e-9)
    assert all(spread(c_skip * factor) > spread(c_skip) for factor in (0.99, 1.01))


def test_without_the_skip_the_answer_is_the_networks_alone():
    x, sigma = draw(4, 2), level(3.0, 4)
    _, c_out = coefficients(3.0)
    assert_close(Denoiser(Planted(1.0), skip=False)(x, sigma), torch.full_like(x, c_out))


def test_every_row_has_its_own_noise_level():
    denoiser, x = Denoiser(Planted(0.7)), draw(len(SIGMAS), 3)
    together = denoiser(x, torch.tensor(SIGMAS, dtype=torch.float64)[:, None])
    apart = [denoiser(row[None], level(sigma, 1)) for row, sigma in zip(x, SIGMAS, strict=True)]
    assert_close(together, torch.cat(apart))
