"""Time to the gate, read off planted results whose answers are known."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "audit"))

from planted_trees import plant, study

from dmdpipe.artifacts.plan import PlannedStep
from dmdpipe.artifacts.tables import encode_table
from dmdpipe.bench.gate import data_label, first_within, time_to_the_gate
from dmdpipe.errors import UserError

SEEDS = 3
GENERATOR_STEPS = 1_000  # the default of a student's spec
WITHIN = {0: {0: 0.0, 100: 0.0, 400: 1.0, 1000: 1.0}, 1: {0: 0.0, 100: 1.0, 400: 0.0, 1000: 1.0}}
NEVER = {0: 0.0, 100: 0.0, 400: 0.0, 1000: 0.0}


def metrics(seed: int) -> bytes:
    rows = [(step, "converged", value) for step, value in WITHIN.get(seed, NEVER).items()]
    rows += [(step, "rho", 0.5) for step in NEVER]
    return encode_table(pd.DataFrame(rows, columns=["generator_step", "metric", "value"]))


def payload(step: PlannedStep) -> dict[str, bytes]:
    if step.stage == "metrics":
        return {"metrics.parquet": metrics(step.spec.pairs.student.seed)}
    return {"some": b"thing"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    steps = {folder: step for folder, step in study(SEEDS).items() if step.stage not in ("evidence", "verdicts")}
    steps = {folder: step for folder, step in steps.items() if step.stage != "figures"}
    plant(tmp_path, steps, payload)
    for folder, step in steps.items():
        if step.stage == "student":
            facts = {"seconds": 10.0 * (step.spec.seed + 1)}
            (tmp_path / folder / "run.json").write_text(json.dumps(facts))
    return tmp_path


def test_seconds_are_the_share_of_the_training_until_the_first_snapshot_within(results: Path) -> None:
    (row,) = time_to_the_gate(results).to_dict("records")
    assert (row["data"], row["start"], row["recipe"], row["sigma_max"]) == ("moons", "teacher", "dmd2", 80.0)
    assert row["generator_steps"] == GENERATOR_STEPS
    assert (row["students"], row["reached"]) == (3, 2)
    assert row["steps"] == (400 + 100) / 2
    assert row["seconds"] == pytest.approx((10 * 0.4 + 20 * 0.1) / 2)
    assert row["whole"] == 20.0


def test_a_training_whose_time_nobody_wrote_down_has_none(results: Path) -> None:
    for path in results.rglob("run.json"):
        path.unlink()
    (row,) = time_to_the_gate(results).to_dict("records")
    assert row["reached"] == 2 and math.isnan(row["seconds"]) and math.isnan(row["whole"])


def test_a_student_that_leaves_the_gate_again_was_within_it() -> None:
    assert first_within({0: 0.0, 5: 1.0, 50: 0.0}) == 5
    assert math.isnan(first_within({0: 0.0, 5: math.nan}))


def test_data_are_told_apart_by_size() -> None:
    assert data_label({"family": "digits", "side": 4}) == "digits-4x4"
    assert data_label({"family": "gaussian", "dim": 16}) == "gaussian-16"
    assert data_label({"family": "ring", "modes": 8}) == "ring"


def test_bad_input_gets_one_line(tmp_path: Path, results: Path, dmdpipe: Callable[..., Any]) -> None:
    for folder, words in ((tmp_path / "nowhere", "is no folder"), (results / "students", "holds no metrics")):
        outcome = dmdpipe("bench", "gate", str(folder))
        assert outcome.status != 0 and words in outcome.err and len(outcome.err.strip().splitlines()) == 1
    damaged = next((results / "metrics").iterdir()) / "metrics.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"metrics\.parquet"):
        time_to_the_gate(results)


def test_the_command_prints_the_table(results: Path, dmdpipe: Callable[..., Any]) -> None:
    outcome = dmdpipe("bench", "gate", str(results), "--format", "csv")
    assert outcome.status == 0 and outcome.out.splitlines()[0].startswith("data,start,recipe")
    assert outcome.out.count("moons") == 1
