"""The results table of a study: one tidy row per point, seed, generator step and metric, and their means over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from dmdpipe.copying.pairing_metrics import relative_pair_error
from dmdpipe.evidence.intervals import Interval, seed_pair_interval, student_t_interval

AGGREGATE = -1  # in the column `seed`: a row over all seeds

POINT_COLUMNS = ["point", "data", "d", "network", "init", "recipe", "sigma_max"]
COLUMNS = [
    "study",
    "scale",
    *POINT_COLUMNS,
    "seed",
    "generator_step",
    "metric",
    "value",
    "low",
    "high",
    "n_seeds",
    "gate_ratio",
    "converged",
    "readout",
]

Cell = tuple[Mapping[str, Any], pd.DataFrame]


def results_table(
    study: str,
    scale: str,
    cells: Iterable[Cell],
    seed_pairs: Mapping[str, dict[tuple[int, int], float]],
) -> pd.DataFrame:
    """Return the study's tidy table: the rows of every seed, and those over seeds (``seed`` = −1).

    ``cells`` holds, for every trained student, its labels (``POINT_COLUMNS`` and ``seed``) and its metrics (columns
    ``generator_step``, ``metric``, ``value``). ``seed_pairs`` holds ρ(S_a, S_b) by point (see ``seed_pair_errors``);
    it becomes the metric ``seed_seed``, over seeds, at the read-out step.

    ``value`` of a row over seeds is the mean, ``low`` and ``high`` its 95 % Student-t interval. Its ``gate_ratio`` is
    that of the worst seed (the largest), and it is ``converged`` only if every seed is. No seed is left out of a mean,
    converged or not; what may count for a claim is decided in ``dmdpipe.evidence.verdicts``. ``readout`` marks the
    last generator step of a student. Points stay in the order in which they came.
    """
    of_seeds = per_seed_rows(study, scale, cells)
    over_seeds = aggregate_rows(of_seeds)
    parts = [over_seeds, seed_seed_rows(over_seeds, seed_pairs), of_seeds]
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    order = {point: i for i, point in enumerate(of_seeds["point"].unique())}
    table = table.assign(_order=table["point"].map(order))
    table = table.sort_values(["_order", "generator_step", "metric", "seed"], kind="stable", ignore_index=True)
    return table[COLUMNS]


def per_seed_rows(study: str, scale: str, cells: Iterable[Cell]) -> pd.DataFrame:
    """Return one row per point, seed, generator step and metric, with the gate at that step beside it."""
    return pd.concat([_one_cell(study, scale, labels, metrics) for labels, metrics in cells], ignore_index=True)


def _one_cell(study: str, scale: str, labels: Mapping[str, Any], metrics: pd.DataFrame) -> pd.DataFrame:
    by_metric = metrics.pivot(index="generator_step", columns="metric", values="value")
    steps = metrics["generator_step"]
    rows = metrics[["generator_step", "metric", "value"]].assign(
        study=study,
        scale=scale,
        **{column: labels[column] for column in [*POINT_COLUMNS, "seed"]},
        low=np.nan,
        high=np.nan,
        n_seeds=1,
        gate_ratio=steps.map(by_metric["gate_ratio"]),
        converged=steps.map(by_metric["converged"]) == 1,
        readout=steps == steps.max(),
    )
    rows["sigma_max"] = rows["sigma_max"].astype(float)
    return rows[COLUMNS]


def aggregate_rows(of_seeds: pd.DataFrame) -> pd.DataFrame:
    """Return one row per point, generator step and metric: mean and interval over seeds, gate of the worst seed."""
    rows = []
    for _, group in of_seeds.groupby(["point", "generator_step", "metric"], sort=False):
        gate = {
            "gate_ratio": group["gate_ratio"].max(skipna=False),
            "converged": group["converged"].all(),
            "readout": group["readout"].all(),
        }
        rows.append(_over_seeds(group.iloc[0].to_dict() | gate, student_t_interval(group["value"]), len(group)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _over_seeds(labels: Mapping[str, Any], interval: Interval, n_seeds: int) -> dict[str, Any]:
    return {
        **labels,
        "seed": AGGREGATE,
        "value": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "n_seeds": n_seeds,
    }


def seed_pair_errors(students: Mapping[int, np.ndarray]) -> dict[tuple[int, int], float]:
    """Return ρ(S_a, S_b) for all pairs a < b of seeds, from their outputs [N, d] on the same noise.

    0 means that both seeds arrive at one map, which need not be the teacher's; 1 that they are independent.
    """
    return {
        (a, b): float(relative_pair_error(students[a], students[b])) for a, b in combinations(sorted(students), 2)
    }


def seed_seed_rows(over_seeds: pd.DataFrame, seed_pairs: Mapping[str, dict[tuple[int, int], float]]) -> pd.DataFrame:
    """Return one row ``seed_seed`` per point with two seeds or more, at its read-out step, with its gate."""
    at_readout = over_seeds[over_seeds["readout"]].drop_duplicates("point")
    rows = [
        _over_seeds(labels | {"metric": "seed_seed"}, seed_pair_interval(pairs), labels["n_seeds"])
        for labels in at_readout.to_dict("records")
        if (pairs := seed_pairs.get(labels["point"]))
    ]
    return pd.DataFrame(rows, columns=COLUMNS)
