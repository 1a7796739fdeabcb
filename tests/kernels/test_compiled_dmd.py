"""DMD's gradient and fake-score steps in C, against their plain versions; what doesn't fit is refused."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from dmdpipe.diffusion.determinism import root_mean_square
from dmdpipe.diffusion.losses import edm_weight
from dmdpipe.diffusion.optimiser import FlatOptimiser, FlatParameters
from dmdpipe.distill.dmd import dm_gradient
from dmdpipe.kernels import dmd
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.denoiser import Denoiser
from dmdpipe.networks.mlp import MLP

SIGMA = torch.logspace(-2, 1.9, 30)[:, None]
FIRST, END = 3, 28
SWITCHES = [(True, 0.0, 0.0), (False, 0.0, 0.0), (True, 3.0, 0.0), (True, 0.0, 5.0)]


def network(seed: int, dim: int, width: int = 24, skip: bool = True) -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mlp = MLP(dim, SimpleNamespace(width=width, depth=2, embedding=8, classes=0))
    return Denoiser(mlp, skip)


def known(denoiser: Denoiser):
    assert denoiser.kernel
    return denoiser.kernel, denoiser.conditions(SIGMA)


def noising(seed: int = 5) -> dmd.Noising:
    return dmd.Noising(Stream(seed), SIGMA, FIRST, END)


def drawn(stream: Stream, batch: int, dim: int):
    rows = stream.integers(FIRST, END, batch)
    return rows, SIGMA[rows], stream.normal(batch, dim)


@torch.no_grad()
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize(("batch", "dim"), [(1, 1), (97, 2), (256, 16), (50, 33)])
def test_the_gradient_is_the_plain_ones_to_the_byte(batch, dim, switches):
    teacher, fake = network(1, dim), network(2, dim, width=40, skip=False)
    x = Stream(9).normal(batch, dim) * 3
    own, plain = noising(), Stream(5)
    for _ in range(2):
        found, norm = dmd.dm_gradient(x, known(teacher), known(fake), own, dmd.Normaliser(*switches), 0.125)
        rows, sigma, noise = drawn(plain, batch, dim)
        noisy = torch.addcmul(x, sigma, noise)
        given = teacher.conditions(SIGMA).at(rows)
        names = ("normalise", "normaliser_offset", "normaliser_min")
        wanted = dm_gradient(x, teacher(noisy, given), fake(noisy, given), **dict(zip(names, switches, strict=True)))
        assert torch.equal(found, wanted * 0.125)
        assert norm == float(root_mean_square(wanted))
        assert own.stream.position == plain.position


@torch.no_grad()
def test_what_is_no_number_becomes_none_and_what_is_infinite_becomes_finite():
    """0/0 where both denoisers and the sample agree, x/0 where only the fake score does not."""
    teacher, fake = network(1, 2), network(2, 2)
    for denoiser, answer in ((teacher, 1.0), (fake, 1.0)):
        denoiser.skip = False
        denoiser.kernel.skip = False
        for parameter in denoiser.network.output.parameters():
            parameter.zero_()
        denoiser.network.output.bias.fill_(answer)
    real, fake_table = teacher.conditions(SIGMA), fake.conditions(SIGMA)
    ones = torch.ones_like(SIGMA)
    tables = [table._replace(c_out=ones) for table in (real, fake_table)]
    fake.network.output.bias[1] = 2.0
    x = torch.ones(5, 2)
    told = zip((teacher.kernel, fake.kernel), tables, strict=True)
    found, _ = dmd.dm_gradient(x, *told, noising(), dmd.Normaliser(True, 0.0, 0.0), 1.0)
    largest = torch.finfo(torch.float32).max
    assert torch.equal(found, torch.tensor([[0.0, largest]]).repeat(5, 1))


@torch.no_grad()
@pytest.mark.parametrize("clip", [None, 1e-3, 10.0])
@pytest.mark.parametrize("weighted", [True, False])
def test_fake_steps_are_the_plain_ones_to_the_byte(weighted, clip):
    one, other = network(1, 3), network(1, 3)
    weight = edm_weight(SIGMA) if weighted else None
    optimisers = [FlatOptimiser(FlatParameters(net), weight_decay=0.1, clip=clip) for net in (one, other)]
    samples = Stream(9).normal(5 * 48, 3)
    rates = [0.0, 0.01, 0.02, 0.003, 0.004]
    parameters, state, flat = optimisers[0].parameters, optimisers[0].state, optimisers[0].flat()
    own, plain = noising(), Stream(5)
    for _ in range(2):
        sizes = optimisers[0].begin_steps(rates)
        loss = dmd.fake_steps(samples, known(one), own, weight, flat, sizes)
        for x, rate in zip(samples.chunk(5), rates, strict=True):
            rows, sigma, noise = drawn(plain, 48, 3)
            noisy = torch.addcmul(x, sigma, noise)
            wanted = other.kernel.denoising_loss(noisy, other.conditions(SIGMA).at(rows), x, weight)
            optimisers[1].step(rate)
        assert loss == wanted and own.stream.position == plain.position
    for name, value in optimisers[1].state.items():
        assert torch.equal(state[name], value), name
    assert torch.equal(parameters.values, optimisers[1].parameters.values)
    assert not torch.equal(parameters.values, FlatParameters(network(1, 3)).values)


@torch.no_grad()
def test_a_gradient_that_is_no_number_shows_in_all_parameters_where_there_is_a_bound():
    denoiser = network(1, 2)
    optimiser = FlatOptimiser(FlatParameters(denoiser), clip=1.0)
    samples = torch.full((4, 2), torch.nan)
    dmd.fake_steps(samples, known(denoiser), noising(), None, optimiser.flat(), optimiser.begin_steps([0.1]))
    assert optimiser.parameters.values.isnan().all()


def test_what_does_not_fit_is_refused_before_anything_is_drawn():
    teacher, fake = network(1, 2), network(2, 2)
    optimiser = FlatOptimiser(FlatParameters(fake))
    flat = optimiser.flat()
    sizes = optimiser.begin_steps([0.1, 0.1])
    x, own = torch.zeros(6, 2), noising()
    plain = dmd.Normaliser(True, 0.0, 0.0)
    short = own._replace(sigma=SIGMA[1:])
    before = copy.deepcopy(fake.state_dict())
    for call in (
        lambda: dmd.dm_gradient(torch.zeros(6, 3), known(teacher), known(fake), own, plain, 1.0),
        lambda: dmd.dm_gradient(x.double(), known(teacher), known(fake), own, plain, 1.0),
        lambda: dmd.dm_gradient(x, known(teacher), known(fake), short, plain, 1.0),
        lambda: dmd.dm_gradient(x, known(teacher), known(network(1, 3)), own, plain, 1.0),
        lambda: dmd.dm_gradient(x, known(teacher), known(fake), own._replace(end=31), plain, 1.0),
        lambda: dmd.dm_gradient(x, known(teacher), known(fake), own._replace(first=-1), plain, 1.0),
        lambda: dmd.dm_gradient(x, known(teacher), (fake.kernel, fake.conditions(SIGMA[2:])), own, plain, 1.0),
        lambda: dmd.fake_steps(x[:5], known(fake), own, None, flat, sizes),
        lambda: dmd.fake_steps(x, known(fake), own, SIGMA[1:], flat, sizes),
        lambda: dmd.fake_steps(x, known(fake), own, SIGMA.double(), flat, sizes),
        lambda: dmd.fake_steps(x, known(fake), own, None, flat._replace(first=torch.zeros(3)), sizes),
        lambda: dmd.fake_steps(x, known(fake), own._replace(first=28), None, flat, sizes),
        lambda: dmd.fake_steps(x, known(teacher), own, None, flat, sizes),
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            call()
    assert own.stream.position == 0
    assert all(torch.equal(value, before[name]) for name, value in fake.state_dict().items())
