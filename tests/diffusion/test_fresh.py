"""Fresh samples: of the law that is asked for, and no finite data set behind them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmdpipe.artifacts.plan import plan
from dmdpipe.diffusion.fresh import FreshSamples
from dmdpipe.diffusion.training import train_teacher
from dmdpipe.kernels.noise import Stream
from dmdpipe.specs.data import Mixture
from dmdpipe.specs.diffusion import TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP

TURN = np.array([[0.6, -0.8], [0.8, 0.6]])
MIXTURE = {
    "exact.weights": np.array([0.2, 0.5, 0.3]),
    "exact.means": np.array([[-9.0, 0.0], [0.0, 5.0], [9.0, 0.0]]),
    "exact.basis": TURN,
    "exact.variances": np.array([[1.0, 0.25], [0.09, 0.04], [0.5, 2.0]]),
}
SMALL = MLP(width=8, depth=1, embedding=4)


def test_weights_means_and_covariances_are_those_of_the_mixture() -> None:
    x = FreshSamples(MIXTURE).draw(60_000, Stream(1), Stream(2)).numpy()
    mode = np.linalg.norm(x[:, None] - MIXTURE["exact.means"], axis=2).argmin(axis=1)
    for j, weight in enumerate(MIXTURE["exact.weights"]):
        mine = x[mode == j]
        assert len(mine) / len(x) == pytest.approx(weight, abs=0.01)
        np.testing.assert_allclose(mine.mean(axis=0), MIXTURE["exact.means"][j], atol=0.05)
        covariance = TURN @ np.diag(MIXTURE["exact.variances"][j]) @ TURN.T
        np.testing.assert_allclose(np.cov(mine.T), covariance, atol=0.05)


def test_no_sample_comes_twice_and_streams_decide() -> None:
    samples, streams = FreshSamples(MIXTURE), (Stream(1), Stream(2))
    batches = [samples.draw(500, *streams) for _ in range(4)]
    assert len(np.unique(torch.cat(batches).numpy(), axis=0)) == 2_000
    assert torch.equal(FreshSamples(MIXTURE).draw(500, Stream(1), Stream(2)), batches[0])


class TeacherStep:
    """What the step of a teacher sees, in memory."""

    def __init__(self, folder: Path, samples: str, train: np.ndarray):
        score = TrainedScore(network=SMALL, steps=20, batch=8, samples=samples)
        self.spec = SimpleNamespace(score=score)
        self.devices = 1
        self.resume = folder
        self.arrays = {**MIXTURE, "train": train.astype(np.float32)}
        self.written: dict = {}

    def read_tensors(self, role: str, name: str) -> dict:
        return self.arrays

    def write_tensors(self, name: str, tensors: dict) -> None:
        self.written[name] = tensors

    write_table = write_tensors

    def progress(self, done: int, total: int) -> None:
        pass


def trained(folder: Path, samples: str, train: np.ndarray) -> dict:
    step = TeacherStep(folder, samples, train)
    train_teacher(step)
    return step.written["model.safetensors"]


def test_a_teacher_of_fresh_samples_does_not_read_the_pool(tmp_path: Path) -> None:
    pools = [np.random.default_rng(seed).standard_normal((50, 2)) for seed in (0, 1)]
    fresh = [trained(tmp_path / f"fresh{i}", "fresh", pool) for i, pool in enumerate(pools)]
    of_pool = [trained(tmp_path / f"pool{i}", "pool", pool) for i, pool in enumerate(pools)]
    assert all(np.array_equal(value, fresh[1][name]) for name, value in fresh[0].items())
    assert any(not np.array_equal(value, of_pool[1][name]) for name, value in of_pool[0].items())


def test_fresh_samples_are_the_code_of_their_own_teachers_alone() -> None:
    pool, fresh = (
        plan("teacher", TeacherSpec(data=Mixture(), score=TrainedScore(samples=samples)))
        for samples in ("pool", "fresh")
    )
    assert "dmdpipe.diffusion.fresh" in fresh.code.modules
    assert "dmdpipe.diffusion.fresh" not in pool.code.modules
    assert pool.digest != fresh.digest
