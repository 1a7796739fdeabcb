"""The networks: reproducible weights, an MLP that is what its docstring says, and the linear generator."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from dmdpipe.diffusion.optimiser import FlatParameters
from dmdpipe.networks.denoiser import Denoiser, build_network
from dmdpipe.networks.pullback import with_pullback
from dmdpipe.specs.network import MLP, Linear


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def state(spec=None, dim=3, seed=0):
    return build_network(spec or MLP(width=8, depth=2, embedding=4), dim, seed).state_dict()


def test_weights_are_a_function_of_the_seed_alone():
    first = state()
    torch.randn(17)
    again = state()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = state(seed=1)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_building_a_network_leaves_the_global_random_stream_alone():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    state(seed=9)
    assert torch.equal(torch.randn(3), expected)


def test_the_mlp_is_the_formula_of_its_docstring():
    spec = MLP(width=8, depth=2, embedding=4)
    network = build_network(spec, 3, 0)
    w = network.state_dict()
    x, c_noise = draw(5, 3), torch.linspace(-1.5, 1.1, 5)[:, None]
    angles = torch.cat([c_noise * 1.0, c_noise * 32.0], dim=1)
    features = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)
    embedding = F.silu(features @ w["noise_embedding.weight"].T + w["noise_embedding.bias"])
    h = x @ w["input.weight"].T + w["input.bias"]
    for k in range(2):
        h = h + F.silu(h @ w[f"blocks.{k}.weight"].T + w[f"blocks.{k}.bias"] + embedding)
    assert_close(network(x, network.noise_features(c_noise)), h @ w["output.weight"].T + w["output.bias"])


def test_the_mlp_tells_noise_levels_apart():
    network = build_network(MLP(width=16, depth=1), 2, 0)
    x = torch.ones(1, 2)
    levels = torch.linspace(-1.55, 1.1, 40)
    answers = torch.cat([network(x, network.noise_features(c.reshape(1, 1))) for c in levels])
    gaps = torch.cdist(answers, answers) + torch.eye(40)
    assert gaps.min() > 1e-3


@pytest.mark.parametrize("sigma", [0.002, 1.0, 80.0])
def test_the_linear_generator_maps_scaled_noise_by_its_matrix(sigma):
    generator = build_network(Linear(), 3, 0)
    assert torch.equal(generator.matrix, torch.zeros(3, 3))
    matrix, z = draw(2, 3, 3)
    generator.load_state_dict({"matrix": matrix})
    assert_close(generator(sigma * z, torch.full((3, 1), sigma)), torch.stack([matrix @ row for row in z]))


# Pullbacks


def gradients(network):
    return [p.grad.clone() for p in network.parameters()]


@pytest.mark.parametrize("rows", [7, 1], ids=["a noise level for every row", "one noise level for all"])
@pytest.mark.parametrize("skip", [True, False])
def test_the_written_gradient_is_autograds(rows, skip):
    """Through the whole denoiser: added to what is there, and in its place."""
    network = build_network(MLP(width=8, depth=3, embedding=4), 3, 0).double()
    denoiser = Denoiser(network, skip)
    FlatParameters(denoiser)
    for seed in (1, 2):
        x, to_answer = draw(2, 7, 3).double() * seed
        sigma = (seed * draw(7, 1).double())[:rows].exp()
        answer, pullback = with_pullback(denoiser, x, sigma)
        assert not answer.requires_grad
        before = gradients(network)
        expected = torch.autograd.grad(denoiser(x, sigma), list(network.parameters()), to_answer)
        assert_close(answer, denoiser(x, sigma).detach(), rtol=1e-12, atol=1e-12)
        pullback(to_answer, add=True)
        for found, old, new in zip(gradients(network), before, expected, strict=True):
            assert new.abs().max() > 1e-3
            assert_close(found - old, new, rtol=1e-10, atol=1e-12)
        _, pullback = with_pullback(denoiser, x, sigma)
        pullback(to_answer)
        for found, new in zip(gradients(network), expected, strict=True):
            assert_close(found, new, rtol=1e-10, atol=1e-12)


def test_a_module_without_a_written_gradient_gets_autograds():
    generator = build_network(Linear(), 3, 0).double()
    x, to_answer = draw(2, 5, 3).double()
    sigma = torch.full((5, 1), 4.0, dtype=torch.float64)
    with torch.no_grad():
        for add, times in ((False, 1), (True, 2), (False, 1)):
            answer, pullback = with_pullback(generator, x, sigma)
            pullback(to_answer, add=add)
            assert not answer.requires_grad
            assert_close(generator.matrix.grad, times * to_answer.T @ (x / 4))
