"""The flat optimiser against ``torch.optim``, step by step, and the views that tie it to its network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dmdpipe.diffusion.optimiser import FlatOptimiser, FlatParameters


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 2)).double()


def loss(net, i):
    """Return a loss that changes with every step; its gradient's norm crosses the clip both ways."""
    source = torch.Generator().manual_seed(i)
    x, y = torch.randn(6, 3, generator=source).double(), torch.randn(6, 2, generator=source).double()
    return (1 + i % 7) * ((net(x) - y) ** 2).mean()


def reference_optimiser(net, kind, beta1, beta2, weight_decay):
    if kind == "adamw":
        return torch.optim.AdamW(net.parameters(), lr=1.0, betas=(beta1, beta2), weight_decay=weight_decay)
    return torch.optim.SGD(net.parameters(), lr=1.0, momentum=beta1, weight_decay=weight_decay)


@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize(("kind", "beta1", "beta2"), [("adamw", 0.9, 0.999), ("adamw", 0.5, 0.99), ("sgd", 0.9, 0.0)])
def test_fifty_steps_are_those_of_torch(kind, beta1, beta2, weight_decay, clip):
    ours, theirs = network(), network()
    optimiser = FlatOptimiser(FlatParameters(ours), kind, beta1, beta2, weight_decay, clip)
    reference = reference_optimiser(theirs, kind, beta1, beta2, weight_decay)
    clipped = 0
    for i in range(50):
        rate = 0.02 / (1 + i % 5)
        reference.param_groups[0]["lr"] = rate
        reference.zero_grad()
        loss(theirs, i).backward()
        expected_norm = nn.utils.clip_grad_norm_(theirs.parameters(), clip or float("inf"))
        reference.step()
        ours.zero_grad(set_to_none=False)
        loss(ours, i).backward()
        norm = optimiser.step(rate)
        assert norm == pytest.approx(expected_norm.item(), rel=1e-6, abs=0)
        clipped += norm > (clip or float("inf"))
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert_close(mine, other, rtol=1e-6, atol=1e-9)
    assert clip is None or 5 < clipped < 45


def test_plain_gradient_descent_has_no_memory():
    net = network()
    optimiser = FlatOptimiser(FlatParameters(net), "sgd", beta1=0.0)
    for i in range(3):
        before = optimiser.parameters.values.clone()
        gradients = torch.autograd.grad(loss(net, i), list(net.parameters()))
        net.zero_grad(set_to_none=False)
        loss(net, i).backward()
        optimiser.step(0.1)
        expected = before - 0.1 * torch.cat([g.flatten() for g in gradients])
        assert_close(optimiser.parameters.values, expected)


def test_a_rate_of_zero_changes_nothing():
    net = network()
    optimiser = FlatOptimiser(FlatParameters(net), weight_decay=0.5)
    before = optimiser.parameters.values.clone()
    loss(net, 0).backward()
    optimiser.step(0.0)
    assert torch.equal(optimiser.parameters.values, before)


def is_view(net, flat):
    size = flat.numel() * flat.element_size()
    return all(0 <= p.data_ptr() - flat.data_ptr() < size for p in net.parameters())


def test_flattening_keeps_the_weights_and_their_order():
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    flat = FlatParameters(net)
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    assert torch.equal(flat.values, torch.cat([b.flatten() for b in before]))


def test_parameters_stay_views_after_loading_and_after_steps():
    net = network()
    optimiser = FlatOptimiser(FlatParameters(net))
    values = optimiser.parameters.values
    state = {name: torch.full_like(p, k) for k, (name, p) in enumerate(net.state_dict().items())}
    net.load_state_dict(state)
    assert is_view(net, values)
    assert torch.equal(values, torch.cat([p.flatten() for p in state.values()]))
    loss(net, 0).backward()
    optimiser.step(0.1)
    assert is_view(net, values)
    assert not torch.equal(values, torch.cat([p.flatten() for p in state.values()]))
    values.zero_()
    assert torch.equal(net(torch.ones(1, 3).double()), torch.zeros(1, 2).double())


def test_a_copy_of_the_network_keeps_its_own_weights():
    net = network()
    optimiser = FlatOptimiser(FlatParameters(net))
    twin = copy.deepcopy(net)
    before = [p.detach().clone() for p in twin.parameters()]
    loss(net, 0).backward()
    optimiser.step(0.1)
    assert all(torch.equal(p, b) for p, b in zip(twin.parameters(), before, strict=True))
