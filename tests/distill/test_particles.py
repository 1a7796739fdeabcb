"""Particles: which rows a step moves and by how much, where they start, and which noise they know."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dmdpipe.artifacts.stages import STAGES
from dmdpipe.copying.inference_cost import inference_cost, weights
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill.batches import RandomBatches
from dmdpipe.distill.loop import Distillation, distil
from dmdpipe.distill.particles import ParticleBatches, ParticleStudent, build_particles
from dmdpipe.distill.student import build_student
from dmdpipe.errors import UserError
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.denoiser import build_network
from dmdpipe.networks.pullback import with_pullback
from dmdpipe.pairing.bank import noise_rows
from dmdpipe.seeds import derive_seed
from dmdpipe.specs.data import Moons
from dmdpipe.specs.diffusion import NoiseBankSpec, TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP, Particles
from dmdpipe.specs.student import StudentSpec

SMALL = MLP(width=8, depth=1, embedding=4)
TEACHER = TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL))
BANK = NoiseBankSpec(dim=2, n_paired=12, n_held_out=4)
PAIRED = torch.from_numpy(noise_rows(2, 12, 0, "paired"))
QUICK = {"learning_rate": 1e-2, "warmup": 0, "weight_decay": 0, "beta1": 0}


def particles_spec(count=12, batch=8, generator=QUICK, recipe=None, **fields):
    recipe = {"generator": generator, "fake_score": QUICK, **(recipe or {})}
    fields = {"generator_steps": 6, "snapshots": 6} | fields
    return StudentSpec(teacher=TEACHER, network=Particles(count=count), bank=BANK, batch=batch, recipe=recipe, **fields)


def teacher(dtype=torch.float32):
    weights = {name: value.numpy() for name, value in build_network(SMALL, 2, seed=77).state_dict().items()}
    return load_teacher(TEACHER, weights, dtype)


# One step


def real(x, sigma):
    return 0.5 * x


def fake(x, sigma):
    return 0.75 * x + 0.125 * sigma


def loop_of_known_scores(spec):
    student = ParticleStudent(PAIRED, torch.float64)
    with torch.no_grad():
        student.particles.copy_(2 * PAIRED)
    batches = ParticleBatches(spec, student)
    return student, Distillation(spec.recipe, student, real, fake, batches, None, 100)


def drawn_gradients(spec, positions, steps):
    """The rows [B] and their gradients [B, d] of each step of plain gradient descent by hand; yields, then goes on."""
    rows_stream, noise_stream = (Stream(derive_seed(spec.seed, "student", purpose)) for purpose in ("latent", "dm"))
    grid = RandomBatches(spec, 2).grid[:, 0].numpy()
    for _ in range(steps):
        rows = rows_stream.integers(0, len(positions), spec.batch).numpy()
        levels = noise_stream.integers(spec.recipe.dm_first, spec.recipe.dm_last + 1, spec.batch).numpy()
        noise = noise_stream.normal(spec.batch, 2).double().numpy()
        sigma = grid[levels][:, None]
        noisy = positions[rows] + sigma * noise
        yield rows, (0.25 * noisy + 0.125 * sigma) / (spec.batch * 2)


def test_gradient_descent_moves_the_drawn_rows_by_their_summed_gradients_and_no_other():
    generator = {**QUICK, "kind": "sgd", "learning_rate": 3.0, "clip": None}
    spec = particles_spec(dtype="float64", generator=generator, recipe={"normalise": False, "generator_every": 1})
    student, loop = loop_of_known_scores(spec)
    expected = student.particles.detach().numpy().copy()
    for step, (rows, gradients) in enumerate(drawn_gradients(spec, expected, 4)):
        before = student.particles.detach().numpy().copy()
        loop.advance(range(step, step + 1))
        after = student.particles.detach().numpy()
        untouched = np.setdiff1d(np.arange(12), rows)
        assert len(untouched) > 0 and len(set(rows)) < len(rows)  # some rows twice
        assert before[untouched].tobytes() == after[untouched].tobytes()
        assert (before[rows] != after[rows]).all()
        np.add.at(expected, rows, -3.0 * gradients)
        np.testing.assert_allclose(after, expected, rtol=1e-12)


def test_adamw_takes_the_gradient_whole_so_a_row_that_is_not_drawn_goes_on_by_its_moments():
    generator = {"learning_rate": 0.05, "warmup": 0, "weight_decay": 0.5, "beta1": 0.8, "beta2": 0.9, "clip": None}
    spec = particles_spec(dtype="float64", generator=generator, recipe={"normalise": False, "generator_every": 1})
    student, loop = loop_of_known_scores(spec)
    x = student.particles.detach().numpy().copy()
    first, second = np.zeros_like(x), np.zeros_like(x)
    carried_on = set()
    for t, (rows, gradients) in enumerate(drawn_gradients(spec, x, 5), start=1):
        gradient = np.zeros_like(x)
        np.add.at(gradient, rows, gradients)
        first = 0.8 * first + 0.2 * gradient
        second = 0.9 * second + 0.1 * gradient**2
        step = first / (1 - 0.8**t) / (np.sqrt(second / (1 - 0.9**t)) + 1e-8)
        x *= 1 - 0.05 * 0.5
        x -= 0.05 * step
        loop.advance(range(t - 1, t))
        np.testing.assert_allclose(student.particles.detach().numpy(), x, rtol=1e-9)
        carried_on |= {row for row in range(12) if row not in rows and step[row].any()}
    assert carried_on


def test_the_pullback_is_autograds():
    student = ParticleStudent(PAIRED, torch.float64)
    rows, to_answer = torch.tensor([3, 0, 3, 11]), torch.randn(4, 2, dtype=torch.float64)
    student.particles.grad = torch.full((12, 2), 7.0, dtype=torch.float64)
    answer, pullback = with_pullback(student, rows)
    assert torch.equal(answer, student.particles[rows]) and not answer.requires_grad
    pullback(to_answer)
    (expected,) = torch.autograd.grad(student(rows), student.particles, to_answer)
    assert torch.equal(student.particles.grad, expected)
    pullback(to_answer, add=True)
    assert_close(student.particles.grad, 2 * expected)


# The whole training


@pytest.mark.parametrize("recipe", ["dmd2", "fastgen"])
def test_permuted_noises_end_in_permuted_particles(monkeypatch, recipe):
    """The fake score sees samples, not who they are: with the same draws, nothing depends on the order of the set."""
    spec = particles_spec(recipe={"name": recipe})
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    straight, _ = distil(spec, teacher(), paired=PAIRED)
    draw = ParticleBatches.latent
    places = order.argsort()
    monkeypatch.setattr(ParticleBatches, "latent", lambda self, count=1: places[draw(self, count)])
    turned, _ = distil(spec, teacher(), paired=PAIRED[order])
    assert torch.equal(turned["particles"], straight["particles"][:, order])
    assert not torch.equal(straight["particles"][-1], straight["particles"][0])
    assert not torch.equal(turned["particles"], straight["particles"])


def test_every_particle_is_drawn_equally_often_and_batches_continue_their_stream():
    student = ParticleStudent(PAIRED, torch.float32)
    many, single = (ParticleBatches(particles_spec(batch=600), student) for _ in range(2))
    rows = many.latent(4)
    assert rows.dtype == torch.int64
    assert torch.equal(rows, torch.cat([single.latent() for _ in range(4)]))
    counts = rows.bincount(minlength=12)
    assert len(counts) == 12 and (counts - 200).abs().max() < 5 * (200 * 11 / 12) ** 0.5


# Start and set


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["teacher", "edm-default", "random-head"])
def test_particles_start_where_the_network_student_of_the_same_seed_does(kind, dtype):
    spec = particles_spec(count=30, init={"kind": kind}, dtype=dtype, seed=3)
    own = teacher(getattr(torch, dtype))
    snapshots, _ = distil(spec, own, paired=PAIRED)
    noise = build_particles(spec, PAIRED).noise.to(getattr(torch, dtype))
    start = snapshots["particles"][0]
    if kind == "teacher":
        assert_close(start, own(80 * noise, noise.new_full((1, 1), 80.0)))
    elif kind == "edm-default":
        assert_close(start, 0.25 / 6400.25 * 80 * noise)
    with_network = spec.model_copy(update={"network": SMALL, "bank": None})
    weights, _ = distil(with_network, own)
    network = build_student(with_network)
    network.load_state_dict({name: value[0] for name, value in weights.items() if name != "generator_step"})
    assert_close(start, network(noise).detach())


def test_the_set_is_the_banks_paired_noises_and_then_others_of_the_seed():
    few, more, other = (
        build_particles(particles_spec(count=count, seed=seed), PAIRED).noise
        for count, seed in ((12, 0), (200, 0), (200, 1))
    )
    assert torch.equal(few, PAIRED)
    assert torch.equal(more[:12], PAIRED) and torch.equal(other[:12], PAIRED)
    assert not (more[12:, None] == other[12:]).all(dim=2).any()
    assert len({row.tobytes() for row in more.numpy()}) == 200
    assert more.mean().abs() < 0.25 and abs(more.std() - 1) < 0.2


def test_the_banks_noises_must_be_those_of_the_spec():
    for wrong in (None, PAIRED[:11]):
        with pytest.raises(ValueError, match="paired noises"):
            distil(particles_spec(), teacher(), paired=wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_particles_are_found_by_their_noise_whatever_the_order(dtype):
    student = ParticleStudent(PAIRED, dtype)
    with torch.no_grad():
        student.particles.copy_(torch.arange(24).reshape(12, 2))
    order = torch.tensor([5, 0, 11, 5])
    assert torch.equal(student(PAIRED[order].to(dtype)), student.particles[order])


@pytest.mark.parametrize("off", [1e-12, 1.0])
def test_any_other_noise_is_refused_with_a_line_that_says_which(off):
    student = ParticleStudent(PAIRED, torch.float64)
    asked = PAIRED.double()
    asked[7, 1] += off
    with pytest.raises(UserError, match=r"noise 7 is none of the 12 .* the bank's paired noises"):
        student(asked)
    with pytest.raises(ValueError, match="one step"):
        student(PAIRED, [PAIRED])


def test_a_network_is_not_built_for_particles():
    with pytest.raises(ValueError, match="no network"):
        build_student(particles_spec())


# The step


def test_the_step_reads_the_bank_and_there_is_no_sample_that_could_cost_anything():
    spec = particles_spec()
    assert STAGES["student"].parents(spec)["noise"] == ("noise", BANK)
    assert "noise" not in STAGES["student"].parents(spec.model_copy(update={"network": SMALL, "bank": None}))
    assert math.isnan(inference_cost(spec)) and weights(spec.network, 2) == 0
    modules = STAGES["student"].modules(spec)
    assert {"dmdpipe.distill.particles", "dmdpipe.networks.mlp"} <= modules
