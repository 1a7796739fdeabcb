"""A killed distillation, started again, ends in the same bytes; and the bytes depend on the seed alone."""

from __future__ import annotations

import signal
from random import Random

import pytest
import torch

from dmdpipe.artifacts.leaving import signals_as_exit
from dmdpipe.data.prepare import prepare
from dmdpipe.diffusion import state
from dmdpipe.diffusion.state import TrainingState
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill import loop
from dmdpipe.distill.loop import distil
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.denoiser import build_network
from dmdpipe.specs.data import Gaussian, Moons
from dmdpipe.specs.diffusion import TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP
from dmdpipe.specs.student import StudentSpec

SMALL = MLP(width=8, depth=1, embedding=4)
TRAINED = TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL))
EXACT = TeacherSpec(data=Gaussian(dim=3, n_train=4, n_held_out=1), score={"kind": "exact"})
QUICK = {"learning_rate": 1e-2, "warmup": 4}
LEARNED = {"generator": QUICK, "fake_score": QUICK}
POOL = {"regression_weight": 0.25, "regression_pairs": 64}
DATA = Stream(1).normal(40, 2)
PAIRED = Stream(2).normal(12, 2)
PARTICLES = {"network": {"kind": "particles", "count": 20}, "bank": {"dim": 2, "n_paired": 12, "n_held_out": 4}}
SPECS = {
    "dmd2": {"recipe": {"name": "dmd2", **LEARNED}},
    "fastgen": {"recipe": {"name": "fastgen", **LEARNED, "ema": 0.8}},
    "dmd2-gan": {"recipe": {"name": "dmd2-gan", **LEARNED}},
    "fastgen-gan": {"recipe": {"name": "fastgen-gan", **LEARNED, "ema": 0.8}},
    "gan with regression": {"recipe": {"name": "gan", **LEARNED, **POOL}},
    "dmd2 with regression": {"recipe": {"name": "dmd2", **LEARNED, **POOL}},
    "regression": {"recipe": {"name": "regression", "regression_pairs": 64}},
    "kd-rotated": {"init": {"kind": "kd-rotated", "regression_steps": 3}, "recipe": {**LEARNED, **POOL}},
    "lagged fake": {"recipe": {**LEARNED, "fake_lag": 2, "fake_start": "fresh"}},
    "noise in the score": {"recipe": {**LEARNED, "score_noise": 0.5}},
    "fake of samples": {"recipe": {**LEARNED, "fake": "samples", "fake_samples": 16}},
    "kd, narrower": {
        "network": MLP(width=4, depth=2, embedding=4),
        "init": {"kind": "kd", "regression_steps": 3},
        "recipe": {**LEARNED, **POOL},
    },
    "particles": {**PARTICLES, "recipe": {"name": "dmd2", **LEARNED}},
    "particles, fastgen-gan": {**PARTICLES, "recipe": {"name": "fastgen-gan", **LEARNED, "ema": 0.8}},
    "three steps": {"sampling_steps": 3, "recipe": {"name": "dmd2", **LEARNED}},
    "linear": {
        "teacher": EXACT,
        "network": {"kind": "linear"},
        "dtype": "float64",
        "recipe": {"fake": "oracle", "generator_every": 1, "generator": {"kind": "sgd", **QUICK, "decay": "cosine"}},
    },
}


class KilledError(Exception):
    pass


class Step:
    """A step that is killed at its n-th generator step of this process."""

    def __init__(self, folder, steps=None):
        self.resume, self.steps, self.calls = folder, steps, 0

    def progress(self, done, total):
        assert 1 <= done <= total
        self.calls += 1
        if self.calls == self.steps:
            raise KilledError


class ToldStep(Step):
    """One that is told to end instead."""

    def progress(self, done, total):
        try:
            super().progress(done, total)
        except KilledError:
            signal.raise_signal(signal.SIGTERM)


def student_spec(name, **fields):
    fields = {"teacher": TRAINED, "network": SMALL, "batch": 8, "generator_steps": 16, "snapshots": 6} | fields
    return StudentSpec(**fields | SPECS[name])


def teacher(spec):
    if spec.teacher == EXACT:
        tensors, _ = prepare(EXACT.data)
    else:
        tensors = {name: value.numpy() for name, value in build_network(SMALL, 2, seed=77).state_dict().items()}
    return load_teacher(spec.teacher, tensors, getattr(torch, spec.dtype))


def trained(spec, step=None, together=1):
    """Return all bytes that a distillation returns; with a step, it goes so many rounds at once."""
    with pytest.MonkeyPatch.context() as patch:
        if step:
            patch.setattr(loop, "rounds_together", lambda rounds: together)
        snapshots, history = distil(spec, teacher(spec), step, data=DATA, paired=PAIRED)
    return {name: value.numpy().tobytes() for name, value in snapshots.items()} | {"history": history.numpy().tobytes()}


def test_a_training_that_nobody_watches_is_the_same(tmp_path):
    spec = student_spec("dmd2")
    assert trained(spec, Step(tmp_path)) == trained(spec)


@pytest.mark.parametrize("name", SPECS)
def test_a_killed_distillation_ends_in_the_same_bytes(tmp_path, monkeypatch, name):
    """16 generator steps, killed in the 3rd, then in the 5th and in the 6th after the checkpoint."""
    spec = student_spec(name)
    whole = trained(spec)
    monkeypatch.setattr(state, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    done = 0
    for steps in (3, 5, 6):
        with pytest.raises(KilledError):
            trained(spec, Step(tmp_path, steps))
        done += steps - 1  # the one in which it died is not in the checkpoint
    last = Step(tmp_path)
    assert trained(spec, last) == whole
    assert last.calls == 16 - done


@pytest.mark.parametrize("name", ["dmd2", "fastgen"])
def test_rounds_that_go_together_end_where_a_snapshot_is_due_and_are_killed_as_one(tmp_path, monkeypatch, name):
    """40 generator steps, three snapshots: 1, 16, 16 and 7 at once, the third time killed."""
    spec = student_spec(name, generator_steps=40, snapshots=3)
    whole = trained(spec)
    assert trained(spec, Step(tmp_path / "alone")) == whole
    monkeypatch.setattr(state, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    with pytest.raises(KilledError):
        trained(spec, Step(tmp_path, 3), together=16)
    last = Step(tmp_path)
    assert trained(spec, last) == whole
    assert last.calls == 40 - 17


@pytest.mark.parametrize("name", ["dmd2", "fastgen"])
def test_work_since_the_last_checkpoint_is_done_again(tmp_path, monkeypatch, name):
    spec = student_spec(name)
    whole = trained(spec)
    monkeypatch.setattr(TrainingState, "save_now_and_then", lambda s, i: s.save(i) if i == 4 else None)
    for _ in range(2):
        with pytest.raises(KilledError):
            trained(spec, Step(tmp_path, 10))
    last = Step(tmp_path)
    assert trained(spec, last) == whole
    assert last.calls == 16 - 4


def test_a_training_killed_before_its_first_checkpoint_starts_over(tmp_path):
    spec = student_spec("dmd2")
    with pytest.raises(KilledError):
        trained(spec, Step(tmp_path, 5))
    assert not list(tmp_path.iterdir())
    last = Step(tmp_path)
    assert trained(spec, last) == trained(spec)
    assert last.calls == 16


@pytest.mark.parametrize("name", SPECS)
def test_the_seed_decides_everything(name):
    spec = student_spec(name)
    first = trained(spec)
    torch.manual_seed(123)
    torch.randn(7)
    assert trained(spec) == first
    other = trained(student_spec(name, seed=1))
    assert other["history"] != first["history"]


def test_a_longer_training_begins_like_a_shorter_one():
    """At a constant rate, snapshots at the same generator step are the same bytes."""
    short, long = (student_spec("dmd2", generator_steps=steps, snapshots=1000) for steps in (4, 9))
    few, many = (distil(spec, teacher(spec))[0] for spec in (short, long))
    for name, value in few.items():
        assert torch.equal(value, many[name][:5]), name


@pytest.mark.parametrize("name", SPECS)
def test_a_distillation_that_is_told_to_end_saves_the_step_that_it_was_in(tmp_path, name):
    """Nothing was saved before, so all that is not done again was saved then."""
    spec = student_spec(name)
    whole = trained(spec)
    steps = Random(name).randint(1, 16)
    with pytest.raises(SystemExit) as ended, signals_as_exit():
        trained(spec, ToldStep(tmp_path, steps))
    assert ended.value.code == 128 + signal.SIGTERM
    last = Step(tmp_path)
    assert trained(spec, last) == whole
    assert last.calls == 16 - steps
