"""What is known of a run: its jobs from Snakemake's events, its steps' rounds from their progress files."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

# Plans: of the last run, and of a look at what would run, for as long as that takes.
LAST_RUN, LOOK = "plan.json", "look.json"
FAILURES = "failures.json"
DIGEST = re.compile(r"-([0-9a-f]{16})$")


class Job(NamedTuple):
    """One job of the DAG; `started` is Unix seconds, `digest` is empty where the folder's name has none."""

    rule: str
    label: str
    digest: str
    started: float


class Report(NamedTuple):
    """A progress file: `done` of `total` rounds at the time `at`, by a step that `started` then."""

    digest: str
    stage: str
    label: str
    done: int
    total: int
    started: float
    at: float

    def is_of(self, job: Job) -> bool:
        """Say whether this job's step wrote the report."""
        if job.digest:
            return job.digest == self.digest
        return (job.rule, job.label) == (self.stage, self.label)


class Failure(NamedTuple):
    """That an attempt at a step failed: when, in Unix seconds, and what a cluster says of it, if it says anything."""

    at: float
    why: str


@dataclass
class Tracker:
    """The state of one run. Snakemake's listener thread writes it and the display's thread reads it.

    Attributes:
        cores: how many jobs may run at once; None on a cluster, where what does run is all that is known.
        started: Unix seconds, when the jobs were counted; None before.
        planned: number of jobs by rule.
        prior: expected seconds of one job by rule.
        seconds: what the finished jobs took, by rule.
        running: the running jobs by Snakemake's id.
        failed: ids of the jobs whose last attempt failed.
        failures: the last failure of each job that had one, by its first output.
    """

    cores: int | None = None
    started: float | None = None
    planned: dict[str, int] = field(default_factory=dict)
    prior: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    running: dict[int, Job] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)
    _first: dict[tuple[str, float], Report] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def total(self) -> int:
        """Number of jobs of the run."""
        return sum(self.planned.values())

    @property
    def done(self) -> int:
        """Number of finished jobs."""
        return sum(map(len, list(self.seconds.values())))

    def start(self, job_id: int, job: Job) -> None:
        """Note that a job runs, for the first time or again."""
        with self._lock:
            self.running[job_id] = job
            self.failed.discard(job_id)

    def finish(self, job_id: int, now: float) -> tuple[Job, float] | None:
        """Note that a job is done; return it and its seconds, or None if it was never seen to start."""
        with self._lock:
            job = self.running.pop(job_id, None)
            if job is None:
                return None
            self.seconds.setdefault(job.rule, []).append(now - job.started)
            return job, now - job.started

    def fail(self, job_id: int) -> Job | None:
        """Note that a job failed; return it, or None if it was never seen to start."""
        with self._lock:
            self.failed.add(job_id)
            return self.running.pop(job_id, None)

    def seconds_left(self, now: float) -> float | None:
        """Estimate the seconds until the last job ends; None while nothing is known of any rule.

        The work left is, rule by rule, the jobs left × their mean seconds, less what the running jobs have
        behind them; it is spread over the cores, or over the jobs left where these are fewer. The prior
        counts as one finished job; a rule of which nothing is known takes the mean of all finished jobs.
        """
        with self._lock:
            known = {rule: [seconds] for rule, seconds in self.prior.items()}
            for rule, seconds in self.seconds.items():
                known[rule] = known.get(rule, []) + seconds
            if not known:
                return None
            means = {rule: fmean(seconds) for rule, seconds in known.items()}
            usual = fmean([s for seconds in self.seconds.values() for s in seconds] or means.values())

            left = Counter(self.planned) - Counter({rule: len(s) for rule, s in self.seconds.items()})
            work = sum(count * means.get(rule, usual) for rule, count in left.items())
            for job in self.running.values():
                work -= min(now - job.started, means.get(job.rule, usual))
            return max(0.0, work) / max(1, min(self.cores or len(self.running), left.total()))

    def rounds(self, folder: Path) -> list[tuple[Job, Report | None, float | None]]:
        """Return the running jobs, the last report of each in `folder`, and the seconds left to its end.

        The seconds are None until two reports can be compared: from `started` and round 0 on, a step that
        was resumed would look faster than it is.
        """
        with self._lock:
            running = list(self.running.values())
        reports = [report for path in folder.glob("*.json") if (report := read_report(path))] if running else []
        rows: list[tuple[Job, Report | None, float | None]] = []
        for job in running:
            report = next((report for report in reports if report.is_of(job)), None)
            seconds = None
            if report:
                first = self._first.setdefault((report.digest, report.started), report)
                if report.done > first.done:
                    pace = (report.at - first.at) / (report.done - first.done)
                    seconds = pace * (report.total - report.done)
            rows.append((job, report, seconds))
        return rows


def make_job(rule: str, wildcards: Mapping[str, str], output: list[str], started: float) -> Job:
    """Return the job as people know it: the label is its wildcards, less the digest of the step's folder."""
    folder = Path(output[0]).parent if output else Path()
    digest = DIGEST.search(folder.name)
    label = " ".join(DIGEST.sub("", value) for value in wildcards.values())
    return Job(rule, label, digest[1] if digest else "", started)


def read_report(path: Path) -> Report | None:
    """Return a progress file's report, or None if it is gone or malformed: it is never worth an error."""
    try:
        facts, at = json.loads(path.read_text()), path.stat().st_mtime
        step = path.stem, str(facts["stage"]), str(facts["label"])
        return Report(*step, int(facts["done"]), int(facts["total"]), float(facts["started"]), at)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_failures(path: Path, failures: Mapping[str, Failure]) -> None:
    """Keep for `dmdpipe status` what Snakemake knows alone: a step that was killed leaves nothing that says so."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(failures))
    temporary.replace(path)


def read_failures(path: Path) -> dict[str, Failure]:
    """Return the last failure of each step by its manifest; none if the file is missing or malformed."""
    try:
        return {str(name): Failure(float(at), str(why)) for name, (at, why) in json.loads(path.read_text()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def read_prior(path: Path) -> dict[str, float]:
    """Return the expected seconds by rule of a plan; none if it is missing or malformed."""
    try:
        return {str(rule): float(value) for rule, value in json.loads(path.read_text())["seconds"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def read_reasons(path: Path) -> dict[str, str]:
    """Return why each step runs, by its manifest, from a plan; none if it is missing or malformed."""
    try:
        return {str(manifest): str(reason) for manifest, reason in json.loads(path.read_text())["reasons"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
