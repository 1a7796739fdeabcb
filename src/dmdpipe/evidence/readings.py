"""What a results table says about a criterion: numbers over seeds, from the runs that may count.

A criterion reads the runs that it selects, at their read-out step. A run that is over the gate there (not
converged in distribution) counts for no claim: it is dropped, and named.

Which points are joined. Points of one dimension share, for one seed, their random numbers (the teacher's first weights,
its noise), and those of one data set the teacher itself: they are joined by seed, so a seed counts if all of its
selected runs of this dimension converged. Averaging over whichever points are left would compare different things in
different seeds. Points of different d share neither. They are taken as independent, so each d has seeds of its own,
which may differ in number, and losing a run costs the others nothing.

Means, differences and slopes are sums Σ w_p·v_p over points. The weights w_p follow from all selected points, never
from what is left of them. Each d adds y[seed] = Σ w_p·v_p over its own points, and the statistic is the sum over d
of the means of y. A rank correlation is no sum, so it stays joined by seed over all points.
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
    """A criterion's statistic, as a sum of means over independent groups of seeds, and what it was read from.

    ``groups`` has one array [S_g] per dimension, in rising order (one array for a rank correlation): what its points
    add to the statistic, in every seed all of whose selected runs of this dimension converged. ``seeds_run``
    counts, per group, the seeds that have all of its selected points, converged or not. ``points`` and ``runs`` count
    what was selected, ``dropped`` names the runs over the gate. ``absent``, a cause and a sentence, says why there was
    nothing to read; there are no groups then.
    """

    groups: tuple[np.ndarray, ...]
    seeds_run: tuple[int, ...] = ()
    points: int = 0
    runs: int = 0
    dropped: tuple[str, ...] = ()
    absent: tuple[Cause, str] | None = None

    @property
    def n_seeds(self) -> tuple[int, ...]:
        """How many seeds count, per group."""
        return tuple(group.size for group in self.groups)


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
        return Reading((), absent=(absent.cause, str(absent)))


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
    groups, seeds_run = [], []
    for _, joined in [("", students)] if statistic.rank_correlation else students.groupby("d"):
        points = joined["point"].unique()
        by_seed = joined.groupby("seed")["converged"].agg(["size", "all"])
        run = by_seed["size"] == len(points)
        seeds = by_seed.index[run & by_seed["all"]]
        groups.append(_per_seed(criterion, selected, other, points, seeds) if len(seeds) else np.empty(0))
        seeds_run.append(int(run.sum()))
    over_gate = students.loc[~students["converged"].astype(bool), ["point", "seed"]]
    return Reading(
        tuple(groups),
        seeds_run=tuple(seeds_run),
        points=students["point"].nunique(),
        runs=len(students),
        dropped=tuple(f"{point}: seed {seed}" for point, seed in over_gate.itertuples(index=False)),
    )


def _per_seed(
    criterion: Criterion, selected: pd.DataFrame, other: pd.DataFrame, points: np.ndarray, seeds: pd.Index
) -> np.ndarray:
    """Return what some of the selected points add to the statistic in these seeds, shape [S]."""
    statistic = criterion.statistic
    mine, mine_of_other = (runs[runs["point"].isin(points)] for runs in (selected, other))
    if value := statistic.value:
        return mean_over_points(_values(mine, value.metric, seeds).to_numpy(), selected["point"].nunique())
    if difference := statistic.difference:
        minuend = _values(mine, difference.metric, seeds)
        subtrahend = _values(mine_of_other, difference.minus_metric or difference.metric, seeds)
        return mean_over_points(minuend.to_numpy(), selected["point"].nunique()) - mean_over_points(
            subtrahend.to_numpy(), other["point"].nunique()
        )
    if slope := statistic.slope:
        values = _values(mine, slope.metric, seeds)
        x = selected.drop_duplicates("point").set_index("point")[slope.against].sort_index()
        part = x.index.isin(values.columns)
        return slope_per_doubling(values.to_numpy(), x.to_numpy(dtype=float), part)
    correlation = statistic.rank_correlation
    assert correlation is not None
    values = _values(mine, correlation.metric, seeds)
    against = _values(mine, correlation.against.metric, seeds, correlation.against.generator_step)
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
