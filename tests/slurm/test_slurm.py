"""Runs whose jobs go through a real SLURM: the same bytes as on one machine, whatever happens to jobs and controller."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import Cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from toy_study import SECONDS, Tree, new_tree, published

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

PROFILE = ("run", "--profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "1")
# A student that can be caught in the act, and leaves a checkpoint all the time.
LONGER = (SECONDS, "student.generator_steps: 4", "student.generator_steps: 4000")
CHECKPOINTS = ("src/dmdpipe/diffusion/state.py", "SECONDS_BETWEEN_CHECKPOINTS = 15.0", "SECONDS_BETWEEN_CHECKPOINTS = 0.2")
PATIENCE = 200


@dataclass
class Run:
    """A run on SLURM that goes on while the test does something to it."""

    tree: Tree
    process: subprocess.Popen[str]
    output: Path

    def wait(self) -> str:
        """Wait for its end, which must be a good one; return what it said."""
        status = self.process.wait(PATIENCE)
        assert status == 0, self.output.read_text()
        return self.output.read_text()

    def wait_until(self, happened: Callable[[], Any]) -> Any:
        """Wait for something to happen while it runs, and return that."""
        deadline = time.monotonic() + PATIENCE
        while not (found := happened()):
            assert self.process.poll() is None and time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)
        return found


@pytest.fixture(scope="module")
def local(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, new_checkout: Callable[[Path], Any]) -> Tree:
    """The toy study, run on this machine without SLURM. Look, but change nothing."""
    tree = new_tree(new_checkout(tmp_path_factory.mktemp("local") / "checkout"), cells=("digits",), pages=())
    for path, old, new in (LONGER, CHECKPOINTS):
        tree.checkout.edit(path, old, new)
    done = tree.checkout.dmdpipe("run", "--cores", "2", "study_cells")
    assert done.returncode == 0, done.stdout + done.stderr
    return tree


def copy_of(local: Tree, target: Path, *stages: str) -> Tree:
    """A checkout in which these stages have run, on this machine."""
    ignored = shutil.ignore_patterns(".snakemake", "results", "__pycache__")
    shutil.copytree(local.checkout.folder, target, ignore=ignored)
    for stage in stages:
        shutil.copytree(local / "results" / stage, target / "results" / stage)
    return Tree(type(local.checkout)(target))


def manifest_of(local: Tree, stage: str) -> str:
    """The manifest of the one step of a stage, as a target."""
    (folder,) = (local / "results" / stage).iterdir()
    return f"results/{stage}/{folder.name}/manifest.json"


def start(tree: Tree, *arguments: str) -> Run:
    command = [str(Path(sys.executable).with_name("dmdpipe")), *PROFILE, *arguments]
    output = tree / f"output-{time.monotonic_ns()}"
    with output.open("w") as file:
        process = subprocess.Popen(
            command, cwd=tree.checkout.folder, env=tree.checkout.environment(), stdout=file, stderr=file, text=True
        )
    return Run(tree, process, output)


def student_checkpoint(tree: Tree) -> list[Path]:
    return list((tree / "results/.resume").glob("*/checkpoint.safetensors"))


def submitted(run: Run) -> list[str]:
    return re.findall(r"submitted with SLURM jobid (\d+)", run.output.read_text())


def same_as(local: Tree, tree: Tree) -> bool:
    """Whether everything that the tree has published is what the local run has published, to the byte."""
    found, expected = published(tree), published(local)
    return bool(found) and all(expected[name] == data for name, data in found.items())


def run_facts(tree: Tree, stage: str) -> dict[str, Any]:
    (path,) = (tree / "results" / stage).glob("*/run.json")
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


@pytest.fixture(scope="module", autouse=True)
def over_its_time(local: Tree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run whose student stands still until SLURM ends its job for being over its time; the other tests go on."""
    tree = copy_of(local, tmp_path_factory.mktemp("limit") / "checkout", "data", "teachers")
    limit = ("--set-resources", "student:runtime=1 if attempt == 1 else 10")
    run = start(tree, manifest_of(local, "students"), *limit)
    run.wait_until(lambda: student_checkpoint(tree))
    (job,) = submitted(run)
    for process in psutil.process_iter(["environ", "cmdline"]):
        words = process.info["cmdline"] or []
        if (process.info["environ"] or {}).get("SLURM_JOB_ID") == job and any(".student.py" in word for word in words):
            process.suspend()
    yield run
    run.process.kill()


def test_a_study_on_slurm_gives_the_same_bytes_as_on_one_machine(cluster: Cluster, local: Tree, tmp_path: Path) -> None:
    tree = copy_of(local, tmp_path / "checkout")
    run = start(tree, manifest_of(local, "pairs"))
    run.wait()
    jobs = submitted(run)
    assert {path.parts[-3] for path in (tree / "results").rglob("manifest.json")} == {
        *("data", "noise", "teachers", "teacher_samples", "students", "pairs")
    }
    assert same_as(local, tree)
    assert run_facts(tree, "students")["slurm_job_id"] in jobs
    assert {cluster.facts(job)["Partition"] for job in jobs} == {"cpu"}


def test_a_step_that_fails_ends_in_one_line_and_a_gpu_is_asked_for_where_the_spec_says_so(
    cluster: Cluster, local: Tree, tmp_path: Path
) -> None:
    tree = copy_of(local, tmp_path / "checkout", "data")
    tree.checkout.edit("profiles/slurm/config.yaml", 'gpu_partition: ""', "gpu_partition: gpu")
    tree.checkout.edit(SECONDS, "  score.steps: 10", "  score.steps: 10\n  score.device: cuda")
    run = start(tree, "study_cells", "--retries", "0", "--until", "teacher")
    assert run.process.wait(PATIENCE) == 1
    said = run.output.read_text()
    (job,) = submitted(run)
    assert cluster.jobs()[job] == "FAILED"
    facts = cluster.facts(job)
    assert facts["Partition"] == "gpu" and "gres:gpu:1" in facts["TresPerJob"]
    reasons = [line for line in said.splitlines() if "device" in line]
    assert len(reasons) == 1 and "cuda" in reasons[0]
    assert "Traceback" not in said
    assert not (tree / "results/teachers").exists()


def test_jobs_of_a_killed_run_are_cancelled_and_a_cancelled_job_goes_on_where_it_was(
    cluster: Cluster, local: Tree, tmp_path: Path
) -> None:
    tree = copy_of(local, tmp_path / "checkout", "data", "teachers")
    target = manifest_of(local, "students")
    killed = start(tree, target)
    killed.wait_until(lambda: student_checkpoint(tree))
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait()
    (left,) = submitted(killed)
    assert cluster.jobs()[left] == "RUNNING"

    run = start(tree, target)
    first = run.wait_until(lambda: submitted(run))[0]
    assert cluster.jobs()[left] == "CANCELLED"
    resumed = run.wait_until(lambda: list((tree / "results/.tmp").glob("*")))
    assert resumed
    cluster.ask("scancel", first)
    said = run.wait()
    assert f"dmdpipe: cancelled 1 job that an earlier run left in SLURM: {left}" in said
    assert cluster.jobs()[first] == "CANCELLED"
    assert len(submitted(run)) == 2
    assert run_facts(tree, "students")["resumed"] is True
    assert same_as(local, tree)


def test_a_training_over_its_time_limit_goes_on_in_a_longer_job(
    cluster: Cluster, local: Tree, over_its_time: Run
) -> None:
    said = over_its_time.wait()
    first, second = submitted(over_its_time)
    assert cluster.jobs()[first] == "TIMEOUT", said
    limits = [cluster.facts(job)["TimeLimit"] for job in (first, second)]
    assert limits == ["00:01:00", "00:10:00"]
    facts = run_facts(over_its_time.tree, "students")
    assert facts["resumed"] is True and facts["slurm_job_id"] == second
    assert same_as(local, over_its_time.tree)
