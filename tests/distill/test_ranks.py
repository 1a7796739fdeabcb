"""Processes that share a training: the same bytes for any number of them, also after one was killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from dmdpipe.artifacts.dag import steps_below
from dmdpipe.artifacts.plan import PlannedStep, plan
from dmdpipe.artifacts.step import Step, run_step
from dmdpipe.diffusion import ranks, state
from dmdpipe.errors import UserError
from dmdpipe.specs.data import Digits
from dmdpipe.specs.diffusion import TeacherSpec, TrainedScore
from dmdpipe.specs.network import UNet
from dmdpipe.specs.student import StudentSpec

pytestmark = pytest.mark.slow

TINY = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(1,))
QUICK = {"learning_rate": 1e-3, "warmup": 0}
RECIPE = {"name": "dmd2-gan", "generator": QUICK, "fake_score": QUICK, "generator_every": 2}
LAST = 6  # generator steps of a student's training


def steps(device: str = "cpu") -> dict[str, PlannedStep]:
    shared = {"shards": 4, "batch": 8, "device": device}
    score = TrainedScore(network=TINY, steps=6, **shared)
    teacher = TeacherSpec(data=Digits(side=4, n_train=100, n_held_out=20), score=score)
    student = StudentSpec(teacher=teacher, network=TINY, generator_steps=LAST, snapshots=3, recipe=RECIPE, **shared)
    return {step.stage: step for step in steps_below(plan("student", student))}


def made(results: Path, stage: str, devices: int, device: str = "cpu") -> dict[str, str]:
    """Run a step; return the digest of each of its files."""
    folder = run_step(steps(device)[stage].canonical(), results, devices)
    payload = json.loads((folder / "manifest.json").read_text())["result"]["payload"]
    return {name: described["sha256"] for name, described in payload.items()}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    made(tmp_path, "data", 1)
    return tmp_path


@pytest.fixture
def disturbed(monkeypatch):
    """Have a process sent a signal in the third generator step, given which."""
    started: list = []
    start, progress = ranks.Followers.__init__, Step.progress
    told: list[int] = []

    def noted(followers: ranks.Followers, step: Step, folder: Path) -> None:
        start(followers, step, folder)
        started[:] = followers.processes

    def disturb(number: int, to: int) -> tuple[list, list[int]]:
        def progressed(step: Step, done: int, total: int) -> None:
            progress(step, done, total)
            told.append(done)
            if len(told) == 3:
                os.kill(started[to - 1].pid if to else os.getpid(), number)

        monkeypatch.setattr(Step, "progress", progressed)
        return started, told

    monkeypatch.setattr(ranks.Followers, "__init__", noted)
    return disturb


def test_one_two_and_four_processes_make_the_same_bytes(results: Path) -> None:
    for stage in ("teacher", "student"):
        alone = made(results, stage, 1)
        assert made(results, stage, 2) == alone
        assert made(results, stage, 4) == alone


def test_a_killed_process_ends_the_step_in_one_line_and_any_number_of_them_goes_on(
    results: Path, disturbed, monkeypatch
) -> None:
    monkeypatch.setattr(state, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    made(results, "teacher", 1)
    alone = made(results, "student", 1)
    started, told = disturbed(signal.SIGKILL, to=1)
    line = r"^\S+: process 2 of the 2 that share this training was killed by SIGKILL; run again, it goes on"
    with pytest.raises(UserError, match=line):
        made(results, "student", 2)
    assert len(started) == 1 and started[0].returncode is not None
    assert made(results, "student", 1) == alone
    assert len(told) < 3 + LAST  # those before the last checkpoint were not made again


def test_a_stopped_step_saves_its_state_takes_its_processes_with_it_and_goes_on(results: Path, disturbed) -> None:
    made(results, "teacher", 1)
    alone = made(results, "student", 1)
    started, told = disturbed(signal.SIGTERM, to=0)
    with pytest.raises(SystemExit) as ended:
        made(results, "student", 2)
    assert ended.value.code == 128 + signal.SIGTERM
    assert len(started) == 1 and started[0].returncode is not None
    assert made(results, "student", 4) == alone
    assert len(told) == LAST  # the third was saved before all ended


def test_what_a_process_says_before_it_ends_is_told(results: Path, monkeypatch) -> None:
    follow = Step.to_follow
    monkeypatch.setattr(
        Step, "to_follow", lambda step, rank, meeting: {**follow(step, rank, meeting), "results": "/nowhere"}
    )
    with pytest.raises(UserError, match=r"process 2 of the 2 .* ended with status 1: /nowhere/data/.*"):
        made(results, "teacher", 2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_one_gpu_and_two_make_the_same_bytes(results: Path) -> None:
    for stage in ("teacher", "student"):
        assert made(results, stage, 2, "cuda") == made(results, stage, 1, "cuda")
