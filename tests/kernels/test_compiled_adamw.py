"""AdamW in C against the plain step and ``torch.optim.AdamW``, both in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dmdpipe.diffusion.optimiser import FlatOptimiser, FlatParameters, plain_adamw
from dmdpipe.kernels import optimiser as kernel

SIZES = [1, 7, 8, 9, 64, 1003]
NUMBERS = {"scale": 0.37, "keep": 0.98, "beta1": 0.9, "beta2": 0.99, "rate": 0.013, "epsilon": 1e-5}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state(size):
    values, gradient, first, second = draw(4, size)
    return [values.clone(), gradient.clone(), first.clone(), second.square()]


@pytest.mark.parametrize("changed", [{}, {"scale": 1.0}, {"keep": 1.0}, {"beta1": 0.0}, {"epsilon": 1.0}], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_one_step_is_the_plain_one(size, changed):
    found, exact = state(size), [tensor.double() for tensor in state(size)]
    kernel.adamw(*found, kernel.AdamWSizes(**NUMBERS | changed))
    plain_adamw(*exact, kernel.AdamWSizes(**NUMBERS | changed))
    assert torch.equal(found[1], state(size)[1])
    for one, expected in zip(found, exact, strict=True):
        assert_close(one.double(), expected, rtol=1e-6, atol=5e-7)
    for one, start in zip(found, state(size), strict=True):
        assert one is found[1] or not torch.equal(one, start)


@pytest.mark.parametrize("size", SIZES)
def test_the_norm_is_summed_in_double_precision(size):
    gradient = draw(size, seed=2) * 10.0 ** torch.linspace(-3, 3, size)
    assert kernel.norm(gradient) == pytest.approx(gradient.double().norm().item(), rel=1e-14)
    assert kernel.norm(torch.full((size,), 1e30)) == pytest.approx(1e30 * math.sqrt(size), rel=1e-6)
    gradient[-1] = math.nan
    assert math.isnan(kernel.norm(gradient))


def test_an_entry_moves_on_its_own():
    """Neither its neighbours nor its place count; what is not a number stays where it is."""
    whole = state(103)
    kernel.adamw(*whole, kernel.AdamWSizes(**NUMBERS))
    pieces = [tensor[5:97].clone() for tensor in state(103)]
    kernel.adamw(*pieces, kernel.AdamWSizes(**NUMBERS))
    assert all(torch.equal(one, other[5:97]) for one, other in zip(pieces, whole, strict=True))
    spoiled = state(103)
    spoiled[1][40] = math.nan
    kernel.adamw(*spoiled, kernel.AdamWSizes(**NUMBERS))
    others = torch.arange(103) != 40
    for one, other in zip(spoiled, whole, strict=True):
        assert torch.equal(one[others], other[others]) and torch.isnan(one[40])


@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.5, 0.99), (0.0, 0.9)])
def test_fifty_steps_in_single_precision_are_those_of_torch(beta1, beta2, weight_decay, clip):
    """The same gradients for both: what differs is what steps round."""
    module = nn.Linear(6, 7)
    flat = FlatParameters(module)
    double = nn.Parameter(flat.values.double().clone())
    optimiser = FlatOptimiser(flat, "adamw", beta1, beta2, weight_decay, clip)
    reference = torch.optim.AdamW([double], lr=1.0, betas=(beta1, beta2), weight_decay=weight_decay)
    clipped = 0
    for i in range(50):
        gradient = draw(49, seed=i) * (0.05 + 0.1 * (i % 7))
        reference.param_groups[0]["lr"] = rate = 0.02 / (1 + i % 5)
        double.grad = gradient.double()
        expected = nn.utils.clip_grad_norm_([double], clip or float("inf"))
        reference.step()
        flat.gradient.copy_(gradient)
        norm = optimiser.step(rate)
        assert type(norm) is float and norm == pytest.approx(expected.item(), rel=1e-12)
        clipped += norm > (clip or float("inf"))
        assert_close(flat.values.double(), double.detach(), rtol=0, atol=50 * 2.0**-24)
    assert clip is None or 5 < clipped < 45


@pytest.mark.parametrize("clip", [None, 2.0])
def test_a_gradient_that_is_not_a_number_shows_everywhere_if_it_is_clipped(clip):
    flat = FlatParameters(nn.Linear(3, 3))
    optimiser = FlatOptimiser(flat, clip=clip)
    flat.gradient.fill_(1.0)[4] = math.nan
    assert math.isnan(optimiser.step(0.1))
    assert int(flat.values.isnan().sum()) == (1 if clip is None else 12)
