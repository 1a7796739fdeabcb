"""Numbers of single seeds that controls read and no step writes: all follow from a results table.

Each becomes a metric at the students' read-out step:

- ``rho_start``: ρ at generator step 0.
- ``rho_as_started``: ρ to the map of the start: ``rho_rotated`` where a student was put at T∘Q, else ``rho``.
- ``rho_late_change``: ρ at the read-out minus ρ at the last snapshot of the training's first half.
- ``log2_drift_speed``: log2 of ``dmdpipe.evidence.drift.drift_speed``; NaN where that is not positive or not there.
- ``seed_seed``: values of seeds with the mean and the spread of the jackknife behind the table's own interval. That
  leaves open which seed has which. They are laid out against ρ, so that a difference to it has the largest spread
  that any order could give it, and is decided too rarely rather than too often. Read them at one point at a time. NaN
  where a seed of the point is over the gate, since pairs have no gate of their own.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from dmdpipe.evidence.drift import drift_speed
from dmdpipe.evidence.results import AGGREGATE, COLUMNS

STUDENT = ["study", "point", "seed"]
PUT_AT_ROTATED = ("rotated", "kd-rotated")
CONFIDENCE = 0.95  # of the intervals in a results table


def with_derived(results: pd.DataFrame) -> pd.DataFrame:
    """Return a results table (``dmdpipe.evidence.results``, of any number of studies) with these rows after its own."""
    table = results.astype({"readout": bool, "converged": bool})
    seeds = table[table["seed"] != AGGREGATE]
    rho = seeds[seeds["metric"] == "rho"].sort_values([*STUDENT, "generator_step"])
    students = rho[rho["readout"]].set_index(STUDENT)
    rotated = _by_student(seeds[(seeds["metric"] == "rho_rotated") & seeds["readout"]])
    last = rho.groupby(STUDENT)["generator_step"].transform("max")
    halfway = _by_student(rho[2 * rho["generator_step"] <= last].drop_duplicates(STUDENT, keep="last"))
    made = {
        "rho_start": _by_student(rho[rho["generator_step"] == 0]),
        "rho_as_started": students["value"].where(~students["init"].isin(PUT_AT_ROTATED), rotated),
        "rho_late_change": students["value"] - halfway,
        "log2_drift_speed": _log2_speeds(rho),
        "seed_seed": _seed_seed(table, students),
    }
    rows = [
        students.assign(metric=metric, value=values.reindex(students.index)).reset_index()
        for metric, values in made.items()
    ]
    return pd.concat([table, *rows], ignore_index=True)[COLUMNS]


def _by_student(rows: pd.DataFrame) -> pd.Series:
    return rows.set_index(STUDENT)["value"]


def _log2_speeds(rho: pd.DataFrame) -> pd.Series:
    columns = ["generator_step", "value", "converged"]
    speeds = {
        student: drift_speed(*(curve[column].to_numpy() for column in columns))
        for student, curve in rho.groupby(STUDENT)
    }
    index = pd.MultiIndex.from_tuples(speeds, names=STUDENT)
    speed = pd.Series(list(speeds.values()), index, dtype=float)
    return speed.where(speed > 0).transform(np.log2)


def _seed_seed(table: pd.DataFrame, students: pd.DataFrame) -> pd.Series:
    over_seeds = table[(table["seed"] == AGGREGATE) & (table["metric"] == "seed_seed") & table["converged"]]
    parts = [pd.Series(np.nan, students.index)]
    for row in over_seeds.to_dict("records"):
        rho = students["value"].xs((row["study"], row["point"]), level=("study", "point"), drop_level=False)
        error = (row["high"] - row["low"]) / 2 / stdtrit(len(rho) - 1, 0.5 + CONFIDENCE / 2)
        away = rho - rho.mean() if rho.std() > 0 else pd.Series(np.arange(len(rho)) - (len(rho) - 1) / 2, rho.index)
        parts.append(row["value"] - error * np.sqrt(len(rho)) * away / away.std())
    every = pd.concat(parts)
    return every[~every.index.duplicated(keep="last")]
