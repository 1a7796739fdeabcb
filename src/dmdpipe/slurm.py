"""Jobs that a run left in SLURM: a killed Snakemake does not take its jobs with it."""

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path

from dmdpipe.errors import UserError

SECONDS_TO_END = 180
SECONDS_BETWEEN_LOOKS = 0.5


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


def jobs_of(results: Path) -> list[str]:
    """Return the ids of this user's jobs on these results that wait, run, or are ending.

    Raises:
        UserError: if SLURM does not answer.
    """
    prefix = job_prefix(results)
    lines = _ask_slurm("squeue", "--me", "--noheader", "--format=%A %j").splitlines()
    jobs = [line.strip().partition(" ") for line in lines]
    return [identity for identity, _, name in jobs if name.startswith(prefix)]


def _ask_slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}; start a run on SLURM where its programs are") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"{command[0]}: {said[-1]}; is this machine part of a SLURM cluster?")
    return done.stdout
