"""Runs on the test cluster that tests do something to: how they start, and what became of their jobs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from cluster import Cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from toy_study import SECONDS, Tree, new_tree, published

PROFILE = ("run", "--profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "1")
# A student leaves a checkpoint all the time.
CHECKPOINTS = (
    "src/dmdpipe/diffusion/state.py",
    "SECONDS_BETWEEN_CHECKPOINTS = 15.0",
    "SECONDS_BETWEEN_CHECKPOINTS = 0.2",
)
CLAIMS = """
claims:
  - id: C1
    title: Toys copy
    statement: A toy copies.
    level_of_evidence: Four generator steps.
    criteria:
      - name: copies
        study: cells
        select: {data: digits-2x2}
        statistic: {value: {metric: rho}}
        predicts: below
        threshold: 0.5
        because: It is the middle.
"""
PATIENCE = 400
PLAN = """
import json
from dmdpipe.artifacts.dag import plan_run
steps = plan_run().steps
print(json.dumps({folder.partition("/")[0]: f"results/{folder}/manifest.json" for folder in steps}))
"""


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


def toy(checkout: Any, generator_steps: int = 4_000) -> Tree:
    """The toy study, one cell of it, whose student can be caught in the act, in a checkout in which nothing runs."""
    tree = new_tree(checkout, cells=("digits",), pages=())
    (tree / "config/claims.yaml").write_text(CLAIMS)
    tree.checkout.edit(SECONDS, "student.generator_steps: 4", f"student.generator_steps: {generator_steps}")
    tree.checkout.edit(*CHECKPOINTS)
    shown = tree.checkout.python(PLAN)
    assert shown.returncode == 0, shown.stderr
    (tree / "manifests.json").write_text(shown.stdout)
    return tree


def processes(run: Run, rule: str) -> list[psutil.Process]:
    """The processes that run a rule's script in the latest job of a run."""
    # On a busy machine a job may have been tried again already.
    job = submitted(run)[-1]
    found = []
    for process in psutil.process_iter(["environ", "cmdline"]):
        words, variables = process.info["cmdline"] or [], process.info["environ"] or {}
        if variables.get("SLURM_JOB_ID") == job and any(word.endswith(f".{rule}.py") for word in words):
            found.append(process)
    return found


def copy_of(original: Tree, target: Path, *stages: str) -> Tree:
    """A checkout in which these stages have run, on this machine."""
    shutil.copytree(original.checkout.folder, target, ignore=shutil.ignore_patterns(".snakemake", "results"))
    for stage in stages:
        shutil.copytree(original / "results" / stage, target / "results" / stage)
    return Tree(type(original.checkout)(target))


def name_partitions(tree: Tree, usual: str = "cpu") -> None:
    """Change two of the three values that a user changes; the third is for clusters that keep accounts."""
    for kind, name in (("slurm", usual), ("gpu", "gpu")):
        tree.checkout.edit("profiles/slurm/config.yaml", f'{kind}_partition: ""', f"{kind}_partition: {name}")


def manifest_of(tree: Tree, folder: str) -> str:
    """The manifest of the one step in a folder of the results, as a target."""
    manifest: str = json.loads((tree / "manifests.json").read_text())[folder]
    return manifest


@contextmanager
def started(tree: Tree, *arguments: str) -> Iterator[Run]:
    """Start a run on SLURM, which does not outlive its test."""
    command = [str(Path(sys.executable).with_name("dmdpipe")), *PROFILE, *arguments]
    output = tree / f"output-{time.monotonic_ns()}"
    with output.open("w") as file:
        process = subprocess.Popen(
            command, cwd=tree.checkout.folder, env=tree.checkout.environment(), stdout=file, stderr=file, text=True
        )
    try:
        yield Run(tree, process, output)
    finally:
        process.kill()
        process.wait()


def jobs_of_rule(cluster: Cluster, run: Run, rule: str) -> list[str]:
    """The jobs that the run has submitted for a rule, in that order."""
    return [job for job in submitted(run) if cluster.facts(job)["Comment"].startswith(f"rule_{rule}_")]


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
