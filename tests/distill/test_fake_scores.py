"""Fake scores other than the usual one: made of samples, lagging behind, or with fresh weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dmdpipe.data.prepare import prepare
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill.batches import RandomBatches
from dmdpipe.distill.fake_score import LaggedScore, SampledScore, fresh_fake
from dmdpipe.distill.loop import HISTORY, distil
from dmdpipe.distill.oracle import LinearOracle
from dmdpipe.distill.student import build_student
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.denoiser import build_network
from dmdpipe.seeds import derive_seed
from dmdpipe.specs.data import Gaussian, Moons
from dmdpipe.specs.diffusion import TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP
from dmdpipe.specs.student import StudentSpec

SMALL = MLP(width=8, depth=1, embedding=4)
TRAINED = TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL))
EXACT = TeacherSpec(data=Gaussian(dim=2, n_train=4, n_held_out=1), score={"kind": "exact"})
QUICK = {"learning_rate": 1e-2, "warmup": 0}
CPU = torch.device("cpu")


def student_spec(**recipe):
    recipe = {"generator": QUICK, "fake_score": QUICK, **recipe}
    return StudentSpec(teacher=TRAINED, network=SMALL, batch=8, generator_steps=6, snapshots=6, recipe=recipe)


def trained(spec):
    tensors = {name: value.numpy() for name, value in build_network(SMALL, 2, seed=77).state_dict().items()}
    snapshots, history = distil(spec, load_teacher(spec.teacher, tensors))
    return snapshots, history[:, HISTORY.index("dm_gradient")]


# Samples


def sampled(n, matrix):
    spec = StudentSpec(teacher=TRAINED, network=SMALL, dtype="float64", recipe={"fake": "samples", "fake_samples": n})
    return SampledScore(spec, lambda z: z @ matrix.T, RandomBatches(spec, 2))


def test_the_score_of_samples_is_the_posterior_mean_over_them():
    matrix, n = torch.tensor([[0.5, 0.1], [0.0, 0.3]], dtype=torch.float64), 7
    x = Stream(3).normal(5, 2).double()
    sigma = torch.tensor([[1e-3], [0.1], [0.3], [2.0], [1e6]], dtype=torch.float64)
    found = sampled(n, matrix)(x, sigma).numpy()
    s = (Stream(derive_seed(0, "student", "fake-samples")).normal(n, 2).double() @ matrix.T).numpy()
    for row, (point, level) in enumerate(zip(x.numpy(), sigma.numpy(), strict=True)):
        squares = ((point - s) ** 2).sum(1)
        weights = np.exp(-(squares - squares.min()) / (2 * level**2))
        np.testing.assert_allclose(found[row], weights @ s / weights.sum(), rtol=1e-9)
    np.testing.assert_allclose(found[0], s[((x[0].numpy() - s) ** 2).sum(1).argmin()])
    np.testing.assert_allclose(found[-1], s.mean(0), rtol=1e-6)


def test_the_score_of_many_samples_is_the_oracles():
    matrix = torch.tensor([[0.5, 0.1], [0.0, 0.3]], dtype=torch.float64)
    x = Stream(3).normal(50, 2).double() * 0.5
    for sigma in (0.1, 1.0, 20.0):
        levels = torch.full((50, 1), sigma, dtype=torch.float64)
        expected = LinearOracle(matrix)(x, levels)
        few, many = ((sampled(n, matrix)(x, levels) - expected).abs().mean() for n in (200, 20_000))
        assert many < 0.02 and many < few / 3


def test_every_step_has_samples_of_its_own():
    score = sampled(9, torch.eye(2, dtype=torch.float64))
    x, sigma = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    assert not torch.equal(score(x, sigma), score(x, sigma))


# Lag


@pytest.mark.parametrize("lag", [1, 3])
def test_a_lagged_score_has_the_weights_of_so_many_steps_ago(lag):
    spec = student_spec()
    fake = fresh_fake(spec, CPU)
    start = torch.cat([p.detach().flatten() for p in fake.parameters()])
    lagged = LaggedScore(fake, lag)
    given = [start + step for step in range(8)]
    for step, current in enumerate(given):
        head = torch.full((5,), 99.0)  # what a discriminator's optimiser trains beside it
        answering = lagged.at(step, torch.cat([current, head]))
        found = torch.cat([p.flatten() for p in answering.parameters()])
        assert torch.equal(found, given[step - lag] if step >= lag else start)


@pytest.mark.parametrize("lag", [0, 1, 3, 100])
def test_the_gradient_is_zero_as_long_as_the_generator_sees_a_fake_score_that_is_the_teacher(lag):
    """The fake score starts as the teacher, so the first step follows nothing; with a lag, nor do the next ones."""
    _, gradient = trained(student_spec(fake_lag=lag))
    assert (gradient == 0).tolist() == [step <= lag for step in range(6)]


# Noise in the teacher's score


def test_noise_in_the_teachers_score_is_all_that_the_first_step_follows():
    """Student, teacher and fake score start with the same weights, and differ by that noise, of a stream of its own."""
    spec = student_spec(score_noise=0.5)
    weights = {name: value.numpy() for name, value in build_network(SMALL, 2, seed=77).state_dict().items()}
    teacher = load_teacher(TRAINED, weights)
    batches = RandomBatches(spec, 2)
    z = batches.latent()
    x = teacher(80 * z, torch.full((8, 1), 80.0))
    _, sigma, noise = batches.diffusion("dm")
    epsilon = Stream(derive_seed(0, "student", "score")).normal(8, 2)
    error = 0.5 * (sigma * 0.5 / (sigma**2 + 0.25).sqrt()) * epsilon
    real = teacher(x + sigma * noise, sigma) + error
    expected = (-error / (x - real).abs().mean(1, keepdim=True)).square().mean().sqrt()
    _, gradient = trained(spec)
    assert_close(gradient[0], expected.double(), rtol=1e-4, atol=0)


# Fresh weights


def test_a_fresh_fake_score_starts_as_a_teacher_does_whatever_the_teacher_is():
    spec = student_spec(fake_start="fresh")
    fake = fresh_fake(spec, CPU)
    x, sigma = Stream(1).normal(4, 2), torch.full((4, 1), 0.5)
    assert_close(fake(x, sigma), 0.5 * x)
    assert not torch.equal(fake.network.input.weight, build_student(spec).generator.network.input.weight)
    _, gradient = trained(spec)
    assert gradient[0] > 0


def test_a_linear_student_of_an_exact_teacher_can_learn_its_fake_score():
    learned = {"fake_start": "fresh", "generator": QUICK, "fake_score": QUICK}
    spec = StudentSpec(
        teacher=EXACT, network={"kind": "linear"}, dtype="float64", batch=8, generator_steps=3, recipe=learned
    )
    snapshots, history = distil(spec, load_teacher(EXACT, prepare(EXACT.data)[0], torch.float64))
    assert torch.isfinite(history[:, HISTORY.index("fake_loss")]).all()
    assert not torch.equal(snapshots["generator.matrix"][0], snapshots["generator.matrix"][-1])


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"fake": "samples", "fake_lag": 1}, "need fake 'learned'"),
        ({"fake": "samples", "fake_start": "fresh"}, "need fake 'learned'"),
        ({"fake_samples": 10}, "fake_samples is for fake 'samples', not for 'learned'"),
        ({"name": "dmd2-gan", "fake": "samples"}, "samples have no hidden state"),
    ],
)
def test_keys_that_would_do_nothing_are_refused(recipe, words):
    with pytest.raises(ValueError, match=words):
        student_spec(**recipe)


def test_the_usual_recipe_is_as_it_was():
    usual = student_spec().recipe.model_dump(mode="json")
    assert {"fake_lag", "fake_start", "fake_samples", "score_noise"}.isdisjoint(usual)
