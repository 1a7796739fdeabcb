"""The Karras grid: its formula, its ends, its order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmdpipe.diffusion.schedule import karras_grid, sampling_grid
from dmdpipe.specs.diffusion import NoiseRange


@pytest.mark.parametrize(
    ("noise_range", "size"), [(NoiseRange(), 1000), (NoiseRange(sigma_min=0.01, sigma_max=8.0, rho=3.0), 18)]
)
def test_the_grid_is_karras_formula_in_ascending_order(noise_range, size):
    # As published the formula runs down from σ_max; DMD2 flips it.
    i = np.arange(size)
    high, low, rho = noise_range.sigma_max, noise_range.sigma_min, noise_range.rho
    published = (high ** (1 / rho) + i / (size - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    grid = karras_grid(noise_range, size)
    assert grid.dtype == torch.float64
    np.testing.assert_allclose(grid.numpy(), published[::-1], rtol=1e-12)
    assert grid[0].item() == pytest.approx(low, rel=1e-12) and grid[-1].item() == pytest.approx(high, rel=1e-12)
    assert (grid.diff() > 0).all()


def test_a_third_of_the_default_indices_lie_above_ten():
    assert (karras_grid(NoiseRange(), 1000) > 10).double().mean().item() == pytest.approx(0.33, abs=0.01)


def test_the_sampler_descends_from_the_largest_level_to_zero():
    grid = sampling_grid(NoiseRange(), 8)
    assert len(grid) == 9
    assert (grid.diff() < 0).all()
    assert torch.equal(grid[:-1].flip(0), karras_grid(NoiseRange(), 8)) and grid[-1] == 0
    assert torch.equal(sampling_grid(NoiseRange(), 1), torch.tensor([80.0, 0.0], dtype=torch.float64))
