"""The results table holds every seed and the means over seeds, with the gate of the worst."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from planted_studies import labels, metrics

from dmdpipe.evidence.intervals import student_t_interval
from dmdpipe.evidence.results import AGGREGATE, COLUMNS, results_table, seed_pair_errors

NEAR, FAR = labels("ring", 2), labels("digits-8x8", 64, sigma_max=8)
RHO = {("near", 0): 0.2, ("near", 1): 0.3, ("near", 2): 0.7, ("far", 0): 0.9}
GATES = {("near", 0): 1.1, ("near", 1): 1.9, ("near", 2): 2.5, ("far", 0): 1.0}
PAIRS = {(0, 1): 0.4, (0, 2): 0.5, (1, 2): 0.6}


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    points = {"near": NEAR, "far": FAR}
    cells = [
        ({**points[name], "seed": seed}, metrics({"rho": rho}, GATES[name, seed])) for (name, seed), rho in RHO.items()
    ]
    return results_table("s", "laptop", cells, {NEAR["point"]: PAIRS, FAR["point"]: {}})


def row(results: pd.DataFrame, point: dict, seed: int, step: int, metric: str) -> pd.Series:
    chosen = results[
        (results["point"] == point["point"])
        & (results["seed"] == seed)
        & (results["generator_step"] == step)
        & (results["metric"] == metric)
    ]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_columns_and_types(results: pd.DataFrame) -> None:
    assert list(results.columns) == COLUMNS
    assert (results["study"] == "s").all() and (results["scale"] == "laptop").all()
    for column, kind in {
        "d": "i",
        "seed": "i",
        "generator_step": "i",
        "n_seeds": "i",
        "sigma_max": "f",
    }.items():
        assert results[column].dtype.kind == kind, column
    assert results["converged"].dtype == bool and results["readout"].dtype == bool


def test_seeds_keep_their_values_without_bounds(results: pd.DataFrame) -> None:
    one = row(results, NEAR, 2, 100, "rho")
    assert (one["value"], one["gate_ratio"], one["converged"], one["n_seeds"]) == (0.7, 2.5, False, 1)
    assert np.isnan(one["low"]) and np.isnan(one["high"])


def test_aggregates_hold_mean_interval_and_the_worst_gate(results: pd.DataFrame) -> None:
    mean = row(results, NEAR, AGGREGATE, 100, "rho")
    assert (mean["value"], mean["low"], mean["high"]) == pytest.approx(tuple(student_t_interval([0.2, 0.3, 0.7])))
    assert (mean["n_seeds"], mean["gate_ratio"], mean["converged"]) == (3, 2.5, False)
    alone = row(results, FAR, AGGREGATE, 100, "rho")
    assert (alone["value"], alone["n_seeds"], alone["converged"]) == (0.9, 1, True)
    assert np.isnan(alone["low"])


def test_the_gate_is_that_of_the_same_step(results: pd.DataFrame) -> None:
    start = row(results, FAR, AGGREGATE, 0, "rho")
    assert (start["gate_ratio"], start["converged"]) == (50.0, False)


def test_readout_is_the_last_step(results: pd.DataFrame) -> None:
    assert set(results.loc[results["readout"], "generator_step"]) == {100}
    assert set(results.loc[~results["readout"], "generator_step"]) == {0}


def test_seed_pairs_become_one_row_per_point(results: pd.DataFrame) -> None:
    pairs = results[results["metric"] == "seed_seed"]
    assert len(pairs) == 1
    one = row(results, NEAR, AGGREGATE, 100, "seed_seed")
    assert one["value"] == pytest.approx(0.5)
    assert one["low"] < 0.5 < one["high"]
    assert (one["n_seeds"], one["converged"], one["readout"]) == (3, False, True)


def test_no_order_of_cells_within_a_point_matters(results: pd.DataFrame) -> None:
    cells = [({**NEAR, "seed": seed}, metrics({"rho": RHO["near", seed]}, 1.0)) for seed in (2, 0, 1)]
    pd.testing.assert_frame_equal(
        results_table("s", "laptop", cells, {}),
        results_table("s", "laptop", sorted(cells, key=lambda c: c[0]["seed"]), {}),
    )


def test_a_metric_that_is_undefined_for_a_seed_has_no_mean() -> None:
    cells = [({**NEAR, "seed": s}, metrics({"rho": v}, 1.0)) for s, v in enumerate([0.1, np.nan, 0.2])]
    assert np.isnan(row(results_table("s", "laptop", cells, {}), NEAR, AGGREGATE, 100, "rho")["value"])


def test_a_diverged_student_stays_visible_and_breaks_nothing() -> None:
    lost = pd.DataFrame(
        [(0, "gate_ratio", np.inf), (0, "converged", 0.0), (0, "rho", np.nan)],
        columns=["generator_step", "metric", "value"],
    )
    cells = [({**NEAR, "seed": s}, metrics({"rho": 0.2}, 1.0, steps=(0,))) for s in (0, 1)]
    students = {seed: np.full((4, 2), value) for seed, value in enumerate([0.5, 1.5, np.nan])}
    students[0][0] = students[1][1] = 2.0
    errors = seed_pair_errors(students)
    assert [pair for pair, error in errors.items() if np.isnan(error)] == [(0, 2), (1, 2)]
    results = results_table("s", "laptop", [*cells, ({**NEAR, "seed": 2}, lost)], {NEAR["point"]: errors})
    gate = row(results, NEAR, AGGREGATE, 0, "gate_ratio")
    assert (gate["value"], gate["gate_ratio"], gate["converged"]) == (np.inf, np.inf, False)
    assert np.isnan(row(results, NEAR, AGGREGATE, 0, "rho")["value"])
    assert np.isnan(row(results, NEAR, AGGREGATE, 0, "seed_seed")["value"])


def test_seed_pair_errors_reads_zero_for_a_copy_and_one_for_independence() -> None:
    rng = np.random.default_rng(4)
    first, other = rng.standard_normal((2, 2_000, 3))
    errors = seed_pair_errors({7: other, 1: first, 3: first})
    assert list(errors) == [(1, 3), (1, 7), (3, 7)]
    assert errors[1, 3] == 0
    assert errors[1, 7] == pytest.approx(1, abs=0.05)
