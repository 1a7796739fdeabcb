"""What Snakemake's executor leaves to others: jobs of a killed run, preempted ones, and those that SLURM forgets."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmdpipe.errors import UserError

SLURM = "slurm"  # as Snakemake calls this executor
SECONDS_TO_END = 180
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_QUESTIONS = 30.0
# What the executor takes at most between two questions about its jobs, and some for the answer.
LONGEST_BETWEEN_QUESTIONS = 180 + 20


def status_command(asked: str, first: int) -> str:
    """Return the program that tells the executor how jobs ended, on this cluster: ``squeue`` or ``sacct``.

    A line on stderr says so where it is not the one that was asked for. With neither a job can end unseen, and the
    executor would wait for it for ever.

    Args:
        asked: the one that the profile or the command line names.
        first: seconds before the executor's first question; where SLURM forgets a job within three times as many, it
            never asks ``squeue``.

    Raises:
        UserError: if SLURM does not answer, or forgets jobs too early and has no accounting database.
    """
    config = _ask_slurm("scontrol", "show", "config")
    age = _value("MinJobAge", config)
    remembered = re.match(r"\d+", age)
    needed = max(LONGEST_BETWEEN_QUESTIONS, 3 * first)
    works = {
        "squeue": remembered is not None and int(remembered[0]) >= needed,
        "sacct": "slurmdbd" in _value("AccountingStorageType", config) and shutil.which("sacct") is not None,
    }
    if not any(works.values()):
        raise UserError(
            f"SLURM's MinJobAge ({age or 'unknown'}): this cluster forgets ended jobs too early and keeps no accounts, "
            f"so the run could wait for ever; ask its administrators for at least {needed} seconds, or run all steps "
            "in one job (docs/slurm.md)"
        )
    chosen = asked if works[asked] else next(name for name in works if works[name])
    if chosen != asked:
        print(f"dmdpipe: {asked} does not know ended jobs for long enough here; {chosen} is asked", file=sys.stderr)
    return chosen


@contextmanager
def preempted_jobs_put_back(results: Path) -> Iterator[None]:
    """Put jobs of the run that goes on inside the block back into the queue when they are preempted.

    Where SLURM cancels what it preempts (``PreemptMode=CANCEL``) it does not do so itself, and the executor waits for
    them. A line on stderr tells of each job; once, of one that cannot be put back.
    """
    ended = threading.Event()
    of_earlier_runs = _preempted_jobs(results)
    watch = threading.Thread(target=_put_back_until, args=(ended, results, of_earlier_runs), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _put_back_until(ended: threading.Event, results: Path, left_alone: set[str]) -> None:
    while not ended.wait(SECONDS_BETWEEN_QUESTIONS):
        for job in sorted(_preempted_jobs(results) - left_alone):
            try:
                _ask_slurm("scontrol", "requeue", job)
                words = f"job {job} was preempted, and is back in SLURM's queue"
            except UserError as error:
                left_alone.add(job)
                why = str(error).partition(";")[0]
                words = f"job {job} was preempted, and nothing puts it back: stop this run and start it again ({why})"
            print(f"dmdpipe: {words}", file=sys.stderr, flush=True)


def _preempted_jobs(results: Path) -> set[str]:
    try:
        return set(jobs_of(results, "--states=PREEMPTED"))
    except UserError:  # a controller that is busy answers the next time
        return set()


def job_prefix(results: Path) -> str:
    """Return how the names of all jobs begin that write to this root of results."""
    return f"dmdpipe-{hashlib.sha256(str(results.resolve()).encode()).hexdigest()[:12]}"


def cancel_left_jobs(results: Path) -> list[str]:
    """Cancel this user's jobs of an earlier run on these results, and wait until they have ended; return their ids.

    Raises:
        UserError: if SLURM does not answer, or a job does not end.
    """
    left = jobs_of(results)
    if not left:
        return []
    _ask_slurm("scancel", *left)
    deadline = time.monotonic() + SECONDS_TO_END
    while still_there := jobs_of(results):
        if time.monotonic() > deadline:
            raise UserError(
                f"{results}: jobs that an earlier run left in SLURM do not end; `scancel --signal=KILL` them, then run "
                f"again: {' '.join(still_there)}"
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return left


def jobs_of(results: Path, *options: str) -> list[str]:
    """Return the ids of this user's jobs on these results that wait, run, or are ending, or that ``options`` choose.

    Raises:
        UserError: if SLURM does not answer.
    """
    prefix = job_prefix(results)
    lines = _ask_slurm("squeue", "--me", "--noheader", "--format=%A %j", *options).splitlines()
    jobs = [line.strip().partition(" ") for line in lines]
    return [identity for identity, _, name in jobs if name.startswith(prefix)]


def _value(key: str, config: str) -> str:
    found = re.search(rf"^{key}\s*=\s*(.*?)\s*$", config, re.MULTILINE)
    return found[1] if found else ""


def _ask_slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}; start a run on SLURM where its programs are") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"{command[0]}: {said[-1]}; is this machine part of a SLURM cluster?")
    return done.stdout
