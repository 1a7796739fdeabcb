"""Runs through a real SLURM: the same bytes as on one machine, whatever happens to jobs and controller."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import Cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from toy_mirror import CELL, mirror_for
from toy_study import CELLS_YAML, SECONDS, Tree, new_tree, published

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

PROFILE = ("run", "--profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "1")
# A student that can be caught in the act, and leaves a checkpoint all the time.
LONGER = (SECONDS, "student.generator_steps: 4", "student.generator_steps: 4000")
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
# What a job's Python must not do where there is no network.
NO_NETWORK = """
import os, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo") and "SLURM_JOB_ID" in os.environ:
        raise OSError(f"no network on this node: {event}")

sys.addaudithook(refuse)
"""
LIMIT = "1 if attempt == 1 else 10"
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


# Everything starts at once, since most of a run on SLURM is waiting; the tests then look at one run after the other.


@pytest.fixture(scope="module")
def untouched(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, new_checkout: Callable[[Path], Any]) -> Tree:
    """The toy study in a checkout in which nothing runs."""
    tree = new_tree(new_checkout(tmp_path_factory.mktemp("untouched") / "checkout"), cells=("digits",), pages=())
    (tree / "config/claims.yaml").write_text(CLAIMS)
    for path, old, new in (LONGER, CHECKPOINTS):
        tree.checkout.edit(path, old, new)
    shown = tree.checkout.python(PLAN)
    assert shown.returncode == 0, shown.stderr
    (tree / "manifests.json").write_text(shown.stdout)
    return tree


@pytest.fixture(scope="module", autouse=True)
def whole(cluster: Cluster, untouched: Tree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A whole run, from data to the report, whose first job for the noise is cancelled."""
    tree = copy_of(untouched, tmp_path_factory.mktemp("whole") / "checkout")
    name_partitions(tree)
    with started(tree) as run:
        cluster.ask("scancel", *run.wait_until(lambda: jobs_of_rule(cluster, run, "noise")))
        yield run


@pytest.fixture(scope="module")
def local(untouched: Tree, whole: Run, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The same run on this machine, without SLURM. Look, but change nothing."""
    tree = copy_of(untouched, tmp_path_factory.mktemp("local") / "checkout")
    done = tree.checkout.dmdpipe("run", "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    (tree / "said").write_text(done.stdout)
    return tree


@pytest.fixture(scope="module", autouse=True)
def failing(local: Tree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run whose teacher wants a GPU of a node that has none but in name."""
    tree = copy_of(local, tmp_path_factory.mktemp("failing") / "checkout", "data")
    name_partitions(tree)
    tree.checkout.edit(SECONDS, "  score.steps: 10", "  score.steps: 10\n  score.device: cuda")
    with started(tree, "study_cells", "--retries", "0", "--until", "teacher") as run:
        yield run


@dataclass
class Held:
    """Runs whose students stand still after a checkpoint: what is to become of them."""

    killed: Run
    over_its_time: Run
    drained: Run
    lost: Run


@pytest.fixture(scope="module", autouse=True)
def held(local: Tree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    """One run to be killed, one whose job may take a minute, one whose node is drained, and one that loses its node."""
    made = ("data", "noise", "teachers", "teacher_samples")
    student, pairs = manifest_of(local, "students"), manifest_of(local, "pairs")
    limit = ("--set-resources", f"student:runtime={LIMIT}")
    with ExitStack() as stack:
        runs = [
            stack.enter_context(
                started(copy_of(local, tmp_path_factory.mktemp("held") / "checkout", *made), *arguments)
            )
            for arguments in ((student,), (student, *limit), (pairs,), (student,))
        ]
        waiting = list(runs)
        while waiting:
            run = waiting[0].wait_until(lambda: next((run for run in waiting if student_checkpoint(run.tree)), None))
            for process in processes(run, "student"):
                process.suspend()
            waiting.remove(run)
        yield Held(*runs)


@pytest.fixture(scope="module", autouse=True)
def fetching(local: Tree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, list[str]]]:
    """A run on data that have to be fetched, by jobs without a network; and what is asked of the mirror."""
    folder = tmp_path_factory.mktemp("fetching")
    tree = copy_of(local, folder / "checkout")
    tree.checkout.edit(CELLS_YAML, *CELL)
    (tree / "src/sitecustomize.py").write_text(NO_NETWORK)
    with mirror_for(tree.checkout, folder / "mirror") as asked, started(tree, "--until", "data") as run:
        yield run, asked


@pytest.fixture(scope="module", autouse=True)
def accounted(cluster: Cluster, local: Tree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run | None]:
    """A run that asks the accounting database for its jobs, where there is one."""
    if not cluster.has_accounts:
        yield None
        return
    tree = copy_of(local, tmp_path_factory.mktemp("accounted") / "checkout", "data")
    options = ("--slurm-status-command", "sacct", "--slurm-efficiency-report")
    report = ("--slurm-efficiency-report-path", "efficiency")
    with started(tree, manifest_of(local, "teachers"), *options, *report) as run:
        yield run


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


def name_partitions(tree: Tree) -> None:
    """Change two of the three values that a user changes; the third is for clusters that keep accounts."""
    for kind, name in (("slurm", "cpu"), ("gpu", "gpu")):
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


def test_jobs_of_a_killed_run_are_cancelled_by_the_next_one_which_goes_on_where_they_were(
    cluster: Cluster, local: Tree, held: Held
) -> None:
    killed, tree = held.killed, held.killed.tree
    killed.process.kill()
    killed.process.wait()
    (left,) = submitted(killed)
    assert cluster.jobs()[left] == "RUNNING"

    with started(tree, manifest_of(tree, "students")) as run:
        run.wait_until(lambda: submitted(run))
        assert cluster.jobs()[left] == "CANCELLED"
        said = run.wait()
    assert f"dmdpipe: cancelled 1 job that an earlier run left in SLURM: {left}\n" in said
    (job,) = submitted(run)
    facts = run_facts(tree, "students")
    assert facts["resumed"] is True and facts["slurm_job_id"] == job
    assert same_as(local, tree)


def test_a_step_that_fails_ends_in_one_line_and_a_gpu_is_asked_for_where_the_spec_says_so(
    cluster: Cluster, failing: Run
) -> None:
    assert failing.process.wait(PATIENCE) == 1
    said = failing.output.read_text()
    (job,) = submitted(failing)
    assert cluster.jobs()[job] == "FAILED"
    facts = cluster.facts(job)
    assert facts["Partition"] == "gpu" and "gres:gpu:1" in facts["TresPerJob"]
    reasons = [line for line in said.splitlines() if "device" in line]
    assert len(reasons) == 1 and "cuda" in reasons[0]
    assert "Traceback" not in said
    assert f"    cluster SLURM-job '{job}' failed, SLURM status is: 'FAILED'" in said
    assert not (failing.tree / "results/teachers").exists()


def test_data_are_fetched_where_the_run_was_started_and_jobs_open_no_connection(
    cluster: Cluster, fetching: tuple[Run, list[str]]
) -> None:
    run, asked = fetching
    run.wait()
    assert sorted(asked) == ["/t10k-images-idx3-ubyte.gz", "/train-images-idx3-ubyte.gz"]
    (job,) = submitted(run)
    assert run_facts(run.tree, "data")["slurm_job_id"] == job
    refused = subprocess.run(
        [sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', 9))"],
        env={**run.tree.checkout.environment(), "SLURM_JOB_ID": "1"},
        capture_output=True,
        text=True,
    )
    assert "no network on this node" in refused.stderr


def test_a_drained_node_ends_its_job_and_gets_no_other(cluster: Cluster, local: Tree, held: Held) -> None:
    run, (job,) = held.drained, submitted(held.drained)
    node = cluster.node_of(job)
    cluster.ask("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    try:
        status = run.tree.checkout.dmdpipe("status").stdout
        assert "\nrunning\n  student digits-2x2" in status and "\nwaiting\n  1 pairs" in status
        for process in processes(run, "student"):
            process.resume()
        run.wait()
    finally:
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")
    first, second = submitted(run)
    assert cluster.node_of(first) == node != cluster.node_of(second)
    assert cluster.facts(first)["Restarts"] == "0" and run_facts(run.tree, "students")["resumed"] is False
    assert same_as(local, run.tree)


def test_a_whole_run_on_slurm_ends_in_the_same_bytes_verdicts_and_audit_though_a_job_was_cancelled(
    cluster: Cluster, local: Tree, whole: Run
) -> None:
    said = whole.wait()
    assert published(whole.tree) == published(local)
    assert {path.relative_to(local / "results").parts[0] for path in (local / "results").rglob("manifest.json")} == {
        *("data", "noise", "teachers", "teacher_samples", "students", "pairs", "metrics", "studies", "verdicts"),
        "report",
    }
    endings = [text.partition("\nverdicts (")[2] for text in (said, (local / "said").read_text())]
    assert endings[0] == endings[1] and "C1" in endings[0] and "audit" in endings[0]
    assert (whole.tree / "results/report/seconds/report.html").stat().st_size > 1000
    jobs = submitted(whole)
    assert len(jobs) == 11
    assert [cluster.jobs()[job] for job in jobs_of_rule(cluster, whole, "noise")] == ["CANCELLED", "COMPLETED"]
    assert run_facts(whole.tree, "students")["slurm_job_id"] in jobs
    assert {cluster.facts(job)["Partition"] for job in jobs} == {"cpu"}


def test_a_training_over_its_time_limit_goes_on_in_a_longer_job(cluster: Cluster, local: Tree, held: Held) -> None:
    over_its_time = held.over_its_time
    said = over_its_time.wait()
    first, second = submitted(over_its_time)
    assert cluster.jobs()[first] == "TIMEOUT", said
    assert [cluster.facts(job)["TimeLimit"] for job in (first, second)] == ["00:01:00", "00:10:00"]
    assert {cluster.facts(job)["Partition"] for job in (first, second)} == {"usual"}
    facts = run_facts(over_its_time.tree, "students")
    assert facts["resumed"] is True and facts["slurm_job_id"] == second
    assert same_as(local, over_its_time.tree)


def test_where_accounts_are_kept_sacct_tells_how_jobs_ended_and_a_table_what_they_used(
    cluster: Cluster, local: Tree, accounted: Run | None
) -> None:
    if accounted is None:
        pytest.skip("this SLURM keeps no accounts: tests/slurm/install --accounts")
    accounted.wait()
    assert same_as(local, accounted.tree)
    (job,) = submitted(accounted)
    (table,) = (accounted.tree / "efficiency").glob("*.csv")
    (row,) = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    assert row["MainJobID"] == job and row["RuleName"].startswith("rule_teacher")
    assert 0 < float(row["MaxRSS_MB"]) < float(row["RequestedMem_MB"])


def test_a_training_whose_node_is_lost_goes_on_on_another(cluster: Cluster, local: Tree, held: Held) -> None:
    run, (job,) = held.lost, submitted(held.lost)
    node = cluster.node_of(job)
    cluster.lose(node)
    try:
        cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # else SLURM lets it wait for two minutes
        run.wait()
    finally:
        cluster.repair(node)
    assert submitted(run) == [job] and cluster.facts(job)["Restarts"] == "1"
    assert cluster.node_of(job) != node
    facts = run_facts(run.tree, "students")
    assert facts["resumed"] is True and facts["slurm_job_id"] == job
    assert same_as(local, run.tree)
