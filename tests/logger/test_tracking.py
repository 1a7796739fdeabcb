"""The estimate of the time left, against closed forms, and the matching of progress files to jobs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from snakemake_logger_plugin_dmdpipe.tracking import Job, Report, Tracker, make_job, read_prior, read_report

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = "1f3a9c02d47e5b10"


def run_of(planned: dict[str, int], cores: int | None = 1, prior: dict[str, float] | None = None) -> Tracker:
    return Tracker(cores=cores, started=0.0, planned=planned, prior=prior or {})


def start(tracker: Tracker, job_id: int, rule: str, at: float) -> None:
    tracker.start(job_id, Job(rule, f"label{job_id}", "", at))


def complete(tracker: Tracker, job_id: int, rule: str, seconds: float) -> None:
    start(tracker, job_id, rule, 0.0)
    tracker.finish(job_id, seconds)


def test_nothing_is_known_before_the_first_job_is_done() -> None:
    tracker = run_of({"teacher": 3})
    start(tracker, 1, "teacher", 0.0)
    assert tracker.seconds_left(5.0) is None


def test_each_rule_has_its_own_mean() -> None:
    tracker = run_of({"teacher": 3, "pairs": 5}, cores=1)
    complete(tracker, 1, "teacher", 10.0)
    complete(tracker, 2, "teacher", 20.0)
    complete(tracker, 3, "pairs", 2.0)
    assert tracker.seconds_left(100.0) == pytest.approx(1 * 15 + 4 * 2)


def test_a_rule_not_seen_yet_takes_the_mean_of_all_jobs() -> None:
    tracker = run_of({"teacher": 2, "pairs": 1, "metrics": 4})
    complete(tracker, 1, "teacher", 10.0)
    complete(tracker, 2, "teacher", 10.0)
    complete(tracker, 3, "pairs", 1.0)
    assert tracker.seconds_left(100.0) == pytest.approx(4 * 7.0)


@pytest.mark.parametrize(
    ("cores", "planned", "expected"),
    [(4, 9, 8 * 6 / 4), (4, 3, 2 * 6 / 2), (4, 2, 6.0), (1, 3, 12.0)],
)
def test_work_is_spread_over_cores_but_not_thinner_than_jobs(cores: int, planned: int, expected: float) -> None:
    tracker = run_of({"teacher": planned}, cores=cores)
    complete(tracker, 0, "teacher", 6.0)
    assert tracker.seconds_left(100.0) == pytest.approx(expected)


def test_without_known_cores_the_running_jobs_count() -> None:
    tracker = run_of({"teacher": 7}, cores=None)
    complete(tracker, 0, "teacher", 6.0)
    start(tracker, 1, "teacher", 100.0)
    start(tracker, 2, "teacher", 100.0)
    assert tracker.seconds_left(100.0) == pytest.approx(6 * 6 / 2)


def test_time_passes_for_running_jobs_but_never_below_zero() -> None:
    tracker = run_of({"teacher": 3})
    complete(tracker, 0, "teacher", 10.0)
    start(tracker, 1, "teacher", 50.0)
    assert tracker.seconds_left(54.0) == pytest.approx(20 - 4)
    # A job that takes longer than the others owes nothing to those that still wait.
    assert tracker.seconds_left(500.0) == pytest.approx(10)


def test_prior_is_used_at_once_and_weighs_as_one_job() -> None:
    tracker = run_of({"teacher": 4, "pairs": 2}, prior={"teacher": 30.0})
    assert tracker.seconds_left(0.0) == pytest.approx(6 * 30)
    complete(tracker, 1, "teacher", 10.0)
    assert tracker.seconds_left(100.0) == pytest.approx(3 * (30 + 10) / 2 + 2 * 10)


def test_nothing_is_left_when_all_is_done_or_more_than_was_planned() -> None:
    tracker = run_of({"teacher": 1})
    complete(tracker, 1, "teacher", 4.0)
    assert tracker.seconds_left(10.0) == 0.0
    complete(tracker, 2, "teacher", 4.0)
    assert tracker.seconds_left(10.0) == 0.0


def test_a_retried_job_is_not_failed_any_more() -> None:
    tracker = run_of({"teacher": 1})
    start(tracker, 1, "teacher", 0.0)
    assert tracker.fail(1) == Job("teacher", "label1", "", 0.0)
    assert tracker.failed == {1} and not tracker.running
    start(tracker, 1, "teacher", 5.0)
    assert tracker.finish(1, 7.0) == (Job("teacher", "label1", "", 5.0), 2.0)
    assert not tracker.failed


def test_an_unknown_job_is_no_error() -> None:
    tracker = Tracker()
    assert tracker.finish(7, 1.0) is None and tracker.fail(8) is None


def test_a_job_is_named_by_its_step_without_the_digest() -> None:
    step = f"digits-8x8_mlp-64x3_seed0-{DIGEST}"
    job = make_job("teacher", {"step": step}, [f"results/teachers/{step}/manifest.json"], 3.0)
    assert job == Job("teacher", "digits-8x8_mlp-64x3_seed0", DIGEST, 3.0)
    evidence = make_job("evidence", {"step": "dimension/smoke"}, ["results/studies/dimension/smoke/manifest.json"], 3.0)
    assert evidence == Job("evidence", "dimension/smoke", "", 3.0)
    assert make_job("all", {}, [], 3.0) == Job("all", "", "", 3.0)


def write_report(folder: Path, digest: str, at: float, **changes: Any) -> None:
    facts = {"stage": "teacher", "label": "digits", "done": 0, "total": 4000, "started": 0.0} | changes
    path = folder / f"{digest}.json"
    path.write_text(json.dumps(facts))
    os.utime(path, (at, at))


def test_pace_is_measured_between_reports_not_from_round_zero(tmp_path: Path) -> None:
    tracker = run_of({"teacher": 1})
    tracker.start(1, Job("teacher", "digits", DIGEST, 90.0))
    # Resumed at round 3,000: ten seconds after its start it would seem to be at 300 rounds a second.
    write_report(tmp_path, DIGEST, at=100.0, done=3000, started=90.0)
    ((_, report, left),) = tracker.rounds(tmp_path)
    assert report and (report.done, report.total, left) == (3000, 4000, None)
    write_report(tmp_path, DIGEST, at=104.0, done=3200, started=90.0)
    ((_, _, left),) = tracker.rounds(tmp_path)
    assert left == pytest.approx(800 * 4 / 200)


def test_reports_go_to_their_own_jobs(tmp_path: Path) -> None:
    tracker = run_of({"teacher": 2, "evidence": 1})
    tracker.start(1, Job("teacher", "digits", DIGEST, 0.0))
    tracker.start(2, Job("teacher", "digits", "0" * 16, 0.0))
    tracker.start(3, Job("evidence", "dimension/smoke", "", 0.0))
    write_report(tmp_path, DIGEST, at=1.0, done=7)
    write_report(tmp_path, "f" * 16, at=1.0, stage="evidence", label="dimension/smoke", done=9)
    write_report(tmp_path, "e" * 16, at=1.0, stage="evidence", label="dynamics/smoke", done=11)
    (tmp_path / "plan.json").write_text('{"seconds": {"teacher": 3}}')
    assert [report and report.done for _, report, _ in tracker.rounds(tmp_path)] == [7, None, 9]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"done": 1}', '{"seconds": 3}', '{"seconds": {"a": "x"}}']
)
def test_malformed_files_are_passed_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert read_report(path) is None and read_prior(path) == {}


def test_missing_files_are_passed_over(tmp_path: Path) -> None:
    tracker = run_of({"teacher": 1})
    start(tracker, 1, "teacher", 0.0)
    assert read_prior(tmp_path / "plan.json") == {}
    assert tracker.rounds(tmp_path / "nowhere") == [(tracker.running[1], None, None)]


def test_a_good_report_is_read(tmp_path: Path) -> None:
    write_report(tmp_path, DIGEST, at=2.0, done=5)
    expected = Report(DIGEST, "teacher", "digits", 5, 4000, 0.0, 2.0)
    assert read_report(tmp_path / f"{DIGEST}.json") == expected
