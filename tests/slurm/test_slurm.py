"""Runs through a real SLURM: the same bytes as on one machine, whatever happens to jobs and controller."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from runs import (
    PATIENCE,
    Run,
    copy_of,
    jobs_of_rule,
    manifest_of,
    name_partitions,
    processes,
    run_facts,
    same_as,
    started,
    student_checkpoint,
    submitted,
    toy,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from toy_mirror import CELL, mirror_for
from toy_study import CELLS_YAML, SECONDS, Tree, published

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

# What a job's Python must not do where there is no network.
NO_NETWORK = """
import os, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo") and "SLURM_JOB_ID" in os.environ:
        raise OSError(f"no network on this node: {event}")

sys.addaudithook(refuse)
"""
LIMIT = "1 if attempt == 1 else 10"


# Everything starts at once, since most of a run on SLURM is waiting; the tests then look at one run after the other.


@pytest.fixture(scope="module")
def untouched(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, new_checkout: Callable[[Path], Any]) -> Tree:
    """The toy study in a checkout in which nothing runs."""
    return toy(new_checkout(tmp_path_factory.mktemp("untouched") / "checkout"))


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
