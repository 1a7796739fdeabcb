"""What a results table says about a criterion: one number per seed, from the runs that may count.

A criterion reads the runs that it selects, at their read-out step. A run that is over the gate there (not
converged in distribution) counts for no claim: it is dropped, and named. Statistics join points by seed, so a
seed counts if all of its selected runs converged; averaging over whichever points are left would compare
different things in different seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from dmdpipe.evidence.statistics import mean_over_points, rank_correlation, slope_per_doubling
from dmdpipe.specs.claims import Criterion, Selection

Cause = Literal[
    "",
    "no study",
    "no matching run",
    "not converged",
    "too few seeds",
    "statistic undefined",
    "interval crosses",
]


@dataclass(frozen=True)
class Reading:
    """A criterion's statistic for every counting seed, and what it was read from.

    ``per_seed`` [S] has one number per seed all of whose selected runs converged; ``seeds_run`` counts the
    seeds that have all of the selected points, converged or not. ``points`` and ``runs`` count what was
    selected, ``dropped`` names the runs over the gate. ``absent``, a cause and a sentence, says why there was
    nothing to read.
    """

    per_seed: np.ndarray
    seeds_run: int = 0
    points: int = 0
    runs: int = 0
    dropped: tuple[str, ...] = ()
    absent: tuple[Cause, str] | None = None


class _AbsentError(Exception):
    """The table holds no runs for a criterion."""

    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause


def describe_statistic(criterion: Criterion) -> str:
    """Return a criterion's statistic in words and metric names."""
    statistic = criterion.statistic
    if value := statistic.value:
        return value.metric
    if difference := statistic.difference:
        if difference.minus_metric is not None:
            return f"{difference.metric} − {difference.minus_metric}"
        return f"{difference.metric} − {difference.metric} at {_describe(difference.minus or Selection())}"
    if slope := statistic.slope:
        return f"slope of {slope.metric} per doubling of {slope.against}"
    correlation = statistic.rank_correlation
    assert correlation is not None
    step = correlation.against.generator_step
    where = "the read-out" if step is None else f"generator step {step}"
    return f"rank correlation of {correlation.metric} with {correlation.against.metric} at {where}"


def read_criterion(criterion: Criterion, runs: pd.DataFrame) -> Reading:
    """Return what the runs of single seeds in a results table say about a criterion.

    Raises ValueError if a run stands in the table twice.
    """
    try:
        return _read(criterion, runs)
    except _AbsentError as absent:
        return Reading(np.empty(0), absent=(absent.cause, str(absent)))


def _read(criterion: Criterion, runs: pd.DataFrame) -> Reading:
    of_study = runs[runs["study"] == criterion.study]
    if of_study.empty:
        raise _AbsentError("no study", f"study '{criterion.study}' has not been run")
    statistic = criterion.statistic
    selected = _select(of_study, criterion.select)
    other = selected
    if statistic.difference and statistic.difference.minus:
        replaced = statistic.difference.minus.model_dump(exclude_defaults=True)
        other = _select(of_study, criterion.select.model_copy(update=replaced))

    students = pd.concat([selected, other])
    students = students[students["readout"]].drop_duplicates(["point", "seed"]).sort_values(["point", "seed"])
    points = students["point"].nunique()
    by_seed = students.groupby("seed")["converged"].agg(["size", "all"])
    run = by_seed["size"] == points
    seeds = by_seed.index[run & by_seed["all"]]
    over_gate = students.loc[~students["converged"].astype(bool), ["point", "seed"]]
    return Reading(
        _per_seed(criterion, selected, other, seeds) if len(seeds) else np.empty(0),
        seeds_run=int(run.sum()),
        points=points,
        runs=len(students),
        dropped=tuple(f"{point}: seed {seed}" for point, seed in over_gate.itertuples(index=False)),
    )


def _per_seed(criterion: Criterion, selected: pd.DataFrame, other: pd.DataFrame, seeds: pd.Index) -> np.ndarray:
    statistic = criterion.statistic
    if value := statistic.value:
        return mean_over_points(_values(selected, value.metric, seeds).to_numpy())
    if difference := statistic.difference:
        minuend = _values(selected, difference.metric, seeds)
        subtrahend = _values(other, difference.minus_metric or difference.metric, seeds)
        return mean_over_points(minuend.to_numpy()) - mean_over_points(subtrahend.to_numpy())
    if slope := statistic.slope:
        values = _values(selected, slope.metric, seeds)
        x = selected.drop_duplicates("point").set_index("point").loc[values.columns, slope.against]
        return slope_per_doubling(values.to_numpy(), x.to_numpy(dtype=float))
    correlation = statistic.rank_correlation
    assert correlation is not None
    values = _values(selected, correlation.metric, seeds)
    against = _values(selected, correlation.against.metric, seeds, correlation.against.generator_step)
    return rank_correlation(values.to_numpy(), against[values.columns].to_numpy())


def _values(runs: pd.DataFrame, metric: str, seeds: pd.Index, generator_step: int | None = None) -> pd.DataFrame:
    at_step = runs["readout"] if generator_step is None else runs["generator_step"] == generator_step
    rows = runs[at_step & (runs["metric"] == metric) & runs["seed"].isin(seeds)]
    values = rows.pivot(index="seed", columns="point", values="value").reindex(seeds)
    if missing := sorted(set(runs["point"]) - set(values.columns)):
        where = "" if generator_step is None else f" at generator step {generator_step}"
        raise _AbsentError("no matching run", f"no {metric}{where} for {missing[0]}")
    return values


def _select(runs: pd.DataFrame, selection: Selection) -> pd.DataFrame:
    chosen = runs
    for column, wanted in selection.model_dump(exclude_defaults=True).items():
        chosen = chosen[chosen[column].isin(wanted)]
    for column, wanted in selection.model_dump(exclude_defaults=True).items():
        if absent := [value for value in wanted if value not in set(chosen[column])]:
            study = runs["study"].iloc[0]
            only = Selection(**{**selection.model_dump(exclude_defaults=True), column: absent})
            raise _AbsentError("no matching run", f"study '{study}' has no run with {_describe(only)}")
    return chosen


def _describe(selection: Selection) -> str:
    chosen = selection.model_dump(exclude_defaults=True)
    return ", ".join(f"{column} {' or '.join(map(_plain, values))}" for column, values in chosen.items())


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
