"""`dmdpipe status`, on planted files of a run: which steps it calls running, failed, waiting and done."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.tests import MockOutputSettings

from dmdpipe import runner
from dmdpipe.errors import UserError
from dmdpipe.progress import look_at, progress_text
from snakemake_logger_plugin_dmdpipe import LogHandler, LogHandlerSettings
from snakemake_logger_plugin_dmdpipe.tracking import read_reasons

DIGESTS = {"student": "a" * 16, "teacher": "b" * 16, "data": "c" * 16, "metrics": "d" * 16}
FOLDERS = {"student": "students", "teacher": "teachers", "data": "data", "metrics": "metrics"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A run that has made its data, trains a student, has lost a teacher, and has not come to its metrics."""
    results = tmp_path / "results"
    reasons = [f"{results}/{FOLDERS[rule]}/x-{digest}/manifest.json" for rule, digest in DIGESTS.items()]
    reasons.append(f"{results}/studies/cells/toy/manifest.json")
    plan = {"seconds": {"student": 100.0, "metrics": 10.0}, "reasons": dict.fromkeys(reasons, "has not been made")}
    put(results / ".progress/plan.json", json.dumps(plan))
    began = time.time() - 50
    os.utime(results / ".progress/plan.json", (began, began))
    put(results / f"data/x-{DIGESTS['data']}/manifest.json", "{}")
    put(results / f"data/x-{DIGESTS['data']}/run.json", '{"seconds": 2.5}')
    put(results / f".tickets/{DIGESTS['student']}", "1")
    report = {"stage": "student", "label": "x", "done": 1_200, "total": 4_000, "started": began}
    put(results / f".progress/{DIGESTS['student']}.json", json.dumps(report))
    put(results / f"logs/teacher/x-{DIGESTS['teacher']}.log", "one\ntwo\nthree\nno GPU here\n")
    put(results / f"logs/student/x-{DIGESTS['student']}.log", "an earlier attempt\n")
    return results


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_every_step_is_called_what_it_is(results: Path) -> None:
    progress = look_at(results, seconds=0)
    assert (progress.tracker.done, progress.tracker.total) == (1, 5)
    assert progress.tracker.seconds == {"data": [2.5]}
    assert [job.rule for job, _, _ in progress.running] == ["student"]
    assert {log.name: job.rule for log, job in progress.failed.items()} == {f"x-{'b' * 16}.log": "teacher"}
    assert progress.waiting == {"metrics": 1, "evidence": 1}


def test_a_run_is_shown_by_its_headline_and_one_that_has_gone_is_told(results: Path) -> None:
    progress = look_at(results, seconds=0)
    assert not progress.is_on
    gone = progress_text(progress, time.time())
    assert gone.startswith("no run is on; the last one came to 1/5 steps\n\nwithout an end: killed, or")
    with (results / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        on = progress_text(look_at(results, seconds=0), time.time())
    assert on.startswith("1/5 steps · 00:50 elapsed · about ") and on.splitlines()[0].endswith(" left · 1 failed")
    assert "\nrunning\n  student x  1,200/4,000\n" in on
    assert (
        f"\nfailed\n  teacher x  {results}/logs/teacher/x-{'b' * 16}.log\n    two\n    three\n    no GPU here\n" in on
    )
    assert on.endswith("\nwaiting\n  1 metrics, 1 evidence")


def test_what_lay_there_before_the_run_was_planned_does_not_count(results: Path) -> None:
    now = time.time() + 100
    os.utime(results / ".progress/plan.json", (now, now))
    progress = look_at(results, seconds=0)
    assert (progress.tracker.done, progress.running, progress.failed) == (0, [], {})
    assert sum(progress.waiting.values()) == 5


def test_rounds_between_two_looks_give_the_time_left(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = results / f".progress/{DIGESTS['student']}.json"

    def go_on(seconds: float) -> None:
        before = report.stat().st_mtime
        report.write_text(json.dumps({**json.loads(report.read_text()), "done": 1_300}))
        os.utime(report, (before + 10, before + 10))

    monkeypatch.setattr("dmdpipe.progress.time.sleep", go_on)
    ((_, last, left),) = look_at(results).running
    assert last is not None and last.done == 1_300
    assert left == pytest.approx(10 / 100 * 2_700, rel=1e-3)


def test_without_a_run_it_says_what_to_do(tmp_path: Path, dmdpipe: Callable[..., Any]) -> None:
    outcome = dmdpipe("status", "--results", str(tmp_path))
    assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert "plan.json: not there yet" in outcome.err and "start a run first" in outcome.err
    put(tmp_path / ".progress/plan.json", json.dumps({"reasons": {f"{tmp_path}/nonsense/x/manifest.json": ""}}))
    with pytest.raises(UserError, match="no step makes such a file"):
        look_at(tmp_path)
    put(tmp_path / ".progress/plan.json", json.dumps({"reasons": {"elsewhere/data/x/manifest.json": ""}}))
    with pytest.raises(UserError, match="elsewhere/data/x/manifest.json: is not below .*--results"):
        look_at(tmp_path)


def failed_as_snakemake_saw(results: Path, at: float, why: str = "") -> str:
    """The handler of Snakemake's events hears that the student's job failed; what is shown after that."""
    handler = LogHandler(MockOutputSettings(), LogHandlerSettings(results=results))
    record = logging.makeLogRecord({"event": LogEvent.JOB_ERROR, "levelno": logging.ERROR, "created": at})
    output = [f"{results}/students/x-{DIGESTS['student']}/manifest.json"]
    record.__dict__.update(rule_name="student", jobid=3, output=output, log=[], shellcmd=None, rule_msg=why)
    handler.emit(record)
    return progress_text(look_at(results, seconds=0), time.time())


def test_a_step_that_was_killed_has_failed_until_it_starts_again(results: Path) -> None:
    log = results / f"logs/student/x-{DIGESTS['student']}.log"
    log.write_text("")
    ticket = (results / f".tickets/{DIGESTS['student']}").stat().st_mtime
    # Of an attempt before the ticket was taken, and before this run.
    assert "student x  1,200/4,000" in failed_as_snakemake_saw(results, ticket - 1)
    shown = failed_as_snakemake_saw(results, ticket + 1, "SLURM status is: 'OUT_OF_MEMORY'\nmore")
    assert (
        "1,200" not in shown and f"\n  student x  {log}\n    cluster: SLURM status is: 'OUT_OF_MEMORY'\n    (" in shown
    )
    assert "cluster" not in failed_as_snakemake_saw(results, ticket + 1)
    os.utime(results / f".tickets/{DIGESTS['student']}", (ticket + 2, ticket + 2))
    assert "student x  1,200/4,000" in progress_text(look_at(results, seconds=0), time.time())
    (results / ".progress/failures.json").write_text("[1]")
    assert look_at(results, seconds=0).running


@pytest.mark.parametrize("look", [("-n",), ("-n", "--forceall"), ("study_dimension", "--dry-run")], ids=" ".join)
def test_a_look_at_what_would_run_leaves_what_is_known_of_the_last_run(
    dmdpipe: Callable[..., Any], checkout: Any, monkeypatch: pytest.MonkeyPatch, look: tuple[str, ...]
) -> None:
    seen: list[Any] = []

    def start(arguments: list[str]) -> int:
        seen.append(read_reasons(Path("results/.progress/look.json")).keys())
        return 0

    monkeypatch.setattr(runner, "_snakemake", start)
    small = ("--config", "scale=smoke", "studies=[low_dimension]")
    assert dmdpipe("run", "study_low_dimension", *small).status == 0
    progress = Path("results/.progress")
    manifest, *_ = read_reasons(progress / "plan.json")
    put(progress / "failures.json", json.dumps({manifest: [time.time() + 1, "planted"]}))
    before, known = dmdpipe("status").out, {path: path.stat().st_mtime_ns for path in progress.iterdir()}
    assert "\nfailed\n" in before and "planted" in before
    assert dmdpipe("run", *look, "--config", "scale=smoke", "studies=[dimension]").status == 0
    assert dmdpipe("status").out == before
    assert {path: path.stat().st_mtime_ns for path in progress.iterdir()} == known
    # It has a plan of its own, for the reasons that it shows.
    of_run, of_look = seen
    assert not of_run and of_look and not of_look <= read_reasons(progress / "plan.json").keys()


def test_a_second_run_is_told_of_the_first_and_a_file_system_without_locks_of_none(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        runner.alone(results),
        pytest.raises(UserError, match="another run is using this folder"),
        runner.alone(results),
    ):
        pytest.fail("both ran")

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with runner.alone(results):
        assert not look_at(results, seconds=0).is_on
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"{results}: its file system has no locks (Function not implemented)" in told
