"""The theory that the instrument must reproduce: linear students of Gaussian teachers, through the project's own loop.

Σ is the teacher's covariance, S(z) = A·z the student, C = AAᵀ. Every minimiser is Σ^{1/2}Q with Q orthogonal; which
one the training ends in is decided by its start.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from dmdpipe.data.prepare import prepare
from dmdpipe.diffusion.exact import ExactDenoiser
from dmdpipe.distill import dmd, initialisation
from dmdpipe.distill.batches import ExpectedBatches, RandomBatches
from dmdpipe.distill.dmd import dm_gradient
from dmdpipe.distill.loop import distil
from dmdpipe.distill.oracle import LinearOracle
from dmdpipe.distill.student import build_student, rotation_of
from dmdpipe.specs.data import Gaussian
from dmdpipe.specs.diffusion import NoiseRange
from dmdpipe.specs.student import StudentSpec

STEPS = 600


def plain_descent(dim):
    """The loss is a mean over coordinates, which divides the gradient by d: a rate of d gives it back."""
    return {
        "fake": "oracle",
        "normalise": False,
        "generator_every": 1,
        "generator": {
            "kind": "sgd",
            "learning_rate": dim,
            "beta1": 0,
            "weight_decay": 0,
            "warmup": 0,
            "clip": None,
        },
    }


def linear_spec(dim, **fields):
    fields = {"batches": "expected", "recipe": plain_descent(dim), "generator_steps": STEPS} | fields
    data = Gaussian(dim=dim, n_train=4, n_held_out=1)
    return StudentSpec(
        teacher={"data": data, "score": {"kind": "exact"}}, network={"kind": "linear"}, dtype="float64", **fields
    )


def gaussian_teacher(spec):
    return ExactDenoiser(prepare(spec.teacher.data)[0], torch.float64)


def root(covariance):
    values, vectors = torch.linalg.eigh(covariance)
    return vectors @ torch.diag(values.sqrt()) @ vectors.T


def maps(spec):
    """Distil; return the student's maps [K, d, d], read off by what it does to the unit vectors, and Σ."""
    teacher = gaussian_teacher(spec)
    snapshots, _ = distil(spec, teacher)
    student, found = build_student(spec), []
    for matrix in snapshots["generator.matrix"]:
        student.load_state_dict({"generator.matrix": matrix})
        found.append(student(torch.eye(spec.teacher.data.dim, dtype=torch.float64)).detach().T)
    return torch.stack(found), teacher.covariance()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_orthogonal(dim, seed=0):
    return torch.linalg.qr(draw(dim, dim, seed=seed))[0]


# The expected gradient


@pytest.mark.parametrize("dim", [1, 2, 5, 16])
def test_expected_batches_have_exact_moments(dim):
    batches = ExpectedBatches(linear_spec(dim), dim)
    z, (_, sigma, noise) = batches.latent(), batches.diffusion("dm")
    identity = torch.eye(dim, dtype=torch.float64)
    grid = batches.grid.flatten()
    for level in sigma.unique():
        rows = sigma.flatten() == level
        assert_close(z[rows].T @ z[rows] / rows.sum(), identity)
        assert_close(noise[rows].T @ noise[rows] / rows.sum(), identity)
        assert noise[rows].mean(0).abs().max() < 1e-15
        assert (noise[rows].T @ z[rows]).abs().max() < 1e-12
    indices = torch.searchsorted(grid, sigma.unique())
    assert len(indices) == 16 and indices[0] == 20 and indices[-1] == 980
    assert indices.diff().min() >= 63 and indices.diff().max() <= 65


def expected_gradient(spec, matrix, covariance):
    """The mean over the batch's 16 noise levels of [C(C + σ²)⁻¹ − Σ(Σ + σ²)⁻¹]·A."""
    dim = len(matrix)
    identity = torch.eye(dim, dtype=torch.float64)
    levels = ExpectedBatches(spec, dim).diffusion("dm").sigma.unique()

    def shrinkage(c, level):
        return c @ torch.linalg.inv(c + level**2 * identity)

    own = matrix @ matrix.T
    return sum((shrinkage(own, level) - shrinkage(covariance, level)) @ matrix for level in levels) / len(levels)


def batch_gradient(spec, matrix, covariance, batches):
    """The gradient of the loss at S(z) = A·z by autograd, the dimension that the mean divides by given back."""
    dim, teacher = len(matrix), gaussian_teacher(spec)
    matrix = matrix.clone().requires_grad_(True)
    x = batches.latent() @ matrix.T
    _, sigma, noise = batches.diffusion("dm")
    noisy = (x + sigma * noise).detach()
    gradient = dm_gradient(x.detach(), teacher(noisy, sigma), LinearOracle(matrix)(noisy, sigma), normalise=False)
    x.backward(gradient / x.numel())
    return dim * matrix.grad


@pytest.mark.parametrize("dim", [1, 2, 4, 16])
def test_a_linear_student_feels_the_closed_gradient(dim):
    """For any A: one that has nothing to do with Σ, so that no symmetry helps."""
    spec = linear_spec(dim)
    covariance = gaussian_teacher(spec).covariance()
    matrix = draw(dim, dim, seed=dim)
    exact = expected_gradient(spec, matrix, covariance)
    found = batch_gradient(spec, matrix, covariance, ExpectedBatches(spec, dim))
    assert_close(found, exact, rtol=1e-9, atol=1e-12)
    noisy = batch_gradient(spec, matrix, covariance, RandomBatches(spec, dim))
    assert (noisy - exact).norm() > 1e-3 * exact.norm()


@pytest.mark.parametrize("dim", [2, 16])
def test_random_batches_feel_it_on_average(dim):
    """Averaged over many batches, with every one of the recipe's noise levels in its turn."""
    spec = linear_spec(dim, batches="random", batch=200_000)
    covariance = gaussian_teacher(spec).covariance()
    matrix = draw(dim, dim, seed=dim)
    identity = torch.eye(dim, dtype=torch.float64)
    exact = torch.zeros(dim, dim, dtype=torch.float64)
    for level in RandomBatches(spec, dim).grid[20:981, 0]:
        for c, sign in ((matrix @ matrix.T, 1), (covariance, -1)):
            exact += sign / 961 * c @ torch.linalg.inv(c + level**2 * identity) @ matrix
    found = batch_gradient(spec, matrix, covariance, RandomBatches(spec, dim))
    assert ((found - exact).norm() / exact.norm()).item() < 0.02


@pytest.mark.parametrize("dim", [2, 16])
def test_every_rotation_of_the_root_is_a_minimum(dim):
    """d(d − 1)/2 dimensions of exact freedom: the loss selects no pairing."""
    spec = linear_spec(dim)
    covariance = gaussian_teacher(spec).covariance()
    batches = ExpectedBatches(spec, dim)
    for seed in range(3):
        minimum = root(covariance) @ random_orthogonal(dim, seed)
        assert batch_gradient(spec, minimum, covariance, batches).norm() < 1e-12
        assert batch_gradient(spec, 1.1 * minimum, covariance, batches).norm() > 1e-3


@pytest.mark.parametrize("sigma", [0.01, 0.5, 80.0])
def test_the_oracle_is_the_denoiser_of_the_students_own_distribution(sigma):
    matrix = draw(4, 4)
    oracle = LinearOracle(matrix)
    for _ in range(2):
        own, x = matrix @ matrix.T, draw(5, 4, seed=1)
        expected = x @ torch.linalg.solve(own + sigma**2 * torch.eye(4), own.T).double()
        assert_close(oracle(x, torch.full((5, 1), sigma, dtype=torch.float64)), expected)
        matrix.mul_(3).add_(1)
        oracle.refresh()


# Where the expected descent ends


@pytest.mark.parametrize("start", ["teacher", "rotated"])
@pytest.mark.parametrize("dim", [1, 2, 4, 16])
def test_the_expected_descent_ends_where_the_theory_says(dim, start):
    """In Σ^{1/2} from the teacher's start, and in Σ^{1/2}Q from the same start turned by Q."""
    spec = linear_spec(dim, init={"kind": start})
    found, covariance = maps(spec)
    expected = root(covariance)
    if start == "rotated":
        rotation = rotation_of(spec, torch.float64)
        expected = expected @ rotation
        assert dim == 1 or (rotation - torch.eye(dim)).norm() > 0.5
    assert (found[-1] - expected).norm().item() < 1e-4
    assert (found[0] - expected).norm().item() > 0.4


@pytest.mark.parametrize("start", ["teacher", "rotated"])
def test_the_expected_descent_ends_there_in_64_dimensions(start):
    """A step costs more here; a quarter of the steps is enough."""
    spec = linear_spec(64, init={"kind": start}, generator_steps=STEPS // 4)
    found, covariance = maps(spec)
    turned = rotation_of(spec, torch.float64) if start == "rotated" else torch.eye(64, dtype=torch.float64)
    assert (found[-1] - root(covariance) @ turned).norm().item() < 1e-4


def test_the_start_is_the_teachers_one_step_answer():
    spec = linear_spec(4, generator_steps=1)
    found, covariance = maps(spec)
    total = covariance + 80.0**2 * torch.eye(4, dtype=torch.float64)
    assert_close(found[0], 80.0 * covariance @ torch.linalg.inv(total))
    z = draw(3, 4)
    answer = gaussian_teacher(spec)(80.0 * z, torch.full((3, 1), 80.0, dtype=torch.float64))
    assert_close(z @ found[0].T, answer)


def start_from(monkeypatch, matrix):
    def start(parameter, spec, teacher):
        with torch.no_grad():
            parameter.copy_(matrix)

    monkeypatch.setattr(initialisation, "start_linear", start)


def squared_gap(found, expected):
    return ((found - expected).norm() / expected.norm()).item() ** 2


def test_a_small_isotropic_start_ends_in_the_root(monkeypatch):
    start_from(monkeypatch, 0.1 * torch.eye(16, dtype=torch.float64))
    found, covariance = maps(linear_spec(16))
    assert (found[-1] - root(covariance)).norm().item() < 1e-4


def test_an_unrelated_start_learns_the_distribution_and_not_the_pairing(monkeypatch):
    """A loop that copied from any start would be no instrument."""
    random = 0.1 * draw(16, 16)
    start_from(monkeypatch, random)
    found, covariance = maps(linear_spec(16))
    assert squared_gap(found[-1] @ found[-1].T, covariance) < 1e-8
    assert squared_gap(found[-1], root(covariance)) > 1


@pytest.mark.parametrize("fault", ["sign", "batch", "lag"])
def test_planted_faults_do_not_end_there(monkeypatch, fault):
    """The gradient turned round; a batch of four random samples; a fake score that stays where it started."""
    fields = {"generator_steps": 150}
    if fault == "sign":
        original = dmd.dm_gradient
        monkeypatch.setattr(dmd, "dm_gradient", lambda *args, **named: -original(*args, **named))
    elif fault == "batch":
        fields = {"batches": "random", "batch": 4}
    else:
        monkeypatch.setattr(LinearOracle, "refresh", lambda oracle: None)
        monkeypatch.setattr(LinearOracle, "basis", torch.eye(4, dtype=torch.float64), raising=False)
        monkeypatch.setattr(LinearOracle, "variances", torch.zeros(4, dtype=torch.float64), raising=False)
    found, covariance = maps(linear_spec(4, **fields))
    assert (found[-1] - root(covariance)).norm().item() > 0.1


# The stochastic loop, in the settings of the validity study


@pytest.mark.parametrize("dim", [4, 16])
def test_the_stochastic_loop_learns_the_covariance_but_may_turn(dim):
    recipe = {
        "fake": "oracle",
        "generator_every": 1,
        "generator": {"kind": "sgd", "learning_rate": 0.01 * dim, "weight_decay": 0, "decay": "cosine"},
    }
    found, covariance = maps(linear_spec(dim, batches="random", batch=512, recipe=recipe, generator_steps=2000))
    assert ((found[-1] @ found[-1].T - covariance).norm() / covariance.norm()).item() < 0.01
    turned = squared_gap(found[-1], root(covariance))
    print(f"d = {dim}: ‖A − Σ^½‖²/‖Σ^½‖² = {turned:.3f}")
    assert math.isfinite(turned) and turned > 1e-6


def test_large_batches_turn_less(monkeypatch):
    """Finite-batch noise turns the start while it grows; the expected gradient doesn't turn it at all."""
    turned = {}
    for batch in (16, 1024):
        recipe = plain_descent(4) | {"generator": plain_descent(4)["generator"] | {"learning_rate": 1.0}}
        found, covariance = maps(linear_spec(4, batches="random", batch=batch, recipe=recipe))
        assert squared_gap(found[-1] @ found[-1].T, covariance) < 1e-4
        turned[batch] = squared_gap(found[-1], root(covariance))
    assert turned[1024] < turned[16] / 10


# Equivariance


def test_turning_the_noise_and_the_start_turns_the_whole_training(monkeypatch):
    """From the start S₀∘Q and on the noise Q⁻¹z, the full loop takes the very steps that it takes from S₀ on z."""
    fields = {
        "batches": "random",
        "batch": 32,
        "generator_steps": 50,
        "recipe": {"fake": "oracle", "generator_every": 1, "generator": {"warmup": 0, "learning_rate": 1e-2}},
        "noise_range": NoiseRange(sigma_max=5.0),
    }
    plain, _ = maps(linear_spec(6, **fields))
    spec = linear_spec(6, init={"kind": "rotated"}, **fields)
    rotation = rotation_of(spec, torch.float64)
    draw = RandomBatches.latent
    monkeypatch.setattr(RandomBatches, "latent", lambda batches, *count: draw(batches, *count) @ rotation)
    assert_close(maps(spec)[0], plain @ rotation, rtol=1e-8, atol=1e-9)
    assert (plain[-1] - plain[0]).norm() > 0.1
