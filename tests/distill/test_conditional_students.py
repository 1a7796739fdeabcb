"""Teachers and students that are asked for a class: from pairs of sample and label to the bank's noise, and resumed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from killed_step import KilledError, Step
from pretended_gpu import pretended_gpu
from pydantic import ValidationError
from torch.testing import assert_close

from dmdpipe.artifacts.stages import STAGES
from dmdpipe.data.prepare import prepare
from dmdpipe.diffusion import state, training
from dmdpipe.diffusion.sampler import teacher_map
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.diffusion.training import train_denoiser
from dmdpipe.distill.adversarial import Adversary
from dmdpipe.distill.batches import RandomBatches
from dmdpipe.distill.loop import distil
from dmdpipe.distill.regression import make_pair_pool
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.denoiser import Denoiser, build_network
from dmdpipe.pairing.bank import make_noise_bank
from dmdpipe.pairing.classes import Classes
from dmdpipe.pairing.maps import pair_samples, sample_teacher
from dmdpipe.specs.data import Digits, Moons, Ring
from dmdpipe.specs.diffusion import NoiseBankSpec, NoiseRange, TeacherSamplesSpec, TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP, UNet
from dmdpipe.specs.pairs import MapsSpec, PairsSpec
from dmdpipe.specs.student import Members, StudentSpec, obstacle_to_members

RING = Ring(modes=3, n_train=600, n_held_out=10, labels=True)
SMALL = MLP(width=8, depth=1, embedding=4, classes=3)
TEACHER = TeacherSpec(data=RING, score=TrainedScore(network=SMALL))
TINY = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(), classes=10)
OF_IMAGES = TeacherSpec(data=Digits(side=2, labels=True), score=TrainedScore(network=TINY))
QUICK = {"learning_rate": 1e-2, "warmup": 4}
LEARNED = {"generator": QUICK, "fake_score": QUICK}
DATA, LABELS = Stream(1).normal(40, 2), Stream(3).integers(0, 3, 40)
SPECS = {
    "dmd2": {"recipe": LEARNED},
    "fastgen-gan, two steps": {"recipe": {"name": "fastgen-gan", **LEARNED}, "sampling_steps": 2},
    "dmd2-gan, bf16": {"recipe": {"name": "dmd2-gan", **LEARNED}, "precision": "bf16"},
    "kd, told to copy": {
        "network": MLP(width=4, depth=2, embedding=4, classes=3),
        "init": {"kind": "kd", "regression_steps": 3},
        "recipe": {**LEARNED, "regression_weight": 0.25, "regression_pairs": 64, "fake_lag": 1, "score_noise": 0.5},
    },
    "unet": {"recipe": LEARNED, "teacher": OF_IMAGES, "network": TINY, "batch": 4, "generator_steps": 4},
}
BANK = NoiseBankSpec(dim=2, n_paired=40, n_held_out=30, n_reference_sets=2)


def student_spec(name="dmd2", **fields):
    given = {"teacher": TEACHER, "network": SMALL, "batch": 8, "generator_steps": 7, "snapshots": 4}
    return StudentSpec(**given | SPECS[name] | fields)


def weights(spec=TEACHER):
    network = build_network(spec.score.network, 4 if spec == OF_IMAGES else 2, seed=77)
    return {name: value.numpy() for name, value in network.state_dict().items()}


def trained(spec, step=None):
    snapshots, history = distil(spec, load_teacher(spec.teacher, weights(spec.teacher)), step, data=DATA, labels=LABELS)
    return {name: value.numpy().tobytes() for name, value in snapshots.items()} | {"history": history.numpy().tobytes()}


# Teachers


def test_a_teacher_answers_with_the_class_that_it_is_asked_for(tmp_path):
    """After a short training its samples lie at their own mode of the ring, and a planted swap of labels swaps them."""
    tensors, _ = prepare(RING)
    data, labels, modes = (torch.from_numpy(tensors[name]) for name in ("train", "labels", "modes"))
    score = TrainedScore(network=MLP(width=24, depth=1, classes=3), steps=500, batch=128, learning_rate=3e-3, ema=0.98)
    asked = torch.arange(60) % 3
    z = Stream(5).normal(60, 2)
    for swap in (torch.arange(3), torch.tensor([1, 2, 0])):
        network, _ = train_denoiser(score, data, Step(tmp_path), labels=swap[labels])
        samples = teacher_map(Denoiser(network), z, NoiseRange(), 16, asked)
        found = swap[torch.cdist(samples, modes).argmin(dim=1)]
        assert (found == asked).float().mean() > 0.95


def test_a_killed_teacher_ends_in_the_same_bytes(tmp_path, monkeypatch):
    spec = TrainedScore(network=SMALL, steps=20, batch=8)

    def bytes_of(step):
        network, losses = train_denoiser(spec, DATA, step, labels=LABELS)
        return b"".join(p.numpy().tobytes() for p in (*network.parameters(), losses))

    whole = bytes_of(Step(tmp_path / "whole"))
    monkeypatch.setattr(state, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr(training, "TOGETHER", 3)
    with pytest.raises(KilledError):
        bytes_of(Step(tmp_path / "killed", 4))
    assert bytes_of(Step(tmp_path / "killed")) == whole


# Students


@pytest.mark.parametrize("name", SPECS)
def test_a_killed_distillation_ends_in_the_same_bytes(tmp_path, monkeypatch, name):
    spec = student_spec(name)
    whole = trained(spec)
    monkeypatch.setattr(state, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    for killed_at in (2, 3):
        with pytest.raises(KilledError):
            trained(spec, Step(tmp_path, killed_at))
    assert trained(spec, Step(tmp_path)) == whole


@pytest.mark.parametrize("name", ["dmd2", "kd, told to copy", "unet"])
def test_a_gpu_trains_the_same_student(name):
    """In double precision; classes are drawn on the CPU, as noise is."""

    def tensors(device):
        spec = student_spec(name, dtype="float64", device=device)
        teacher = load_teacher(spec.teacher, weights(spec.teacher), torch.float64)
        snapshots, history = distil(spec, teacher)
        return snapshots | {"history": history}

    here = tensors("cpu")
    with pretended_gpu() as gpu:
        there = tensors("cuda")
        assert gpu.operations > 100
    for key, value in here.items():
        assert_close(there[key], value, atol=1e-9, rtol=1e-6, equal_nan=True)


def test_samples_are_judged_by_the_class_that_they_were_asked_for(monkeypatch):
    """What the student is asked for is what teacher and fake score are told of its samples, in every iteration."""
    asked, told = [], []
    draw, levels = RandomBatches.asked, Denoiser.levels

    def seen(self, count=1):
        drawn = draw(self, count)
        asked.extend(drawn[0].split(8))
        return drawn

    def watched(self, grid):
        look_up = levels(self, grid)

        def noted(rows, classes):
            told.append(classes)
            given = look_up(rows, classes)
            # An MLP is told of a class by a 1 at its place, after the features of the noise level.
            assert torch.equal(given.looked_up().features[:, 4:].argmax(dim=1), classes)
            assert_close(given.looked_up().c_in, self.conditions(grid[rows], classes).c_in)
            return given

        return noted

    monkeypatch.setattr(RandomBatches, "asked", seen)
    monkeypatch.setattr(Denoiser, "levels", watched)
    spec = student_spec()
    trained(spec)
    # A generator's iteration asks teacher and fake score, and lets the fake score learn; the others let it learn.
    expected = [batch for i, batch in enumerate(asked[:31]) for _ in range(3 if i % 5 == 0 else 1)]
    assert [list(each) for each in told] == [list(each) for each in expected]
    counts = np.bincount(torch.cat(asked), minlength=3)
    assert counts.min() > 40


def test_the_discriminator_is_told_the_labels_of_the_data_and_the_students_classes():
    spec = student_spec(recipe={"name": "dmd2-gan"})
    # Data that say their row, with labels that follow from it.
    data = torch.arange(40.0)[:, None].repeat(1, 2)
    labels = torch.arange(40) % 3
    one = Adversary(spec, load_teacher(TEACHER, weights()), None, data, RandomBatches(spec, 2), labels)
    one.trained.requires_grad_(True)
    noised, seen = one._noised, []

    def watched(*samples):
        result = noised(*samples)
        seen.append((samples, result[1].looked_up().features[:, 4:].argmax(dim=1)))
        return result

    one._noised = watched
    one.body.plain = True
    for parameter in one.trained.parameters():
        parameter.grad = torch.zeros_like(parameter)
    one.learn(torch.zeros(8, 2), torch.full((8,), 2))
    ((real, fake), told) = seen[0]
    assert torch.equal(real[1], real[0][:, 0].long() % 3)
    assert told.tolist() == [*real[1].tolist(), *fake[1].tolist()] and set(told[8:].tolist()) == {2}


def test_a_pool_to_copy_has_its_noises_classes():
    teacher = load_teacher(TEACHER, weights())
    pool = make_pair_pool(teacher, NoiseRange(), (30, 2), 9, torch.float32)
    z, target, classes = pool.draw(50, Stream(1))
    assert_close(target, teacher_map(teacher, z, NoiseRange(), 32, classes))
    assert set(classes.tolist()) == {0, 1, 2}
    other = teacher_map(teacher, z, NoiseRange(), 32, (classes + 1) % 3)
    assert (other - target).abs().amax(dim=1).min() > 1e-5


# The noise bank


class Stored:
    """What a step's function sees of its parents, and what it writes."""

    def __init__(self, spec, parents):
        self.spec, self.parents, self.written = spec, parents, {}

    def read_tensors(self, role, name):
        return {key: array.copy() for key, array in self.parents[role, name].items()}

    def write_tensors(self, name, tensors):
        self.written |= tensors

    def progress(self, done, total):
        pass


def sampled():
    noise = Stored(BANK, {})
    make_noise_bank(noise)
    parents = {("teacher", "model.safetensors"): weights(), ("noise", "noise.safetensors"): noise.written}
    step = Stored(TeacherSamplesSpec(teacher=TEACHER, bank=BANK, sampler={"steps": 8}), parents)
    sample_teacher(step)
    return step.written, noise.written


def test_each_noise_of_the_bank_has_its_class_by_the_rule_of_measure():
    samples, noise = sampled()
    rule = Classes(3)
    assert samples["classes"].tolist() == rule.of_noises(40, 0, "paired").tolist()
    assert samples["classes_held_out"].tolist() == rule.of_noises(30, 0, "held_out").tolist()
    for r, of_set in enumerate(samples["classes_reference"]):
        assert of_set.tolist() == rule.of_noises(40, 0, f"reference/{r}").tolist()
    teacher = load_teacher(TEACHER, weights())
    for name, z, classes in (
        ("teacher", noise["paired"], samples["classes"]),
        ("teacher_rotated", noise["paired"] @ noise["rotation"].T, samples["classes"]),
        ("held_out", noise["held_out"], samples["classes_held_out"]),
        ("reference", noise["reference"][1], samples["classes_reference"][1]),
    ):
        expected = teacher_map(teacher, torch.from_numpy(z), NoiseRange(), 8, torch.from_numpy(classes)).numpy()
        found = samples[name][1] if name == "reference" else samples[name]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_student_is_asked_for_the_teachers_classes(monkeypatch, steps):
    samples, noise = sampled()
    monkeypatch.setattr("dmdpipe.pairing.maps.CHUNK", 7)
    spec = student_spec(sampling_steps=steps)
    parents = {
        ("student", "snapshots.safetensors"): {
            "generator_step": np.array([0]),
            **{f"generator.network.{name}": value[None] for name, value in weights().items()},
        },
        ("noise", "noise.safetensors"): noise,
        ("teacher_samples", "samples.safetensors"): samples,
        ("teacher", "model.safetensors"): weights(),
    }
    of_teacher = TeacherSamplesSpec(teacher=TEACHER, bank=BANK, sampler={"steps": 8})
    step = Stored(PairsSpec(student=spec, teacher_samples=of_teacher), parents)
    pair_samples(step)
    denoiser = load_teacher(TEACHER, weights())
    z, classes = torch.from_numpy(noise["paired"]), torch.from_numpy(samples["classes"])
    if steps == 1:
        # Its weights are the teacher's: S(z) is the teacher's one answer at the largest noise level.
        expected = denoiser(80 * z, torch.full((1, 1), 80.0), classes)
        np.testing.assert_allclose(step.written["student"][0], expected.numpy(), rtol=1e-5, atol=1e-6)
    assert step.written["student"].shape == (1, 40, 2)
    assert np.array_equal(step.written["teacher"], samples["teacher"])


# What is refused


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL)), "has no classes of stored labels"),
        (lambda: TeacherSpec(data=Ring(labels=True), score=TrainedScore(network=SMALL)), "has 8 classes"),
        (lambda: TeacherSpec(data=RING, score=TrainedScore(network=SMALL, samples="fresh")), "'fresh'"),
        (lambda: student_spec(network=MLP(width=8, depth=1, embedding=4)), "must be the teacher's, 3"),
        (lambda: student_spec(recipe={"fake": "samples"}), "needs network.classes 0"),
        (
            lambda: student_spec(network={"kind": "particles", "count": 50}, bank=BANK),
            r"must be the teacher's, 3.*particles",
        ),
        (lambda: student_spec(members=Members(seeds=(0, 1))), "can't be asked for classes"),
        (
            lambda: MapsSpec(
                pairs=PairsSpec(student=student_spec(), teacher_samples=TeacherSamplesSpec(teacher=TEACHER, bank=BANK)),
                particles=20,
            ),
            "need network.classes 0",
        ),
    ],
)
def test_what_knows_no_classes_is_refused_in_one_line(make, says):
    with pytest.raises(ValidationError, match=says) as error:
        make()
    assert "\n" not in error.value.errors()[0]["msg"]


def test_students_with_classes_train_alone():
    assert "classes" in (obstacle_to_members(student_spec()) or "")


def test_only_their_steps_reach_the_code_of_classes():
    spec = student_spec()
    pairs = PairsSpec(student=spec, teacher_samples=TeacherSamplesSpec(teacher=TEACHER, bank=BANK))
    metrics = STAGES["metrics"]
    assert metrics.modules(metrics.spec(pairs=pairs)) == {"dmdpipe.copying.classes"}
    assert "dmdpipe.copying.classes" in metrics.code(metrics.spec(pairs=pairs)).modules
