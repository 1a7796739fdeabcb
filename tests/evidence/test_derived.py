"""Numbers that controls read beside those of the steps: each against its definition, on planted curves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dmdpipe.evidence.controls import judge_controls
from dmdpipe.evidence.derived import with_derived
from dmdpipe.evidence.results import COLUMNS, results_table, seed_pair_errors
from dmdpipe.specs.claims import Claims

STEPS = (0, 10, 40, 60, 100)
LABELS = {"point": "p", "data": "ring", "d": 2, "network": "n", "recipe": "r", "sigma_max": 80.0}


def cell(seed: int, rho: list[float], within: list[bool], init: str = "teacher") -> tuple[dict, pd.DataFrame]:
    rows = []
    for step, value, inside in zip(STEPS, rho, within, strict=True):
        rows += [(step, "rho", value), (step, "rho_rotated", 10 + value)]
        rows += [(step, "gate_ratio", 1.0 if inside else 3.0), (step, "converged", float(inside))]
    return LABELS | {"init": init, "seed": seed}, pd.DataFrame(rows, columns=["generator_step", "metric", "value"])


def derived(*cells: tuple[dict, pd.DataFrame], pairs: dict | None = None) -> pd.DataFrame:
    table = results_table("s", "tiny", cells, {"p": pairs or {}})
    every = with_derived(table)
    pd.testing.assert_frame_equal(every.iloc[: len(table)], table)
    assert list(every.columns) == COLUMNS
    made = every.iloc[len(table) :]
    assert made["readout"].all() and (made["generator_step"] == STEPS[-1]).all()
    return made.pivot(index="seed", columns="metric", values="value")


def test_start_and_late_change_are_read_from_the_curve() -> None:
    made = derived(cell(3, [0.9, 0.1, 0.2, 0.35, 0.5], [True] * 5))
    assert made.loc[3, "rho_start"] == 0.9
    assert made.loc[3, "rho_late_change"] == pytest.approx(0.5 - 0.2)  # of steps 0 to 100, 40 is the last by 50


@pytest.mark.parametrize(("init", "read"), [("teacher", 0.5), ("rotated", 10.5), ("kd-rotated", 10.5)])
def test_a_student_put_at_the_rotated_map_is_read_there(init: str, read: float) -> None:
    assert derived(cell(3, [0.9, 0.1, 0.2, 0.3, 0.5], [True] * 5, init)).loc[3, "rho_as_started"] == read


def test_the_speed_is_that_of_the_stretch_within_the_gate() -> None:
    """2⁻⁷ a step from 40 on; what lies before the gate, and the start, does not count."""
    line = [0.0, 7.0, *(step / 128 for step in STEPS[2:])]
    assert derived(cell(3, line, [True, False, True, True, True])).loc[3, "log2_drift_speed"] == pytest.approx(-7)


@pytest.mark.parametrize(
    ("rho", "within"),
    [([0.1, 0.5, 0.4, 0.3, 0.2], [True] * 5), ([0.1, 0.2, 0.3, 0.4, 0.5], [True, True, False, True, True])],
)
def test_a_speed_that_is_not_positive_or_not_there_is_undefined(rho: list[float], within: list[bool]) -> None:
    assert np.isnan(derived(cell(3, rho, within)).loc[3, "log2_drift_speed"])


def seeds_and_pairs(outlier: bool = False) -> tuple[list[tuple[dict, pd.DataFrame]], dict]:
    rng = np.random.default_rng(0)
    pairs = seed_pair_errors({seed: rng.standard_normal((50, 2)) * (1 + seed / 9) for seed in range(5)})
    inside = [[True] * 4 + [not (outlier and seed == 2)] for seed in range(5)]
    return [cell(seed, [0.1] * 4 + [0.2 + seed**2 / 50], inside[seed]) for seed in range(5)], pairs


def test_the_seeds_of_seed_seed_have_the_jackknifes_mean_and_spread() -> None:
    cells, pairs = seeds_and_pairs()
    made = derived(*cells, pairs=pairs)
    every = np.array([[pairs.get((min(a, b), max(a, b)), np.nan) for b in range(5)] for a in range(5)])
    mean = np.nanmean(every)
    # Pseudo-values n·θ − (n − 1)·θ without a seed, whose standard error is the jackknife's.
    kept = [[b for b in range(5) if b != a] for a in range(5)]
    pseudo = [5 * mean - 4 * np.nanmean(every[np.ix_(rest, rest)]) for rest in kept]
    values = made["seed_seed"].to_numpy()
    assert values.mean() == pytest.approx(mean)
    assert values.std(ddof=1) == pytest.approx(np.std(pseudo, ddof=1))
    assert np.corrcoef(values, [0.2 + seed**2 / 50 for seed in range(5)])[0, 1] == pytest.approx(-1)


def test_pairs_with_a_student_over_the_gate_are_not_read() -> None:
    cells, pairs = seeds_and_pairs(outlier=True)
    assert derived(*cells, pairs=pairs)["seed_seed"].isna().all()


def control(id_: str, *studies: str, threshold: float = 0.5) -> dict:
    criteria = [
        {
            "name": f"{study}",
            "study": study,
            "statistic": {"value": {"metric": "rho"}},
            "predicts": "below",
            "threshold": threshold,
            "because": "b",
        }
        for study in studies
    ]
    return {"id": id_, "title": "t", "statement": "s", "level_of_evidence": "l", "criteria": criteria}


def test_a_control_of_a_study_that_was_not_run_is_told_as_that() -> None:
    """Unless what was run decides: one criterion that fails refutes, whatever the others would have said."""
    cells, pairs = seeds_and_pairs()
    results = results_table("s", "tiny", cells, {"p": pairs})
    declared = [
        control("K-there", "s"),
        control("K-absent", "other"),
        control("K-half", "s", "other", threshold=9),
        control("K-fails", "s", "other", threshold=-9),
    ]
    judged = judge_controls(Claims.model_validate({"claims": declared}), results)
    verdicts = dict(zip(judged.verdicts["id"], judged.verdicts["verdict"], strict=True))
    assert verdicts == {"K-there": "inconclusive", "K-absent": "not run", "K-half": "not run", "K-fails": "refuted"}
    assert list(judged.criteria["verdict"]) == ["inconclusive", *["not run"] * 3, *["refuted"] * 2]
    assert list(judged.criteria.columns[:4]) == ["id", "title", "verdict", "criterion"]
