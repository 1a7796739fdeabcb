"""Rounds of DMD in C: the gradient's edges, and what doesn't fit. ``test_compiled.py`` has them beside the loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dmdpipe.diffusion.optimiser import FlatOptimiser, FlatParameters
from dmdpipe.kernels.dmd import CompiledRounds, Matching, Noising, Round
from dmdpipe.kernels.learning import Learner
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.denoiser import Denoiser
from dmdpipe.networks.mlp import MLP

SIGMA = torch.logspace(-2, 1.9, 30)[:, None]
BATCH = 6


def network(seed: int, dim: int = 2, answer: list[float] | None = None) -> Denoiser:
    """Return a denoiser with fresh weights, or one that answers the same everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = Denoiser(MLP(dim, SimpleNamespace(width=24, depth=2, embedding=8, classes=0)), skip=answer is None)
    if answer is not None:
        with torch.no_grad():
            denoiser.network.output.weight.zero_()
            denoiser.network.output.bias.copy_(torch.tensor(answer))
    return denoiser


def learner(denoiser: Denoiser, sigma: torch.Tensor, optimiser: FlatOptimiser | None = None) -> Learner:
    assert denoiser.kernel
    given = denoiser.conditions(sigma)
    if not denoiser.skip:
        given = given._replace(c_out=torch.ones_like(sigma))
    return Learner(denoiser.kernel, given, optimiser.flat() if optimiser else None)


def told(student: Denoiser, teacher: Denoiser, fake: Denoiser, clip: float | None = None, **other: Any):
    """Return what rounds are made of, by name, and the optimisers of student and fake score."""
    optimisers = [FlatOptimiser(FlatParameters(one), clip=clip) for one in (student, fake)]
    given = {
        "student": learner(student, torch.full((1, 1), 80.0), optimisers[0]),
        "teacher": learner(teacher, SIGMA),
        "fake": learner(fake, SIGMA, optimisers[1]),
        "latent": Stream(1),
        "level": 80.0,
        "at_generator": Noising(Stream(2), SIGMA, 3, 28),
        "at_fake": Noising(Stream(3), SIGMA, 0, 30),
        "matching": Matching(True, 0.0, 0.0, 1e-30),
        "weight": None,
        "batch": BATCH,
        "most": 2,
    }
    return given | other, optimisers


def go(given: dict[str, Any], optimisers: list[FlatOptimiser], fakes: int = 2, shared: bool = True):
    sizes = [optimiser.begin_steps([0.125] * count) for optimiser, count in zip(optimisers, (1, fakes), strict=True)]
    (logged,) = CompiledRounds(**given)([Round(sizes[0][0], sizes[1])], shared)
    return logged


def test_what_is_no_number_becomes_none_and_what_is_infinite_becomes_finite() -> None:
    """0/0 where both denoisers and the sample agree, 1/0 where the fake score alone does not."""
    student = network(1, answer=[1.0, 1.0])
    given, optimisers = told(student, network(2, answer=[1.0, 1.0]), network(3, answer=[1.0, 2.0]))
    logged = go(given, optimisers)
    largest = torch.finfo(torch.float32).max
    gradient = student.network.output.bias.grad
    assert gradient is not None
    assert gradient.tolist() == pytest.approx([0.0, BATCH * 1e-30 * largest])
    assert logged.dm_gradient == float("inf")
    assert logged.student_gradient > 0


def test_a_gradient_that_is_no_number_shows_in_all_parameters_where_there_is_a_bound() -> None:
    student, fake = network(1, answer=[1.0, float("nan")]), network(3)
    given, optimisers = told(student, network(2), fake, clip=1.0)
    logged = go(given, optimisers)
    assert logged.fake_loss != logged.fake_loss
    assert all(value.isnan().all() for value in fake.state_dict().values())


def test_a_round_without_a_step_of_the_fake_score_leaves_it_as_it_is() -> None:
    student, fake = network(1), network(3)
    given, optimisers = told(student, network(2), fake, matching=Matching(True, 0.0, 0.0, 1.0))
    before = [torch.cat([p.flatten() for p in one.parameters()]) for one in (student, fake)]
    go(given, optimisers, fakes=0, shared=False)
    after = [torch.cat([p.flatten() for p in one.parameters()]) for one in (student, fake)]
    assert torch.equal(before[1], after[1]) and not torch.equal(before[0], after[0])
    assert given["at_fake"].stream.position == 0 and given["at_generator"].stream.position > 0


@pytest.mark.parametrize(("fakes", "shared"), [(3, True), (3, False), (0, True)])
def test_a_round_has_room_for_so_many_steps(fakes: int, shared: bool) -> None:
    given, optimisers = told(network(1), network(2), network(3))
    with pytest.raises(ValueError, match="steps of the fake score"):
        go(given, optimisers, fakes, shared)
    assert given["latent"].position == 0


def test_what_does_not_fit_is_refused_before_anything_is_drawn() -> None:
    networks = network(1), network(2), network(3)
    given, optimisers = told(*networks)
    other, fake = network(4, dim=3), given["fake"]
    noising = given["at_fake"]
    for wrong in (
        {"teacher": learner(other, SIGMA)},
        {"teacher": learner(networks[1], SIGMA[1:])},
        {"fake": fake._replace(flat=None)},
        {"fake": fake._replace(flat=fake.flat._replace(first=torch.zeros(3)))},
        {"fake": fake._replace(flat=fake.flat._replace(second=fake.flat.second.double()))},
        {"fake": fake._replace(flat=given["student"].flat)},
        {"fake": fake._replace(flat=fake.flat._replace(gradient=fake.flat.gradient.clone()))},
        {"student": given["student"]._replace(given=networks[0].conditions(SIGMA))},
        {"student": given["student"]._replace(flat=None)},
        {"at_fake": noising._replace(sigma=SIGMA[1:])},
        {"at_fake": noising._replace(sigma=SIGMA.double())},
        {"at_fake": noising._replace(sigma=SIGMA[:, 0])},
        {"at_fake": noising._replace(first=-1)},
        {"at_generator": noising._replace(end=31)},
        {"at_generator": noising._replace(first=5, end=5)},
        {"weight": SIGMA[1:]},
        {"weight": torch.cat([SIGMA, SIGMA], dim=1)[:, :1]},
        {"batch": 0},
        {"most": -1},
        {"average": torch.zeros(3)},
        {"average": torch.zeros_like(fake.flat.values).double()},
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            CompiledRounds(**given | wrong)
    for parameter in networks[2].parameters():
        parameter.grad = None
    with pytest.raises(ValueError, match="no gradient"):
        CompiledRounds(**given)
    assert all(given[name].position == 0 for name in ("latent",))
    assert optimisers[1].state["steps"] == 0


def test_rounds_of_two_students_of_one_shape_do_not_disturb_each_other() -> None:
    """They share memory to work in, but not packed weights, which outlast a call."""

    def made(seed: int) -> tuple[CompiledRounds, list[FlatOptimiser], Denoiser]:
        student = network(seed)
        given, optimisers = told(student, network(seed + 1), network(seed + 2), matching=Matching(True, 0.0, 0.0, 1.0))
        return CompiledRounds(**given), optimisers, student

    def round_of(optimisers: list[FlatOptimiser]) -> list[Round]:
        (generator,), fakes = optimisers[0].begin_steps([0.01]), optimisers[1].begin_steps([0.02, 0.02])
        return [Round(generator, fakes)]

    def weights(student: Denoiser) -> torch.Tensor:
        return torch.cat([value.flatten() for value in student.state_dict().values()])

    expected = []
    for seed in (1, 11):
        rounds, optimisers, student = made(seed)
        before = weights(student)
        for _ in range(3):
            rounds(round_of(optimisers), True)
        expected.append(weights(student))
        assert not torch.equal(before, expected[-1])
    both = [made(seed) for seed in (1, 11)]
    for _ in range(3):
        for rounds, optimisers, _ in both:
            rounds(round_of(optimisers), True)
    assert all(torch.equal(weights(student), one) for (_, _, student), one in zip(both, expected, strict=True))
