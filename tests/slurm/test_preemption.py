"""Trainings whose jobs others push aside save their state, go on from there, and end in the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from runs import (
    CHECKPOINTS,
    Run,
    Tree,
    copy_of,
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

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

SEEN_SOON = ("src/dmdpipe/slurm.py", "SECONDS_BETWEEN_QUESTIONS = 30.0", "SECONDS_BETWEEN_QUESTIONS = 1.0")
PARTITIONS = ("cancelled", "requeued")
# Of jobs that stand still, on a busy machine.
LONG = ("--set-resources", "student:runtime=60")


@pytest.fixture(scope="module")
def local(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, new_checkout: Callable[[Path], Any]) -> Tree:
    """A student that trained on this machine, without SLURM. Look, but change nothing."""
    # On a busy machine it takes a while until a student that is seen training stands still.
    tree = toy(new_checkout(tmp_path_factory.mktemp("local") / "checkout"), generator_steps=16_000)
    tree.checkout.edit(*SEEN_SOON)
    tree.checkout.edit(CHECKPOINTS[0], CHECKPOINTS[2], "SECONDS_BETWEEN_CHECKPOINTS = 1e9")
    done = tree.checkout.dmdpipe("run", "--cores", "2", manifest_of(tree, "students"))
    assert done.returncode == 0, done.stdout + done.stderr
    return tree


@pytest.fixture(scope="module")
def preempted(cluster: Cluster, local: Tree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Run]]:
    """A run in each partition whose jobs may be preempted, with a student that has saved nothing when it is."""
    with ExitStack() as stack:
        runs = []
        for partition in PARTITIONS:
            tree = copy_of(local, tmp_path_factory.mktemp(partition) / "checkout", "data", "teachers")
            name_partitions(tree, partition)
            runs.append(stack.enter_context(started(tree, manifest_of(tree, "students"), *LONG)))
        waiting = list(runs)
        while waiting:
            run = waiting[0].wait_until(lambda: next((run for run in waiting if is_under_way(run.tree)), None))
            for process in processes(run, "student"):
                process.suspend()
            waiting.remove(run)
            assert not student_checkpoint(run.tree)
            assert processes(run, "student"), "it ended before it could be stopped"
        urgent = ("sbatch", "--parsable", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=:")
        job = cluster.ask(*urgent).strip()
        runs[0].wait_until(lambda: cluster.jobs()[job] == "COMPLETED")
        yield runs


def is_under_way(tree: Tree) -> bool:
    """Whether the student has told of its progress."""
    return any('"stage": "student"' in file.read_text() for file in (tree / "results/.progress").glob("*.json"))


@pytest.mark.parametrize("partition", PARTITIONS)
def test_a_preempted_training_saves_its_state_and_is_queued_again_whether_slurm_does_that_or_not(
    cluster: Cluster, local: Tree, preempted: list[Run], partition: str
) -> None:
    run = preempted[PARTITIONS.index(partition)]
    (job,) = submitted(run)
    run.wait_until(lambda: cluster.jobs()[job] == "PENDING")
    cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # else SLURM lets it wait for two minutes
    said = run.wait()
    assert (f"dmdpipe: job {job} was preempted, and is back in SLURM's queue\n" in said) is (partition == "cancelled")
    assert submitted(run) == [job] and cluster.facts(job)["Restarts"] == "1"
    facts = run_facts(run.tree, "students")
    assert facts["resumed"] is True and facts["slurm_job_id"] == job
    assert same_as(local, run.tree)
