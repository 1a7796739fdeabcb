"""The results table of a study: one row per point, seed, generator step and metric, and means over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from dmdpipe.copying.pairing_metrics import relative_pair_error
from dmdpipe.evidence.intervals import seed_pair_interval, student_t_interval

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

    ``cells`` holds, for every trained student, its labels (``POINT_COLUMNS`` and ``seed``) and its metrics
    (columns ``generator_step``, ``metric``, ``value``). ``seed_pairs`` holds ρ(S_a, S_b) by point (see
    ``seed_pair_errors``); it becomes the metric ``seed_seed``, over seeds, at the read-out step.

    ``value`` of a row over seeds is the mean, ``low`` and ``high`` its 95 % Student-t interval. Its
    ``gate_ratio`` is that of the worst seed (the largest), and it is ``converged`` only if every seed is. No
    seed is left out of a mean, converged or not; what may count for a claim is decided in
    ``dmdpipe.evidence.readings``. ``readout`` marks the last generator step of a student. Points stay in the
    order in which they came.
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
    labels, metrics = zip(*cells, strict=True)
    of_cell = pd.DataFrame(labels)[[*POINT_COLUMNS, "seed"]].astype({"sigma_max": float})
    rows = pd.concat(metrics, keys=of_cell.index, names=["cell"]).reset_index("cell")
    gate = rows.pivot(index=["cell", "generator_step"], columns="metric", values="value")
    gate = gate[["gate_ratio", "converged"]].assign(converged=gate["converged"] == 1)
    last_step = rows.groupby("cell")["generator_step"].transform("max")
    rows = rows.join(of_cell, on="cell").join(gate, on=["cell", "generator_step"])
    return rows.assign(
        study=study,
        scale=scale,
        low=np.nan,
        high=np.nan,
        n_seeds=1,
        readout=rows["generator_step"] == last_step,
    ).reset_index(drop=True)[COLUMNS]


def aggregate_rows(of_seeds: pd.DataFrame) -> pd.DataFrame:
    """Return a row per point, generator step and metric: mean and interval over seeds, gate of the worst."""
    key = ["point", "generator_step", "metric"]
    groups = of_seeds.groupby(key, sort=False)
    intervals = [student_t_interval(values) for _, values in groups["value"]]
    return of_seeds.drop_duplicates(key).assign(
        seed=AGGREGATE,
        value=[interval.mean for interval in intervals],
        low=[interval.low for interval in intervals],
        high=[interval.high for interval in intervals],
        n_seeds=groups.size().to_numpy(),
        gate_ratio=groups["gate_ratio"].max(skipna=False).to_numpy(),
        converged=groups["converged"].all().to_numpy(),
        readout=groups["readout"].all().to_numpy(),
    )


def seed_pair_errors(students: Mapping[int, np.ndarray]) -> dict[tuple[int, int], float]:
    """Return ρ(S_a, S_b) for all pairs a < b of seeds, from their outputs [N, d] on the same noise.

    0 means that both seeds arrive at one map, which need not be the teacher's; 1 that they are independent.
    NaN if a student has diverged (outputs that are not finite).
    """
    finite = {seed: bool(np.isfinite(outputs).all()) for seed, outputs in students.items()}
    return {
        (a, b): float(relative_pair_error(students[a], students[b])) if finite[a] and finite[b] else np.nan
        for a, b in combinations(sorted(students), 2)
    }


def seed_seed_rows(over_seeds: pd.DataFrame, seed_pairs: Mapping[str, dict[tuple[int, int], float]]) -> pd.DataFrame:
    """Return one row ``seed_seed`` per point with two seeds or more, at its read-out step, with its gate."""
    at_readout = over_seeds[over_seeds["readout"]].drop_duplicates("point")
    at_readout = at_readout[at_readout["point"].isin([point for point, pairs in seed_pairs.items() if pairs])]
    intervals = [seed_pair_interval(seed_pairs[point]) for point in at_readout["point"]]
    return at_readout.assign(
        metric="seed_seed",
        value=[interval.mean for interval in intervals],
        low=[interval.low for interval in intervals],
        high=[interval.high for interval in intervals],
    )
