"""Students of several steps: what they compute, what trains them, and what their noise depends on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dmdpipe.artifacts.plan import plan
from dmdpipe.data.prepare import prepare
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill.batches import RandomBatches
from dmdpipe.distill.dmd import dm_gradient
from dmdpipe.distill.loop import Distillation, distil
from dmdpipe.distill.student import Student, build_student
from dmdpipe.networks.denoiser import Denoiser, build_network
from dmdpipe.pairing.bank import noise_between, noise_rows
from dmdpipe.pairing.maps import pair_samples, resampled
from dmdpipe.specs.base import canonical_json
from dmdpipe.specs.data import Gaussian, Moons
from dmdpipe.specs.diffusion import NoiseBankSpec, TeacherSamplesSpec, TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP
from dmdpipe.specs.pairs import PairsSpec
from dmdpipe.specs.student import StudentSpec

SMALL = MLP(width=8, depth=1, embedding=4)
TEACHER = TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL))
GAUSSIAN = TeacherSpec(data=Gaussian(dim=3, n_train=4, n_held_out=1), score={"kind": "exact"})
BANK = NoiseBankSpec(dim=2, n_paired=40, n_held_out=30, n_reference_sets=3)
# On this grid the levels are plain numbers: 9, 7, 5, 3.
EVEN = {"sigma_min": 1, "sigma_max": 9, "rho": 1}
PLAIN_DESCENT = {"kind": "sgd", "learning_rate": 1, "beta1": 0, "weight_decay": 0, "warmup": 0, "clip": None}


def student_spec(steps: int = 4, **fields) -> StudentSpec:
    fields = {"noise_range": EVEN, "batch": 16, "generator_steps": 5, "snapshots": 4} | fields
    return StudentSpec(teacher=TEACHER, network=SMALL, sampling_steps=steps, **fields)


def denoiser(seed: int, dtype=torch.float32, plain: bool = False) -> Denoiser:
    own = Denoiser(build_network(SMALL, 2, seed).to(dtype))
    own.plain = plain
    return own


def noises(count: int, n: int = 16, dtype=torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, 2, generator=generator).to(dtype) for _ in range(count)]


def level(sigma: float, like: Tensor) -> Tensor:
    return like.new_full((len(like), 1), sigma)


@pytest.mark.parametrize(("steps", "levels"), [(1, [9]), (2, [9, 5]), (4, [9, 7, 5, 3])])
def test_levels_are_evenly_spaced_on_the_karras_grid(steps: int, levels: list[float]) -> None:
    assert build_student(student_spec(steps)).levels == pytest.approx(levels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_student_of_two_steps_is_the_composition_written_out(dtype: torch.dtype) -> None:
    g = denoiser(1, dtype)
    z, e = noises(2, dtype=dtype)
    with torch.no_grad():
        first = g(9 * z, level(9, z))
        by_hand = g(first + 5 * e, level(5, z))
        student = Student(g, [9.0, 5.0])
        assert_close(student(z), first)
        assert_close(student(z, [e]), by_hand)
    with pytest.raises(ValueError, match="the student has 1"):
        student(z, [e, e])


@pytest.mark.parametrize("plain", [False, True], ids=["compiled", "plain"])
def test_the_gradient_is_that_of_the_last_step_alone(plain: bool) -> None:
    g = denoiser(1, plain=plain)
    z, e, to_answer = noises(3)
    for parameter in g.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    answer, pullback = Student(g, [9.0, 5.0]).with_pullback(z, [e])
    pullback(to_answer)
    found = [parameter.grad.clone() for parameter in g.parameters()]

    g.plain = True
    first = g(9 * z, level(9, z))
    last = g(first.detach() + 5 * e, level(5, z))
    assert_close(answer, last.detach())
    for own, wanted in zip(found, torch.autograd.grad(last, list(g.parameters()), to_answer), strict=True):
        assert_close(own, wanted, rtol=1e-4, atol=1e-5)
    through_all = torch.autograd.grad(g(first + 5 * e, level(5, z)), list(g.parameters()), to_answer)
    assert max((own - other).abs().max() for own, other in zip(found, through_all, strict=True)) > 1e-2


def test_a_generator_step_is_the_dm_gradient_at_the_simulated_sample() -> None:
    """Against autograd, for batches of different numbers of steps."""
    seen = set()
    for seed in range(8):
        spec = student_spec(3, seed=seed, dtype="float64", recipe={"generator": PLAIN_DESCENT})
        student = build_student(spec)
        teacher, fake = denoiser(1, torch.float64), denoiser(2, torch.float64)
        before = {name: value.detach().clone() for name, value in student.named_parameters()}
        batches = RandomBatches(spec, 2)
        z, between, dm = batches.latent(), batches.between(), batches.diffusion("dm")
        seen.add(len(between))
        g = student.generator
        x = z
        for k, sigma in enumerate([9.0, 9 - 8 / 3, 9 - 16 / 3][: len(between) + 1]):
            x = g(9 * z if k == 0 else x.detach() + sigma * between[k - 1], level(sigma, z))
        with torch.no_grad():
            noisy = x + dm.sigma * dm.noise
            at = dm_gradient(x, teacher(noisy, dm.sigma), fake(noisy, dm.sigma))
        wanted = torch.autograd.grad((x * at).mean(), list(student.parameters()))
        Distillation(spec.recipe, student, teacher, fake, RandomBatches(spec, 2), None, 1).advance(range(0, 1))
        for (name, value), gradient in zip(student.named_parameters(), wanted, strict=True):
            assert_close(value.detach(), before[name] - gradient)
    assert seen == {0, 1, 2}


def test_one_step_draws_nothing_more_and_several_train_each_step_alike() -> None:
    one, four = RandomBatches(student_spec(1), 2), RandomBatches(student_spec(4), 2)
    assert [one.between() for _ in range(3)] == [[], [], []]
    assert one.streams["steps"].position == one.streams["between"].position == 0
    drawn = [four.between() for _ in range(800)]
    counts = np.bincount([len(noise) for noise in drawn], minlength=4)
    assert len(counts) == 4 and (abs(counts - 200) < 4 * 13).all()
    together = torch.stack([noise for batch in drawn for noise in batch])
    assert len(together.flatten().unique()) > 0.99 * together.numel()


def test_the_noise_between_steps_belongs_to_its_row_and_its_step() -> None:
    few, many = (BANK.model_copy(update={"n_paired": n}) for n in (7, 40))
    for one, other in zip(noise_between(few, 2), noise_between(many, 4), strict=False):
        np.testing.assert_array_equal(one, other[:7])
    rows = [noise_rows(2, 40, 0, "paired"), *noise_between(many, 4)]
    assert len(rows) == 4 and len(np.unique(np.stack(rows))) == 4 * 40 * 2
    assert noise_between(BANK, 1) == []


class Step:
    def __init__(self, spec, parents):
        self.spec, self.parents, self.written = spec, parents, {}

    def read_tensors(self, role, name):
        return self.parents[role, name]

    def write_tensors(self, name, tensors):
        self.written = tensors


def paired(steps: int, n: int) -> dict[str, np.ndarray]:
    spec = student_spec(steps)
    weights = {name: value.numpy() for name, value in build_network(SMALL, 2, 77).state_dict().items()}
    snapshots, _ = distil(spec, load_teacher(TEACHER, weights))
    z = noise_rows(2, n, 0, "paired")
    parents = {
        ("student", "snapshots.safetensors"): {name: value.numpy() for name, value in snapshots.items()},
        ("noise", "noise.safetensors"): {"paired": z},
        ("teacher_samples", "samples.safetensors"): {"teacher": 0.5 * z},
        ("teacher", "model.safetensors"): weights,
    }
    bank = BANK.model_copy(update={"n_paired": n})
    samples = TeacherSamplesSpec(teacher=TEACHER, bank=bank, noise_range=spec.noise_range)
    step = Step(PairsSpec(student=spec, teacher_samples=samples), parents)
    pair_samples(step)
    return step.written


def test_pairs_do_not_depend_on_how_many_there_are() -> None:
    few, many = paired(3, 7), paired(3, 40)
    for name in ("student", "resampled"):
        np.testing.assert_allclose(few[name], many[name][..., :7, :], atol=1e-5)
    assert "resampled" not in paired(1, 7)
    assert np.abs(few["student"] - paired(1, 7)["student"]).max() > 0.1


def test_a_resampled_gaussian_teacher_is_its_closed_form() -> None:
    """The flow from σ to 0 shrinks each principal axis by √(λ/(λ + σ²))."""
    denoise = load_teacher(GAUSSIAN, prepare(GAUSSIAN.data)[0], torch.float64)
    values, vectors = torch.linalg.eigh(denoise.covariance())
    generator = torch.Generator().manual_seed(0)
    x, e = (torch.randn(50, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    spec = TeacherSamplesSpec(teacher=GAUSSIAN, bank=NoiseBankSpec(dim=3), sampler={"steps": 256})
    flow = vectors @ torch.diag((values / (values + 2.5**2)).sqrt()) @ vectors.T
    assert_close(resampled(denoise, x, e, 2.5, spec), (x + 2.5 * e) @ flow, atol=1e-3, rtol=0)


def test_one_step_is_the_canonical_spec_without_the_key() -> None:
    assert "sampling_steps" not in json.loads(canonical_json(student_spec(1)))
    assert student_spec(1) == StudentSpec.model_validate_json(canonical_json(student_spec(1)))
    two = student_spec(2)
    assert StudentSpec.model_validate_json(canonical_json(two)) == two
    assert plan("student", two).folder != plan("student", student_spec(1)).folder
