"""Students whose batches are cut into shards: the same students to rounding, and all draws those of whole batches."""

from __future__ import annotations

import pytest
import torch
from killed_step import KilledError, Step
from pretended_gpu import pretended_gpu
from torch.testing import assert_close

from dmdpipe.diffusion import state
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill.batches import RandomBatches
from dmdpipe.distill.loop import distil
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.denoiser import build_network
from dmdpipe.specs.data import Digits
from dmdpipe.specs.diffusion import TeacherSpec, TrainedScore
from dmdpipe.specs.network import UNet
from dmdpipe.specs.student import StudentSpec

TINY = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=())
TEACHER = TeacherSpec(data=Digits(side=4), score=TrainedScore(network=TINY))
# Not Adam: it would magnify the rounding of small gradients.
PLAIN = {"kind": "sgd", "learning_rate": 1e-2, "warmup": 0, "weight_decay": 0}
LEARNED = {"generator": PLAIN, "fake_score": PLAIN, "generator_every": 3}
DATA = Stream(1).normal(40, 16) / 2
RECIPES = {
    "dmd2-gan with regression": {"name": "dmd2-gan", **LEARNED, "regression_weight": 0.5, "regression_pairs": 6},
    "fastgen-gan, lagged": {"name": "fastgen-gan", **LEARNED, "fake_lag": 1, "ema": 0.5, "score_noise": 0.3},
    "three steps": {"name": "dmd2", **LEARNED},
}


def student_spec(name: str, **fields) -> StudentSpec:
    steps = 3 if name == "three steps" else 1
    given = {"teacher": TEACHER, "network": TINY, "batch": 4, "generator_steps": 3, "snapshots": 3, "dtype": "float64"}
    return StudentSpec(**given | {"recipe": RECIPES[name], "sampling_steps": steps} | fields)


def trained(spec: StudentSpec, step=None) -> dict[str, torch.Tensor]:
    weights = {name: value.numpy() for name, value in build_network(TINY, 16, seed=77).state_dict().items()}
    snapshots, history = distil(spec, load_teacher(TEACHER, weights, getattr(torch, spec.dtype)), step, data=DATA)
    return {**snapshots, "history": history}


@pytest.mark.parametrize("name", RECIPES)
def test_a_student_in_shards_is_that_of_whole_batches_to_rounding(name: str) -> None:
    whole, cut = trained(student_spec(name)), trained(student_spec(name, shards=4))
    for key, value in whole.items():
        assert_close(cut[key], value, rtol=1e-9, atol=1e-12, equal_nan=True)
    weights = [value for key, value in whole.items() if key not in ("history", "generator_step")]
    assert max(float((value[-1] - value[0]).abs().max()) for value in weights) > 1e-6


@pytest.mark.parametrize("steps", [1, 3])
def test_a_part_of_a_batch_is_drawn_as_that_part_of_the_whole(steps: int) -> None:
    spec = student_spec("three steps").model_copy(update={"sampling_steps": steps})

    def drawn(batches: RandomBatches) -> list[torch.Tensor]:
        rows, sigma, noise = batches.diffusion("dm")
        return [batches.latent(), *batches.between(), rows, sigma, noise, batches.rows_of("adversarial-data", 40)]

    whole, cut, second = (RandomBatches(spec, 16) for _ in range(3))
    for _ in range(3):
        expected = drawn(whole)
        parts = [drawn(cut) for _ in cut.cut([slice(0, 1), slice(1, 4)])]
        assert all(torch.equal(torch.cat(both), one) for *both, one in zip(*parts, expected, strict=True))
        (last,) = (drawn(second) for _ in second.cut([slice(3, 4)]))
        assert all(torch.equal(part, one[3:]) for part, one in zip(last, expected, strict=True))
    assert torch.equal(cut.latent(), whole.latent())


def test_a_killed_training_in_shards_ends_in_the_same_bytes(tmp_path, monkeypatch) -> None:
    spec = student_spec("dmd2-gan with regression", shards=2)
    whole = trained(spec)
    monkeypatch.setattr(state, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    with pytest.raises(KilledError):
        trained(spec, Step(tmp_path, 2))
    again = trained(spec, Step(tmp_path))
    assert all(torch.equal(value.nan_to_num(), again[key].nan_to_num()) for key, value in whole.items())


def test_a_student_in_shards_on_a_gpu_is_the_same() -> None:
    here = trained(student_spec("three steps", shards=2))
    with pretended_gpu():
        there = trained(student_spec("three steps", shards=2, device="cuda"))
    for key, value in here.items():
        assert_close(there[key], value, rtol=1e-6, atol=1e-9, equal_nan=True)
