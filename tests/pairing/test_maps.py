"""Teacher and student over the same noise: closed forms, and which row belongs to which."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pretended_gpu import pretended_gpu
from torch.testing import assert_close

from dmdpipe.data.prepare import prepare
from dmdpipe.diffusion.sampler import teacher_map
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill.loop import distil
from dmdpipe.errors import UserError
from dmdpipe.networks.denoiser import build_network
from dmdpipe.pairing import maps
from dmdpipe.pairing.bank import make_noise_bank
from dmdpipe.pairing.maps import pair_samples, sample_teacher
from dmdpipe.specs.data import Gaussian, Moons
from dmdpipe.specs.diffusion import NoiseBankSpec, TeacherSamplesSpec, TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP
from dmdpipe.specs.pairs import PairsSpec
from dmdpipe.specs.student import StudentSpec

SMALL = MLP(width=8, depth=1, embedding=4)
BANK = NoiseBankSpec(dim=2, n_paired=40, n_held_out=30, n_reference_sets=3)
EXACT = TeacherSpec(data=Gaussian(dim=2, n_train=4, n_held_out=1), score={"kind": "exact"})
TRAINED = TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL))


class Step:
    """What a step's function sees: the spec, the parents' tensors by role and file, and where it writes."""

    def __init__(self, spec, parents=None):
        self.spec, self.parents, self.written, self.reported = spec, parents or {}, {}, []

    def read_tensors(self, role, name):
        return {key: array.copy() for key, array in self.parents[role, name].items()}

    def write_tensors(self, name, tensors):
        self.written[name] = tensors

    def progress(self, done, total):
        self.reported.append((done, total))


def bank():
    step = Step(BANK)
    make_noise_bank(step)
    return step.written["noise.safetensors"]


def model(spec):
    if spec.score.kind == "exact":
        return {name: array for name, array in prepare(spec.data)[0].items() if name.startswith("exact.")}
    return {name: value.numpy() for name, value in build_network(SMALL, 2, seed=77).state_dict().items()}


def sampled(spec, steps=16, noise=None, device="cpu"):
    parents = {("teacher", "model.safetensors"): model(spec), ("noise", "noise.safetensors"): noise or bank()}
    step = Step(TeacherSamplesSpec(teacher=spec, bank=BANK, sampler={"steps": steps, "device": device}), parents)
    sample_teacher(step)
    assert step.written.keys() == {"samples.safetensors"}
    return step.written["samples.safetensors"], step


def test_an_exact_teachers_samples_are_the_closed_form_of_the_banks_noise():
    samples, _ = sampled(EXACT, steps=128)
    noise = bank()
    covariance = load_teacher(EXACT, model(EXACT), torch.float64).covariance()
    values, vectors = torch.linalg.eigh(covariance)
    flow = (vectors @ torch.diag(80 * (values / (values + 6400)).sqrt()) @ vectors.T).numpy()
    for name, z in (
        ("teacher", noise["paired"]),
        ("teacher_doubled", noise["paired"]),
        ("teacher_rotated", noise["paired"] @ noise["rotation"].T),
        ("held_out", noise["held_out"]),
        ("reference", noise["reference"]),
    ):
        assert samples[name].shape == z.shape and samples[name].dtype == np.float32
        np.testing.assert_allclose(samples[name], z @ flow, atol=5e-3)
    error, doubled = (np.abs(samples[name] - noise["paired"] @ flow).max() for name in ("teacher", "teacher_doubled"))
    assert doubled == pytest.approx(error / 4, rel=0.3)


def test_a_trained_teachers_samples_are_its_map_with_the_declared_steps():
    samples, step = sampled(TRAINED)
    noise = {name: torch.from_numpy(array) for name, array in bank().items()}
    denoiser = load_teacher(TRAINED, model(TRAINED))

    def mapped(z, steps=16):
        return teacher_map(denoiser, z, step.spec.noise_range, steps).numpy()

    assert np.array_equal(samples["teacher"], mapped(noise["paired"]))
    assert np.array_equal(samples["teacher_doubled"], mapped(noise["paired"], 32))
    assert np.array_equal(samples["held_out"], mapped(noise["held_out"]))
    turned = torch.stack([noise["rotation"] @ z for z in noise["paired"]])
    np.testing.assert_allclose(samples["teacher_rotated"], mapped(turned), atol=1e-5)
    for r in range(3):
        np.testing.assert_allclose(samples["reference"][r], mapped(noise["reference"][r]), atol=1e-6)
    assert step.reported == [(k, 5) for k in range(5)]


def test_a_row_does_not_depend_on_its_neighbours():
    noise = bank()
    few = {name: array[:, :7] if name == "reference" else array[:7] for name, array in noise.items()}
    few["rotation"] = noise["rotation"]
    all_rows, few_rows = sampled(TRAINED)[0], sampled(TRAINED, noise=few)[0]
    np.testing.assert_allclose(few_rows["teacher"], all_rows["teacher"][:7], atol=1e-6)
    np.testing.assert_allclose(few_rows["reference"], all_rows["reference"][:, :7], atol=1e-6)


def student_spec(**fields):
    quick = {"learning_rate": 1e-2, "warmup": 0}
    fields = {"recipe": {"generator": quick, "fake_score": quick}} | fields
    fields = {"network": SMALL, "teacher": TRAINED, "batch": 8, "generator_steps": 5, "snapshots": 4} | fields
    return StudentSpec(**fields)


def paired(spec, device="cpu"):
    teacher = load_teacher(spec.teacher, model(spec.teacher), getattr(torch, spec.dtype))
    snapshots, _ = distil(spec, teacher, paired=torch.from_numpy(bank()["paired"]))
    samples = sampled(spec.teacher)[0]
    parents = {
        ("student", "snapshots.safetensors"): {name: value.numpy() for name, value in snapshots.items()},
        ("noise", "noise.safetensors"): bank(),
        ("teacher_samples", "samples.safetensors"): samples,
    }
    parents["teacher", "model.safetensors"] = model(spec.teacher)
    of_teacher = TeacherSamplesSpec(teacher=spec.teacher, bank=BANK, sampler={"steps": 16, "device": device})
    step = Step(PairsSpec(student=spec, teacher_samples=of_teacher), parents)
    if device == "cpu":
        pair_samples(step)
    else:
        with pretended_gpu() as gpu:
            pair_samples(step)
            assert gpu.operations > 5
    assert step.written.keys() == {"pairs.safetensors"}
    return step.written["pairs.safetensors"], snapshots, samples


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_particles_answer_the_banks_noise_with_the_vectors_of_its_rows(dtype):
    spec = student_spec(network={"kind": "particles", "count": 60}, bank=BANK, dtype=dtype)
    pairs, snapshots, samples = paired(spec)
    assert np.array_equal(pairs["z"], bank()["paired"])
    assert np.array_equal(pairs["teacher"], samples["teacher"])
    assert snapshots["particles"].shape == (4, 60, 2)
    assert np.array_equal(pairs["student"], snapshots["particles"][:, :40].float().numpy())
    assert (pairs["student"][0] != pairs["student"][-1]).all()


def formula(weights, z, skip):
    """S(z) = c_skip·σ_max·z + c_out·F(c_in·σ_max·z, ln(σ_max)/4), σ_max = 80, of one snapshot."""
    network = build_network(SMALL, 2, seed=0).double()
    network.load_state_dict({name.removeprefix("generator.network."): value for name, value in weights.items()})
    total = 80.0**2 + 0.25
    label = torch.full((1, 1), np.log(80.0) / 4, dtype=torch.float64)
    inside = network(80 * z / total**0.5, network.noise_features(label)).detach()
    return 80 * 0.5 / total**0.5 * inside + (0.25 / total * 80 * z if skip else 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("start", ["teacher", "rotated", "random-head", "random-no-skip"])
def test_students_answer_the_banks_noise_at_every_snapshot(start, dtype):
    spec = student_spec(init={"kind": start}, dtype=dtype)
    pairs, snapshots, samples = paired(spec)
    noise = bank()
    assert {name: array.dtype for name, array in pairs.items()} == {
        "z": np.float32, "teacher": np.float32, "student": np.float32, "generator_step": np.int64,
    }  # fmt: skip
    assert np.array_equal(pairs["z"], noise["paired"])
    assert np.array_equal(pairs["teacher"], samples["teacher"])
    steps = pairs["generator_step"]
    assert np.array_equal(steps, snapshots.pop("generator_step").numpy())
    assert steps[0] == 0 and steps[-1] == 5 and len(steps) == len(pairs["student"]) >= 4
    z = torch.from_numpy(noise["paired"]).double()
    if start == "rotated":
        z = z @ torch.from_numpy(noise["rotation"]).double().T
    for k in range(len(steps)):
        expected = formula({name: value[k] for name, value in snapshots.items()}, z, skip=start != "random-no-skip")
        assert_close(torch.from_numpy(pairs["student"][k]).double(), expected, atol=1e-5, rtol=1e-5)
    moves = np.abs(np.diff(pairs["student"], axis=0)).max(axis=(1, 2))
    assert (moves[1:] > 1e-4).all()  # the first step is taken against a fake score that equals the teacher


def test_the_start_of_a_copied_student_is_the_teachers_one_step_answer():
    pairs, _, _ = paired(student_spec())
    z = torch.from_numpy(pairs["z"])
    with torch.no_grad():
        expected = load_teacher(TRAINED, model(TRAINED))(80 * z, torch.full((1, 1), 80.0))
    assert np.array_equal(pairs["student"][0], expected.numpy())


# Where it is computed


def test_a_teachers_samples_from_a_gpu_are_those_of_the_cpu():
    here = sampled(TRAINED)[0]
    with pretended_gpu() as gpu:
        there = sampled(TRAINED, device="cuda")[0]
        assert gpu.operations > 5 * 16
    assert here.keys() == there.keys()
    for name, array in here.items():
        np.testing.assert_allclose(there[name], array, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_pairs_from_a_gpu_are_those_of_the_cpu(steps):
    spec = student_spec(sampling_steps=steps)
    here, there = (paired(spec, device=device)[0] for device in ("cpu", "cuda"))
    assert here.keys() == there.keys() and ("resampled" in here) == (steps > 1)
    for name, array in here.items():
        np.testing.assert_allclose(there[name], array, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_student_is_asked_in_chunks_and_answers_as_if_at_once(monkeypatch, steps):
    """A chunk that got another one's later noise, or another order, would show."""
    spec = student_spec(sampling_steps=steps)
    whole = paired(spec)[0]
    monkeypatch.setattr(maps, "CHUNK", 7)
    np.testing.assert_allclose(paired(spec)[0]["student"], whole["student"], atol=1e-6)


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^sampler\.device: 'cuda', but PyTorch .* no GPU here; set it to cpu"):
        sampled(TRAINED, device="cuda")
