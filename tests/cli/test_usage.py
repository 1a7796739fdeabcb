"""`dmdpipe studies plan --used`, on planted run.json files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmdpipe import usage
from dmdpipe.artifacts.dag import plan_study, steps_below


def put(results: Path, step: object, text: str) -> None:
    folder = results / step.folder
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(text)


def test_of_each_rule_the_largest_and_its_share_of_what_a_job_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [SimpleNamespace(stage=rule, folder=f"{rule}/{n}", n=n) for rule in ("teacher", "student") for n in (1, 2)]
    monkeypatch.setattr(usage, "minutes_to_ask_for", lambda step, attempt: 10 * step.n * attempt)
    monkeypatch.setattr(usage, "megabytes_to_ask_for", lambda step, attempt: 1000 * step.n * attempt)
    put(tmp_path, steps[0], json.dumps({"seconds": 60, "peak_memory_mib": 500}))
    put(tmp_path, steps[1], json.dumps({"seconds": 90, "peak_memory_mib": 800}))
    put(tmp_path, steps[3], json.dumps({"seconds": 600, "peak_memory_mib": 200}))
    table = usage.usage_by_rule(steps, tmp_path).to_dict("records")
    assert table == [
        # The shorter step comes nearer to its own limits.
        {"rule": "teacher", "steps": 2, "minutes": 1.5, "share_of_time": 0.1, "mib": 800, "share_of_memory": 0.5},
        {"rule": "student", "steps": 1, "minutes": 10, "share_of_time": 0.5, "mib": 200, "share_of_memory": 0.1},
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"seconds": "?", "peak_memory_mib": 1}', '{"seconds": null}'])
def test_steps_that_have_not_finished_or_say_nothing_are_left_out(tmp_path: Path, text: str) -> None:
    steps = list(steps_below(plan_study("dimension", "smoke").evidence))
    assert list(usage.usage_by_rule(steps, tmp_path).columns) == usage.COLUMNS
    put(tmp_path, steps[0], text)
    assert usage.usage_by_rule(steps, tmp_path).empty
    put(tmp_path, steps[1], json.dumps({"seconds": 6, "peak_memory_mib": 300}))
    assert list(usage.usage_by_rule(steps, tmp_path)["rule"]) == [steps[1].stage]
