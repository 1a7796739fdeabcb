"""Training a teacher: EDM's loss, what it learns, and that a killed training ends in the same bytes."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dmdpipe.artifacts.checkpoint import save_checkpoint
from dmdpipe.artifacts.leaving import signals_as_exit
from dmdpipe.diffusion import state as state_module
from dmdpipe.diffusion import training
from dmdpipe.diffusion.losses import edm_weight, weighted_squared_error
from dmdpipe.diffusion.state import TrainingState
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.diffusion.training import HISTORY_EVERY, train_denoiser, train_teacher
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.denoiser import Denoiser, build_network, zero_output_layer
from dmdpipe.specs.data import Gaussian, Moons
from dmdpipe.specs.diffusion import TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP

SMALL = MLP(width=16, depth=2, embedding=8)


class KilledError(Exception):
    pass


class Step:
    """What a training sees of a step: a folder for checkpoints, and someone to report to."""

    def __init__(self, folder, interrupt_at=None):
        self.resume = folder
        self.interrupt_at = interrupt_at
        self.done = []

    def progress(self, done, total):
        self.done.append(done)
        if done == self.interrupt_at:
            raise KilledError


def moons(n=200):
    angle = torch.linspace(0, 2 * math.pi, n)
    return 0.5 * torch.stack([angle.cos(), (2 * angle).sin()], dim=1)


def test_the_loss_weighs_the_networks_own_error_by_one():
    """λ(σ)·(D − x)² = (F − target)² with the target of EDM's equation 8: the weight cancels c_out."""
    network = build_network(SMALL, 3, seed=0).double()
    source = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 40, 3, generator=source, dtype=torch.float64)
    sigma = torch.randn(40, 1, generator=source, dtype=torch.float64).exp()
    noisy, total = x + sigma * noise, sigma**2 + 0.25
    target = (x - 0.25 / total * noisy) / (sigma * 0.5 / total.sqrt())
    answer = network(noisy / total.sqrt(), network.noise_features(sigma.log() / 4))
    loss, _ = weighted_squared_error(Denoiser(network)(noisy, sigma), x, edm_weight(sigma))
    assert_close(loss, ((answer - target) ** 2).mean())


def test_data_that_are_the_preconditionings_own_gaussian_cost_one():
    """For N(0, σ_data²) and F = 0 the denoiser is exact, and λ(σ) times the posterior variance is 1."""
    network = build_network(SMALL, 1, seed=0)
    zero_output_layer(network)
    source = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 100_000, 1, generator=source)
    sigma = (torch.randn(100_000, 1, generator=source) * 1.2 - 1.2).exp()
    loss, _ = weighted_squared_error(Denoiser(network)(0.5 * x + sigma * noise, sigma), 0.5 * x, edm_weight(sigma))
    assert loss.item() == pytest.approx(1, abs=0.03)


def test_a_teacher_starts_at_its_skip_connection():
    network = build_network(SMALL, 2, seed=0)
    zero_output_layer(network)
    x = torch.ones(4, 2)
    assert torch.equal(network(x, network.noise_features(torch.zeros(4, 1))), torch.zeros(4, 2))
    assert any(p.abs().max() > 0 for p in network.parameters())


def test_training_learns_the_denoiser_of_a_gaussian(tmp_path):
    """N(0.4, 0.1²), far from what the zero network answers; the best loss is known in closed form."""
    mean, variance = 0.4, 0.01
    data = mean + variance**0.5 * torch.randn(5000, 1, generator=torch.Generator().manual_seed(3))
    spec = TrainedScore(network=SMALL, steps=700, batch=256, learning_rate=3e-3, ema=0.99)
    network, losses = train_denoiser(spec, data, Step(tmp_path))
    denoiser = Denoiser(network)

    log_sigma = np.random.default_rng(0).normal(-1.2, 1.2, 100_000)
    level = np.exp(2 * log_sigma)
    best = ((level + 0.25) / (level * 0.25) * variance * level / (variance + level)).mean()
    assert losses[0] > 2 * best
    assert losses[-1].item() == pytest.approx(best, rel=0.15)
    for sigma in (0.05, 0.1, 0.3, 1.0):
        x = mean + (variance + sigma**2) ** 0.5 * torch.linspace(-1.5, 1.5, 31)[:, None]
        exact = mean + variance / (variance + sigma**2) * (x - mean)
        found = denoiser(x, torch.full((31, 1), sigma))
        assert (found - exact).square().mean().sqrt().item() < 0.02
    assert not any(p.requires_grad for p in network.parameters())


def test_the_teacher_is_the_average_of_the_weights(tmp_path, monkeypatch):
    """The average that is stored, redone from the weights after every step; a short one at the start."""
    spec = TrainedScore(network=SMALL, steps=12, batch=8, ema=0.6)
    seen = []
    step = Step(tmp_path)

    def look(state, iteration):
        seen.append((state.tensors["parameters"].clone(), state.tensors["average"].clone()))

    monkeypatch.setattr(TrainingState, "save_now_and_then", look)
    monkeypatch.setattr(training, "TOGETHER", 1)
    network, _ = train_denoiser(spec, moons(), step)
    average = seen[0][1]
    for i in range(1, 12):
        decay = min(0.6, (i + 1) / (i + 10))
        average = decay * average + (1 - decay) * seen[i][0]
        assert_close(average, seen[i][1])
    assert_close(torch.cat([p.flatten() for p in network.parameters()]), average)
    assert step.done == list(range(1, 13))


def test_the_rate_rises_over_the_warm_up(tmp_path, monkeypatch):
    from dmdpipe.diffusion.optimiser import FlatOptimiser

    rates = []
    original = FlatOptimiser.begin_steps
    monkeypatch.setattr(FlatOptimiser, "begin_steps", lambda self, some: rates.extend(some) or original(self, some))
    spec = TrainedScore(network=SMALL, steps=8, batch=4, learning_rate=1e-2, warmup=4)
    train_denoiser(spec, moons(), Step(tmp_path))
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01, 0.01, 0.01])


def trained(spec, step):
    network, losses = train_denoiser(spec, moons(), step)
    return b"".join(p.numpy().tobytes() for p in network.parameters()) + losses.numpy().tobytes()


@pytest.mark.parametrize("every", [1, 7])
def test_a_killed_training_ends_in_the_same_bytes(tmp_path, monkeypatch, every):
    """Killed twice; with a checkpoint every seven steps the work since the last one is done again.

    Steps that go to C together, as in the whole training here, are the steps one by one.
    """
    spec = TrainedScore(network=SMALL, steps=60, batch=16, warmup=20)
    whole = trained(spec, Step(tmp_path / "whole"))
    assert trained(TrainedScore(**{**spec.model_dump(), "seed": 1}), Step(tmp_path / "other")) != whole

    monkeypatch.setattr(training, "TOGETHER", 1)
    monkeypatch.setattr(TrainingState, "save_now_and_then", lambda state, i: state.save(i) if i % every == 0 else None)
    for interrupt_at, resumed_at in ((10, 1), (52, 9 // every * every + 1)):
        step = Step(tmp_path / "killed", interrupt_at)
        with pytest.raises(KilledError):
            trained(spec, step)
        assert step.done[0] == resumed_at
    last = Step(tmp_path / "killed")
    assert trained(spec, last) == whole
    assert last.done == list(range(51 // every * every + 1, 61))


@pytest.mark.parametrize(("together", "told_at"), [(1, 37), (16, 32), (16, 60)])
def test_a_training_that_is_told_to_end_saves_the_steps_that_it_was_in(tmp_path, monkeypatch, together, told_at):
    spec = TrainedScore(network=SMALL, steps=60, batch=16, warmup=20)
    whole = trained(spec, Step(tmp_path / "whole"))
    monkeypatch.setattr(training, "TOGETHER", together)
    told = Step(tmp_path / "told")
    told.progress = lambda done, total: signal.raise_signal(signal.SIGTERM) if done == told_at else None
    with pytest.raises(SystemExit) as ended, signals_as_exit():
        trained(spec, told)
    assert ended.value.code == 128 + signal.SIGTERM
    last = Step(tmp_path / "told")
    assert trained(spec, last) == whole
    assert (last.done[0] if last.done else 60 + together) == told_at + together


def test_a_state_comes_back_with_its_random_streams(tmp_path):
    source, again = Stream(4), Stream(4)
    tensor = torch.arange(3.0)
    state = TrainingState(tmp_path / "state", {"x": tensor, "n": torch.tensor([7]), "source": source.position})
    assert state.resume(12) == 0
    first = source.normal(5)
    state.save(12)
    expected = source.normal(5)

    held = torch.zeros(3)
    fresh = TrainingState(
        tmp_path / "state", {"x": held, "n": torch.zeros(1, dtype=torch.int64), "source": again.position}
    )
    assert fresh.resume(12) == 12
    assert torch.equal(held, tensor) and fresh.tensors["n"].item() == 7
    assert torch.equal(again.normal(5), expected) and not torch.equal(first, expected)


STRANGE = {
    "another shape": (lambda arrays, meta: arrays.update({"x": np.zeros(4, np.float32)}), "'x'"),
    "another type": (lambda arrays, meta: arrays.update({"x": np.zeros(3)}), "'x'"),
    "a tensor less": (lambda arrays, meta: arrays.pop("n"), "tensors are not"),
    "a tensor more": (lambda arrays, meta: arrays.update({"y": np.zeros(3)}), "tensors are not"),
    "a stream of other kind": (lambda arrays, meta: arrays.update({"source": np.zeros(5056, np.uint8)}), "'source'"),
    "no stream": (lambda arrays, meta: arrays.pop("source"), "tensors are not"),
    "no iteration": (lambda arrays, meta: meta.clear(), "iterations"),
    "a negative iteration": (lambda arrays, meta: meta.update(iteration=-1), "iterations"),
    "beyond the end": (lambda arrays, meta: meta.update(iteration=13), "iterations"),
    "half an iteration": (lambda arrays, meta: meta.update(iteration=1.5), "iterations"),
    "no number": (lambda arrays, meta: meta.update(iteration="1"), "iterations"),
    "a large file": (lambda arrays, meta: arrays.update({"y": np.zeros(2**20)}), "more than"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_checkpoint_of_another_training_counts_as_damaged_and_changes_nothing(tmp_path, capsys, case):
    change, says = STRANGE[case]
    tensors = {"x": torch.arange(3.0), "n": torch.tensor([7]), "source": Stream(4).position}
    arrays = {name: tensor.numpy().copy() + 1 for name, tensor in tensors.items()}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    meta = {"iteration": 12}
    change(arrays, meta)
    save_checkpoint(tmp_path, arrays, meta)
    assert TrainingState(tmp_path, tensors).resume(12) == 0
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and says in line
    assert all(torch.equal(tensors[name], value) for name, value in before.items())
    assert not list(tmp_path.iterdir())


def test_checkpoints_are_written_now_and_then(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(state_module, "time", clock)
    saved = []
    monkeypatch.setattr(state_module, "save_checkpoint", lambda folder, arrays, meta: saved.append(meta["iteration"]))
    state = TrainingState(tmp_path, {})
    for iteration in range(1, 11):
        clock.now += state_module.SECONDS_BETWEEN_CHECKPOINTS / 4
        state.save_now_and_then(iteration)
    assert saved == [4, 8]


class TeacherStep(Step):
    """A step with a parent's data and a place for what is written."""

    def __init__(self, folder, spec, data):
        super().__init__(folder)
        self.spec, self.devices, self.data, self.written = spec, 1, data, {}

    def read_tensors(self, role, name):
        assert (role, name) == ("data", "data.safetensors")
        return self.data

    def write_tensors(self, name, tensors):
        self.written[name] = tensors

    write_table = write_tensors


def test_the_step_stores_a_teacher_that_loads_again(tmp_path):
    spec = TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL, steps=2 * HISTORY_EVERY, batch=8))
    step = TeacherStep(tmp_path, spec, {"train": moons().numpy()})
    train_teacher(step)
    loaded = load_teacher(spec, step.written["model.safetensors"])
    network, losses = train_denoiser(spec.score, moons(), Step(tmp_path / "again"))
    x, sigma = moons(5), torch.linspace(0.1, 2, 5)[:, None]
    assert torch.equal(loaded(x, sigma), Denoiser(network)(x, sigma))
    assert not any(p.requires_grad for p in loaded.parameters())
    history = step.written["history.parquet"]
    assert history["step"].tolist() == [HISTORY_EVERY, 2 * HISTORY_EVERY]
    assert history["loss"].tolist() == pytest.approx(losses.tolist())
    double = load_teacher(spec, step.written["model.safetensors"], torch.float64)
    assert_close(double(x.double(), sigma.double()).float(), loaded(x, sigma), atol=1e-5, rtol=1e-4)


def test_an_exact_teacher_is_the_mixture_of_its_data(tmp_path):
    spec = TeacherSpec(data=Gaussian(dim=2), score={"kind": "exact"})
    tensors = {
        "train": np.zeros((4, 2), np.float32),
        "exact.weights": np.ones(1),
        "exact.means": np.zeros((1, 2)),
        "exact.basis": np.eye(2),
        "exact.variances": np.array([[4.0, 1.0]]),
    }
    step = TeacherStep(tmp_path, spec, tensors)
    train_teacher(step)
    assert step.written["model.safetensors"].keys() == tensors.keys() - {"train"}
    assert len(step.written["history.parquet"]) == 0
    answer = load_teacher(spec, step.written["model.safetensors"])(torch.ones(1, 2), torch.ones(1, 1))
    assert_close(answer, torch.tensor([[0.8, 0.5]]))


def test_a_teacher_loads_no_weights_of_another_shape():
    spec = TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL))
    state = build_network(SMALL, 3, seed=0).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_teacher(spec, {name: value.numpy() for name, value in state.items()})


def test_the_last_entry_of_the_history_is_a_mean_too() -> None:
    spec = TrainedScore(network=MLP(width=8, depth=1, embedding=4), steps=60, batch=4096, learning_rate=1e-9)
    step = SimpleNamespace(resume=Path("/nonexistent"), progress=lambda done, total: None)
    _, losses = train_denoiser(spec, torch.randn(500, 2, generator=torch.Generator().manual_seed(0)), step)
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.2)
