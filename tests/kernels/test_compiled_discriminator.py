"""The discriminator in C against autograd in double precision, and what it refuses."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from dmdpipe.kernels.conditions import Conditions
from dmdpipe.kernels.discriminator import CompiledDiscriminator
from dmdpipe.networks.mlp import MLP

SHAPES = [(8, 2, 1, 7), (40, 3, 2, 48), (64, 64, 2, 100), (130, 17, 3, 49), (128, 16, 2, 512)]
"""Width, dimension, blocks before the head, batch."""


class Written(nn.Module):
    """The discriminator by PyTorch's own layers."""

    def __init__(self, width, dim, blocks):
        super().__init__()
        self.body = MLP(dim, SimpleNamespace(width=width, depth=blocks, embedding=6, classes=0))
        self.linear = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 1)])
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        for norm in self.norms:
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias, 0, 0.3)

    def forward(self, x, given):
        told = given.looked_up()
        h = self.body.hidden_state(told.c_in * x, told.features, len(self.body.blocks))
        for linear, norm in zip(self.linear, self.norms, strict=False):
            h = F.silu(norm(linear(h)))
        return self.linear[2](h)[:, 0]

    def compiled(self):
        layers = [self.body.noise_embedding, self.body.input, *self.body.blocks]
        named = ([(layer.weight, layer.bias) for layer in some] for some in (layers, self.linear, self.norms))
        return CompiledDiscriminator(*named)


def example(width, dim, blocks, batch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        written = Written(width, dim, blocks)
        x, signs = torch.randn(batch, dim), torch.randn(batch).sign()
        table = Conditions(torch.rand(5, 1) + 0.5, torch.rand(5, 1), torch.rand(5, 1), torch.randn(5, 6))
        rows = torch.randint(0, 5, (batch,))
    for parameter in written.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    return written, x, table.at(rows), signs


def in_double(given):
    return Conditions(*(column.double() for column in given[:4]), given.rows)


def expected(written, x, given, signs, scale):
    """Return logits and the gradients of scale·Σ softplus(s·l) at x and at every parameter, in double precision."""
    exact = copy.deepcopy(written).double()
    x = x.double().requires_grad_(True)
    logits = exact(x, in_double(given))
    loss = scale * F.softplus(signs.double() * logits).sum()
    gradients = torch.autograd.grad(loss, [x, *exact.parameters()])
    names = [name for name, _ in exact.named_parameters() if "output" not in name]
    return logits.detach(), gradients[0], dict(zip(names, gradients[1:], strict=True))


def near(found, wanted):
    assert_close(found.double(), wanted, rtol=0, atol=3e-5 * wanted.abs().max().item() + 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_the_gradient_at_the_samples(shape):
    written, x, given, signs = example(*shape)
    del written.body.output
    logits, at_x, _ = expected(written, x, given, signs, 0.3)
    found, gradient = written.compiled().gradient(x, given, signs, 0.3)
    near(found, logits)
    near(gradient, at_x)
    assert all((parameter.grad == 0.25).all() for parameter in written.parameters())


@pytest.mark.parametrize("body_learns", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_at_the_parameters_are_added_to_those_that_are_there(shape, body_learns):
    written, x, given, signs = example(*shape)
    del written.body.output
    logits, _, at_parameters = expected(written, x, given, signs, 0.3)
    near(written.compiled().learn(x, given, signs, 0.3, body_learns), logits)
    for name, parameter in written.named_parameters():
        if body_learns or not name.startswith("body"):
            near(parameter.grad - 0.25, at_parameters[name])
        else:
            assert (parameter.grad == 0.25).all()


def test_what_a_row_becomes_does_not_depend_on_the_others():
    written, x, given, signs = example(64, 3, 2, 97)
    kernel = written.compiled()
    logits, gradient = kernel.gradient(x, given, signs, 0.3)
    some = torch.arange(95, 40, -1)
    found, at = kernel.gradient(x[some], given.at(given.rows[some]), signs[some], 0.3)
    assert torch.equal(found, logits[some])
    assert torch.equal(at, gradient[some])


def test_a_row_that_is_not_a_number_touches_no_other():
    written, x, given, signs = example(16, 2, 1, 9)
    kernel = written.compiled()
    logits, gradient = kernel.gradient(x, given, signs, 1.0)
    x[4] = torch.nan
    found, at = kernel.gradient(x, given, signs, 1.0)
    others = torch.arange(9) != 4
    assert torch.equal(found[others], logits[others])
    assert torch.equal(at[others], gradient[others])
    assert found[4].isnan() and at[4].isnan().all()


def test_what_does_not_fit_is_refused():
    written, x, given, signs = example(16, 2, 1, 9)
    kernel = written.compiled()
    with pytest.raises(ValueError, match="a row of the conditions and a sign for each of 9"):
        kernel.gradient(x, given._replace(rows=None), signs, 1.0)
    with pytest.raises(ValueError, match="a sign for each of 9"):
        kernel.gradient(x, given, signs[:8], 1.0)
    with pytest.raises(ValueError, match="expected x"):
        kernel.gradient(x[:, :1], given, signs, 1.0)
    written.linear[1].weight.grad = None
    with pytest.raises(ValueError, match="no gradient"):
        kernel.learn(x, given, signs, 1.0, body_learns=False)
