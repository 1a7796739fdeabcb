"""How far a run is, from the files in its results: what runs, waits and failed, on this machine or on a cluster."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dmdpipe.artifacts.manifest import FILE_NAME
from dmdpipe.artifacts.stages import STAGES
from dmdpipe.artifacts.ticket import FOLDER as TICKETS
from dmdpipe.errors import UserError
from snakemake_logger_plugin_dmdpipe.display import clock, headline, last_lines
from snakemake_logger_plugin_dmdpipe.tracking import (
    FAILURES,
    LAST_RUN,
    Failure,
    Job,
    Report,
    Tracker,
    make_job,
    read_failures,
    read_prior,
    read_reasons,
)

SECONDS_BETWEEN_LOOKS = 1.5  # longer than a step waits before it tells its rounds again
LINES_OF_A_LOG = 3


@dataclass(frozen=True)
class Progress:
    """The last run on one root of results, or the one that is on.

    Attributes:
        is_on: whether its command still runs.
        tracker: the counts behind steps done and time left.
        running: the running steps, the last report of each, and the seconds left to its end, where these are known.
        failed: the steps that failed and have not started again, by their log: those that Snakemake saw to fail, and
            those that left an error in it.
        why: what a cluster says of a failed step, by its log, where it says anything.
        waiting: how many steps of each rule neither run nor have ended.
    """

    is_on: bool
    tracker: Tracker
    running: list[tuple[Job, Report | None, float | None]]
    failed: dict[Path, Job]
    waiting: Counter[str]
    why: dict[Path, str]


def look_at(results: Path, seconds: float = SECONDS_BETWEEN_LOOKS) -> Progress:
    """Return how far the last run is that was planned on these results.

    Args:
        results: the root of the results.
        seconds: between two looks at the running steps, which show how fast they are.

    Raises:
        UserError: if no run has been planned there.
    """
    plan = results / ".progress" / LAST_RUN
    reasons = read_reasons(plan)
    if not reasons:
        raise UserError(f"{plan}: not there yet, or names no step; start a run first")
    began = plan.stat().st_mtime
    tracker = Tracker(started=began, prior=read_prior(plan))
    failed: dict[Path, Job] = {}
    waiting: Counter[str] = Counter()
    why: dict[Path, str] = {}
    failures = read_failures(results / ".progress" / FAILURES)
    for number, manifest in enumerate(map(Path, reasons)):
        rule, step = _rule_and_step(manifest, results)
        job = make_job(rule, {"step": step}, [str(manifest)], began)
        log = results / "logs" / rule / f"{step}.log"
        tracker.planned[rule] = tracker.planned.get(rule, 0) + 1
        if _is_newer(manifest, began):
            tracker.seconds.setdefault(rule, []).append(_seconds_of(manifest, tracker.prior.get(rule, 0.0)))
            continue
        # A step that was killed has not given its ticket back.
        ticket = _time_of(results / TICKETS / job.digest) if job.digest else 0.0
        failure = failures.get(str(manifest), Failure(0.0, ""))
        is_failed = failure.at >= max(began, ticket)
        if ticket >= began and not is_failed:
            tracker.start(number, job._replace(started=ticket))
        elif is_failed or (_is_newer(log, began) and log.stat().st_size):
            tracker.failed.add(number)
            failed[log] = job
            if is_failed and failure.why:
                why[log] = failure.why
        else:
            waiting[rule] += 1
    running = tracker.rounds(results / ".progress")
    if running:
        time.sleep(seconds)
        running = tracker.rounds(results / ".progress")
    return Progress(_is_locked(results / ".lock"), tracker, running, failed, waiting, why)


def progress_text(progress: Progress, now: float) -> str:
    """Return it for people, a line for each step that runs and a few for each that failed."""
    tracker = progress.tracker
    counts = f"{tracker.done}/{tracker.total} steps"
    lines = [headline(tracker, now) if progress.is_on else f"no run is on; the last one came to {counts}"]
    if progress.running:
        lines += ["", "running" if progress.is_on else "without an end: killed, or running on without their run"]
    for job, report, left in progress.running:
        rounds = f"{report.done:,}/{report.total:,}" if report else f"{clock(now - job.started)} so far"
        lines.append(f"  {job.rule} {job.label}  {rounds}" + ("" if left is None else f"  {clock(left)} left"))
    if progress.failed:
        lines += ["", "failed"]
    for log, job in progress.failed.items():
        lines.append(f"  {job.rule} {job.label}  {log}")
        said = [f"cluster: {progress.why[log]}"] if log in progress.why else []
        said += last_lines(log)[-LINES_OF_A_LOG:] or ["(empty: it was killed before it could say anything)"]
        lines += [f"    {line}" for line in said]
    if progress.waiting:
        lines += ["", "waiting", "  " + ", ".join(f"{count} {rule}" for rule, count in progress.waiting.items())]
    return "\n".join(lines)


def _rule_and_step(manifest: Path, results: Path) -> tuple[str, str]:
    if not manifest.is_relative_to(results):
        raise UserError(f"{manifest}: is not below {results}; name the results as that run did, with --results")
    parts = manifest.relative_to(results).parts
    rules = [stage.name for stage in STAGES.values() if stage.folder == parts[0]]
    if len(rules) != 1 or len(parts) < 3 or parts[-1] != FILE_NAME:
        raise UserError(f"{manifest}: no step makes such a file; start a run anew")
    return rules[0], "/".join(parts[1:-1])


def _is_newer(path: Path, moment: float) -> bool:
    return _time_of(path) >= moment


def _time_of(path: Path) -> float:
    """When a file was written, in Unix seconds; 0 if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _seconds_of(manifest: Path, otherwise: float) -> float:
    """What a finished step took, by its run.json beside the manifest."""
    try:
        return float(json.loads((manifest.parent / "run.json").read_bytes())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return otherwise


def _is_locked(lock: Path) -> bool:
    """Whether a run holds the lock of its results."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False
