"""Killed trainings: they go on where they were and end in the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.workflow

# Does one job after another, each in a process of its own that is killed in the middle if the job says so. They are
# forked, because importing torch takes longer than everything else.
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
import pandas, pyarrow.parquet, sklearn.datasets
from dmdpipe.artifacts.plan import plan
from dmdpipe.artifacts.step import Step, run_step
from dmdpipe.diffusion import state, training
from dmdpipe.distill import loop
from dmdpipe.specs.student import StudentSpec

state.SECONDS_BETWEEN_CHECKPOINTS = 0.0
training.TOGETHER = 4
loop.rounds_together = lambda rounds: 1
jobs = json.loads(sys.argv[1])
for job in jobs:
    plan("student", StudentSpec.model_validate(job["student"])).canonical()  # reads the whole library, once

def work(job):
    progress = Step.progress

    def progress_or_die(step, done, total):
        progress(step, done, total)
        if [step.stage.name, done] == job["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)

    Step.progress = progress_or_die
    student = plan("student", StudentSpec.model_validate(job["student"]))
    for step in (student.parents["data"], student.parents["teacher"], student):
        if not Path(job["results"], step.folder, "manifest.json").exists():
            run_step(step.canonical(), job["results"])

for job in jobs:
    child = os.fork()
    if child == 0:
        work(job)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (-signal.SIGKILL if job["kill"] else 0), f"{job} ended with {status}"
"""

TEACHER = {
    "data": {"family": "digits", "side": 2, "n_train": 300, "n_held_out": 50},
    "score": {
        "kind": "trained",
        "network": {"kind": "mlp", "width": 16, "depth": 1},
        "steps": 30,
        "batch": 32,
        "warmup": 5,
    },
}
STUDENT = {
    "teacher": TEACHER,
    "network": {"kind": "mlp", "width": 16, "depth": 1},
    "generator_steps": 12,
    "batch": 32,
    "snapshots": 4,
}
LINEAR = {
    "teacher": {"data": {"family": "gaussian", "dim": 3, "n_train": 50, "n_held_out": 5}, "score": {"kind": "exact"}},
    "network": {"kind": "linear"},
    "recipe": {"fake": "oracle", "generator_every": 1, "generator": {"kind": "sgd", "learning_rate": 0.1}},
    "generator_steps": 12,
    "batch": 32,
    "dtype": "float64",
}
CASES: dict[str, tuple[dict[str, Any], list[tuple[str, int]]]] = {
    "dmd2": (STUDENT, [("teacher", 12), ("student", 2), ("student", 7)]),
    "fastgen with an average": ({**STUDENT, "recipe": {"name": "fastgen", "ema": 0.5}}, [("student", 6)]),
    "regression": (
        {**STUDENT, "recipe": {"name": "regression", "regression_pairs": 64}, "init": {"kind": "random-head"}},
        [("student", 6)],
    ),
    "kd-rotated": ({**STUDENT, "init": {"kind": "kd-rotated", "regression_steps": 5}}, [("student", 6)]),
    "oracle": (LINEAR, [("student", 6)]),
}


def go(results: Path, student: dict[str, Any], *kills: tuple[str, int] | None) -> None:
    """Make a student and its parents, as far as they are not there: once for each kill, dying there; None goes on."""
    jobs = json.dumps([{"results": str(results), "student": student, "kill": kill} for kill in kills])
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, jobs]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120)
    assert done.returncode == 0, done.stderr


def published(results: Path) -> dict[str, bytes]:
    folders = [manifest.parent for manifest in results.rglob("manifest.json")]
    files = [path for folder in folders for path in folder.iterdir() if path.name != "run.json"]
    return {str(path.relative_to(results)): path.read_bytes() for path in files}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_training_ends_in_the_same_bytes(tmp_path: Path, case: str) -> None:
    student, kills = CASES[case]
    go(tmp_path / "killed", student, *kills)
    assert list((tmp_path / "killed/.resume").rglob("checkpoint.safetensors"))
    assert not list((tmp_path / "killed/students").glob("*"))
    go(tmp_path / "killed", student, None)
    go(tmp_path / "whole", student, None)
    whole, killed = published(tmp_path / "whole"), published(tmp_path / "killed")
    assert len(whole) == 9 and whole.keys() == killed.keys()
    assert [name for name in whole if whole[name] != killed[name]] == []
    runs = (tmp_path / "killed").rglob("run.json")
    resumed = {path.parents[1].name: json.loads(path.read_text())["resumed"] for path in runs}
    assert resumed == {"data": False, "teachers": ("teacher", 12) in kills, "students": True}
    assert not list((tmp_path / "killed/.resume").rglob("*.safetensors"))


def test_a_checkpoint_of_another_spec_or_code_is_left_alone(tmp_path: Path) -> None:
    go(tmp_path, STUDENT, ("student", 6))
    go(tmp_path, {**STUDENT, "seed": 1}, None)
    (run,) = (tmp_path / "students").glob("*/run.json")
    assert json.loads(run.read_text())["resumed"] is False
    assert list((tmp_path / ".resume").rglob("checkpoint.safetensors"))


def test_a_run_that_was_killed_goes_on_when_it_is_started_again(unfinished: Any) -> None:
    """All processes of the run are killed at once, as by a machine that stops."""
    # Long enough to be caught in the act, and with checkpoints all the time.
    constant = "SECONDS_BETWEEN_CHECKPOINTS = "
    unfinished.checkout.edit("src/dmdpipe/diffusion/state.py", f"{constant}15.0", f"{constant}0.2")
    unfinished.checkout.edit("config/scales/tiny.yaml", "student.generator_steps: 5", "student.generator_steps: 4000")
    unfinished.checkout.edit("config/studies/dimension.yaml", '["4", "16"]', '["4"]')
    dmdpipe = str(Path(sys.executable).with_name("dmdpipe"))
    variables = {**os.environ, "PYTHONPATH": str(unfinished / "src"), "OMP_NUM_THREADS": "1"}
    command = [dmdpipe, "run", "--config", "scale=tiny", "--cores", "2", "study_dimension"]
    with (unfinished / "output").open("w") as output:
        running = subprocess.Popen(
            command, cwd=unfinished.checkout.folder, env=variables, stdout=output, stderr=output, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 200
            while not student_checkpoints(unfinished):
                assert running.poll() is None and time.monotonic() < deadline, (unfinished / "output").read_text()
                time.sleep(0.05)
        finally:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    assert not list((unfinished / "results/students").rglob("manifest.json"))
    unfinished.run()
    (run,) = (unfinished / "results/students").glob("*/run.json")
    assert json.loads(run.read_text())["resumed"] is True
    killed = unfinished.published()
    whole = unfinished.checkout.python(
        "from dmdpipe.artifacts.dag import plan_study, steps_below\n"
        + "from dmdpipe.artifacts.step import run_step\n"
        + "for step in steps_below(plan_study('dimension', 'tiny').evidence): run_step(step.canonical(), 'whole')"
    )
    assert whole.returncode == 0, whole.stderr
    assert killed == published(unfinished / "whole")


def student_checkpoints(small: Any) -> list[Path]:
    from dmdpipe.artifacts.tensors import decode_tensors

    found = []
    for path in (small / "results/.resume").glob("*/checkpoint.safetensors"):
        try:
            if "snapshots" in decode_tensors(path.read_bytes(), str(path)):
                found.append(path)
        except FileNotFoundError:  # its step has just ended
            continue
    return found
