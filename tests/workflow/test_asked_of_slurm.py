"""What a run asks SLURM for when several GPUs share its trainings: the words that `sbatch` gets, and no cluster."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_study import SECONDS, Tree, new_tree

pytestmark = pytest.mark.workflow

# A teacher that is there already, whose student can be submitted, and one that is to be submitted itself.
STUDY = """
number: 90
title: Trainings in shards
question: What is asked for?
prediction: As many GPUs as share it.
base:
  data.family: digits
  data.side: 4
  score.network: {kind: unet, channels: 8, multipliers: [1], attention: []}
  score.shards: 4
  score.threads: 3
  student.shards: 4
  student.threads: 5
  student.device: cuda
axes:
  teacher:
    made: {score.device: cpu}
    to_make: {score.device: cuda}
"""
MAKE = """
from pathlib import Path
from dmdpipe.artifacts.dag import plan_run
from dmdpipe.artifacts.step import run_step
for step in plan_run().steps.values():
    if step.stage == "data" or (step.stage == "teacher" and step.spec.score.device == "cpu"):
        run_step(step.canonical(), Path("results"))
"""
# SLURM knows of no job, and takes none.
PROGRAMS = {
    # A line at once: several are asked beside each other.
    "sbatch": """
        for word; do case "$word" in --wrap*) ;; *) line="$line $word";; esac; done
        printf '%s\\n' "$line" >>asked
        exit 1""",
    "squeue": "exit 0",
    "scontrol": "echo 'MinJobAge = 3600 sec'",
    "sacct": "exit 1",
    "sacctmgr": "exit 1",
    "sinfo": "exit 0",
    "scancel": "exit 0",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, new_checkout: Callable[[Path], Any]) -> Tree:
    tree = new_tree(new_checkout(tmp_path_factory.mktemp("asked") / "checkout"), pages=())
    (tree / "config/studies/cells.yaml").write_text(STUDY)
    (tree / SECONDS).write_text(re.sub(r"  score.network: .*\n", "", (tree / SECONDS).read_text()))
    tree.checkout.edit("profiles/slurm/config.yaml", 'gpu_partition: ""', 'gpu_partition: "cards"')
    made = tree.checkout.python(MAKE)
    assert made.returncode == 0, made.stderr
    (tree / "programs").mkdir()
    for name, script in PROGRAMS.items():
        (tree / f"programs/{name}").write_text(f"#!/bin/sh\n{script}\n")
        (tree / f"programs/{name}").chmod(0o755)
    return tree


def asked(tree: Tree, devices: int) -> dict[str, dict[str, str]]:
    """Every job that a run submits, by its rule: the options, and their values where they have one."""
    (tree / "asked").unlink(missing_ok=True)
    profile = ("--profile", "profiles/slurm", "--retries", "0")
    path = f"{tree / 'programs'}:/usr/bin:/bin"
    done = tree.checkout.dmdpipe("run", *profile, "--config", f"devices={devices}", PATH=path)
    assert done.returncode == 1, done.stdout + done.stderr
    jobs = {}
    for line in (tree / "asked").read_text().splitlines():
        options = dict(re.findall(r"(--[\w-]+|-[a-zA-Z])(?:[= ]([^- ]\S*))?", line))
        del options["--job-name"]  # another one for each run
        (rule,) = re.findall(r"--comment rule_(\w+?)_wildcards", line)
        jobs[rule] = options
    return jobs


def test_a_training_that_several_gpus_share_asks_for_all_of_them_on_one_node(tree: Tree) -> None:
    alone, shared = asked(tree, 1), asked(tree, 2)
    assert alone.keys() == shared.keys() == {"noise", "teacher", "student"}
    assert shared["noise"] == alone["noise"] and "--gpus" not in alone["noise"]
    for rule, threads in (("teacher", 3), ("student", 5)):
        one, two = alone[rule], shared[rule]
        assert (one["--gpus"], two["--gpus"]) == ("1", "2")
        assert (one["--cpus-per-task"], two["--cpus-per-task"]) == (str(threads), str(2 * threads))
        assert int(two["--mem"]) == 2 * int(one["--mem"])
        # One task, which starts the other processes: as many tasks would be as many whole trainings.
        assert two["--nodes"] == "1" and two.get("--ntasks", "1") == "1" and "--ntasks-per-gpu" not in two
        assert two["-p"] == "cards" and two["-t"] == one["-t"]


def test_no_job_asks_for_more_than_the_profile_allows(tree: Tree) -> None:
    free = asked(tree, 1)
    profile = "profiles/slurm/config.yaml"
    for limit, most in (("longest_job", 10), ("largest_job", 1_500)):
        tree.checkout.edit(profile, f"  {limit}: 0 ", f"  {limit}: {most} ")
    limited = asked(tree, 1)
    assert limited.keys() == free.keys()
    for rule, one in limited.items():
        assert int(free[rule]["-t"]) > 10 and int(free[rule]["--mem"]) >= 1_500
        assert one == {**free[rule], "-t": "10", "--mem": "1500"}


def test_a_limit_that_is_no_number_is_one_line(tree: Tree) -> None:
    done = tree.checkout.dmdpipe("run", "-n", "--default-resources", "longest_job=1d")
    assert done.returncode != 0 and "Traceback" not in done.stdout + done.stderr
    assert "dmdpipe: default-resources: longest_job: '1d' must be a whole number; 0: no limit\n" in done.stderr
