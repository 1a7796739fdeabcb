"""The teacher map: closed form, order of convergence, an adaptive solver, and independence of chunks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.testing import assert_close

from dmdpipe.data.prepare import prepare
from dmdpipe.diffusion import sampler
from dmdpipe.diffusion.exact import ExactDenoiser
from dmdpipe.diffusion.sampler import probability_flow, teacher_map
from dmdpipe.networks.denoiser import Denoiser, build_network
from dmdpipe.specs.data import Gaussian, Mixture, Ring
from dmdpipe.specs.diffusion import NoiseRange
from dmdpipe.specs.network import MLP


def exact(data):
    return ExactDenoiser(prepare(data)[0], torch.float64)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian_flow(teacher, sigma_max):
    """Return U·diag(σ_max·√(λ/(λ + σ_max²)))·Uᵀ, the map of the exact flow from σ_max to 0."""
    variances, basis = torch.linalg.eigh(teacher.covariance())
    return basis @ torch.diag(sigma_max * (variances / (variances + sigma_max**2)).sqrt()) @ basis.T


@pytest.mark.parametrize("sigma_max", [2.0, 80.0])
@pytest.mark.parametrize("dim", [1, 2, 16])
def test_a_gaussian_flows_along_its_closed_form(dim, sigma_max):
    teacher, z = exact(Gaussian(dim=dim, n_train=4)), draw(200, dim)
    expected = z @ gaussian_flow(teacher, sigma_max)
    for steps, tolerance in ((64, 5e-3), (256, 3e-4)):
        found = teacher_map(teacher, z, NoiseRange(sigma_max=sigma_max), steps)
        assert ((found - expected).norm() / expected.norm()).item() < tolerance


def test_at_large_sigma_the_flow_is_the_optimal_transport_map_and_at_small_sigma_it_is_not_quite():
    """The distances that the theory states between the flow's end and Σ^{1/2}."""
    teacher = exact(Gaussian(dim=16, n_train=4))
    variances, basis = torch.linalg.eigh(teacher.covariance())
    root = basis @ torch.diag(variances.sqrt()) @ basis.T

    def gap(sigma_max):
        return ((gaussian_flow(teacher, sigma_max) - root).norm() / root.norm()).item() ** 2

    assert 1e-10 < gap(80.0) < 1e-8
    assert 1e-3 < gap(2.0) < 1e-2


@pytest.mark.parametrize("sigma_max", [2.0, 80.0])
def test_heun_is_of_second_order(sigma_max):
    """The error against a far finer grid falls to a quarter when the steps double."""
    teacher, z = exact(Gaussian(dim=4, n_train=4)), draw(100, 4)
    noise_range = NoiseRange(sigma_max=sigma_max)
    fine = probability_flow(teacher, sigma_max * z, noise_range, 1536)
    errors = [(probability_flow(teacher, sigma_max * z, noise_range, n) - fine).norm().item() for n in (48, 96, 192)]
    ratios = [coarse / finer for coarse, finer in zip(errors[:-1], errors[1:], strict=True)]
    assert ratios == pytest.approx([4, 4], abs=0.35)


@pytest.mark.parametrize("data", [Ring(n_train=4), Mixture(dim=8, n_train=4)], ids=lambda d: d.family)
def test_a_mixture_flows_where_an_adaptive_solver_takes_it(data):
    """SciPy's eighth-order solver in ln σ, to a σ so small that what is left does not count."""
    teacher, noise_range = exact(data), NoiseRange()
    z = draw(120, data.dim if data.family == "mixture" else 2)

    def slope(log_sigma, flat):
        x = torch.from_numpy(flat.reshape(z.shape))
        return (x - teacher(x, z.new_full((len(z), 1), math.exp(log_sigma)))).numpy().ravel()

    span = (math.log(noise_range.sigma_max), math.log(1e-4))
    solution = solve_ivp(slope, span, (noise_range.sigma_max * z).numpy().ravel(), "DOP853", rtol=1e-8, atol=1e-8)
    assert solution.success
    expected = solution.y[:, -1].reshape(z.shape)
    error = (teacher_map(teacher, z, noise_range, 64).numpy() - expected) / expected.std()
    assert np.sqrt((error**2).mean()) < 0.01
    finer = (teacher_map(teacher, z, noise_range, 256).numpy() - expected) / expected.std()
    assert np.sqrt((finer**2).mean()) < 0.002


def test_the_sampler_calls_the_denoiser_twice_per_step_but_once_in_the_last():
    seen = []

    def denoiser(x, sigma):
        seen.append(sigma[0].item())
        return 0 * x

    end = probability_flow(denoiser, torch.ones(3, 2), NoiseRange(), 5)
    assert len(seen) == 2 * 5 - 1 and min(seen) == pytest.approx(0.002) and max(seen) == pytest.approx(80.0)
    assert_close(end, torch.zeros(3, 2))  # D = 0 is a flow along rays, x ∝ σ, which every Runge-Kutta method hits


def test_rows_are_mapped_alike_alone_together_and_in_chunks(monkeypatch):
    network = build_network(MLP(width=16, depth=2), 4, seed=1)
    denoiser, z = Denoiser(network), draw(50, 4).float()
    together = teacher_map(denoiser, z, NoiseRange(), 12)
    apart = torch.cat([teacher_map(denoiser, rows, NoiseRange(), 12) for rows in z.split([1, 2, 30, 17])])
    assert_close(apart, together, atol=1e-6, rtol=1e-6)
    monkeypatch.setattr(sampler, "CHUNK", 7)
    assert_close(teacher_map(denoiser, z, NoiseRange(), 12), together, atol=1e-6, rtol=1e-6)


def test_in_one_step_the_sampler_gives_the_denoisers_answer_at_the_largest_level():
    denoiser, z = Denoiser(build_network(MLP(width=16, depth=2), 4, seed=1)), draw(50, 4).float()
    with torch.no_grad():
        answer = denoiser(80 * z, torch.full((50, 1), 80.0))
    assert_close(teacher_map(denoiser, z, NoiseRange(), 1), answer)


def test_more_rows_than_a_chunk_come_back_in_order():
    z = draw(sampler.CHUNK + 3, 1)
    mapped = teacher_map(exact(Gaussian(dim=1, n_train=4)), z, NoiseRange(), 4)
    assert mapped.shape == z.shape and not mapped.requires_grad
    assert torch.equal(mapped.argsort(0), z.argsort(0))  # in one dimension the flow is increasing


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(("rows", "dim", "skip"), [(1, 2, True), (97, 3, True), (200, 17, False)])
def test_the_whole_flow_in_c_is_that_of_its_denoiser_to_the_byte(rows, dim, skip, steps):
    denoiser = Denoiser(build_network(MLP(width=24, depth=2), dim, seed=1), skip)
    x = 80 * torch.randn(rows, dim, generator=torch.Generator().manual_seed(2))
    before = x.clone()
    asked = []

    def by_hand(at, sigma):
        asked.append(len(at))
        return denoiser(at, sigma)

    whole = probability_flow(denoiser, x, NoiseRange(), steps)
    assert torch.equal(whole, probability_flow(by_hand, x, NoiseRange(), steps))
    assert len(asked) == 2 * steps - 1 and torch.equal(x, before)
    asked.clear()
    # Every second row, in a tensor that is not in one piece.
    assert torch.equal(probability_flow(denoiser, x[::2], NoiseRange(), steps), whole[::2])


def test_a_flow_through_which_gradients_are_wanted_is_pytorchs():
    denoiser = Denoiser(build_network(MLP(width=8, depth=1), 2, seed=1))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    probability_flow(denoiser, x, NoiseRange(), 3).sum().backward()
    assert x.grad is not None and x.grad.abs().min() > 0


@torch.no_grad()
def test_a_flow_needs_a_level_for_each_interval():
    denoiser = Denoiser(build_network(MLP(width=8, depth=1), 2, seed=1))
    levels = denoiser.conditions(torch.tensor([[80.0], [1.0]]))
    for told, intervals in ((levels, [(0.5, 0.1)]), (levels.at(torch.tensor([0, 1])), [(0.5, 0.1)] * 2), (levels, [])):
        with pytest.raises(ValueError, match="intervals"):
            denoiser.kernel.flow(torch.zeros(3, 2), told, intervals)
