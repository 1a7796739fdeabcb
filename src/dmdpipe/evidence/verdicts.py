"""Verdicts on claims, computed from the results tables of studies by rules that are fixed in advance.

Which runs count. A criterion reads the runs that it selects, at their read-out step. A run that is over the gate
there (not converged in distribution) counts for no claim: it is dropped, and named. Statistics join points by seed,
so a seed counts if all of its selected runs converged; averaging over whichever points are left would compare
different things in different seeds.

When a criterion is decided. Every counting seed yields one number; the seeds' mean gets a Student-t interval. With K
claims in all and m criteria in the claim, a criterion *holds* if the 1 − 0.05/K interval lies on the predicted side of
the threshold, and *fails* if the 1 − 0.05/(K·m) interval lies on the other side; else, and below three counting seeds,
it is *undecided*. A claim is supported if all of its criteria hold, refuted if any fails, inconclusive otherwise.

Why these levels. All m criteria must hold at once, so a claim that is false in any one of them is supported with
probability at most 0.05/(2K) (an intersection–union test: no correction for m). Any one of m suffices to refute, so
each gets an m-th. Over K claims, the probability of any wrong decisive verdict is at most 0.05.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import pandas as pd

from dmdpipe.evidence.intervals import Interval, student_t_interval
from dmdpipe.evidence.statistics import mean_over_points, rank_correlation, slope_per_doubling
from dmdpipe.specs.claims import Claim, Claims, Criterion, Selection

FAMILYWISE_ERROR = 0.05
MINIMUM_SEEDS = 3

Outcome = Literal["holds", "fails", "undecided"]
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
class Finding:
    """What the runs say about one criterion.

    ``value`` is the mean over the ``n_seeds`` counting seeds. ``low`` and ``high`` are the bounds that decide: on the
    predicted side at confidence 1 − 0.05/K, on the other at 1 − 0.05/(K·m), so the criterion is undecided exactly when
    the threshold lies between them (or seeds are missing; then NaN). ``runs`` counts the selected students,
    ``runs_dropped`` those over the gate, which ``dropped`` names. ``cause`` says why a criterion is undecided.
    """

    claim: str
    criterion: str
    study: str
    statistic: str
    predicts: str
    threshold: float
    value: float
    low: float
    high: float
    n_seeds: int
    points: int
    runs: int
    runs_dropped: int
    dropped: str
    outcome: Outcome
    cause: Cause
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The verdict on one claim, why, and the findings on its criteria."""

    id: str
    title: str
    statement: str
    level_of_evidence: str
    verdict: Literal["supported", "refuted", "inconclusive"]
    reason: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Seeds:
    """One number per counting seed, and what was dropped on the way."""

    statistic: np.ndarray
    seeds: tuple[int, ...]
    seeds_run: int
    points: int
    runs: int
    dropped: tuple[str, ...]


class _NothingToReadError(Exception):
    """The tables hold no runs for a criterion: why, in one of the causes and in words."""

    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause


def evaluate_claims(claims: Claims, results: pd.DataFrame) -> list[Verdict]:
    """Return the verdict on every claim.

    ``results`` is the union of studies' results tables (``dmdpipe.evidence.results``) at one scale; studies that have
    not been run are simply not in it, and an empty table is fine.

    Raises ValueError if the table mixes scales: a verdict is about one.
    """
    if results["scale"].nunique() > 1:
        raise ValueError(f"one scale at a time, got {', '.join(sorted(results['scale'].unique()))}")
    runs = results[results["seed"] >= 0]
    return [_judge(claim, runs, FAMILYWISE_ERROR / len(claims.claims)) for claim in claims.claims]


def verdict_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return one row per claim: id, title, statement, level_of_evidence, verdict, reason."""
    columns = [field.name for field in fields(Verdict) if field.name != "findings"]
    return pd.DataFrame([[getattr(verdict, column) for column in columns] for verdict in verdicts], columns=columns)


def findings_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return one row per criterion, with the columns of ``Finding``."""
    columns = [field.name for field in fields(Finding)]
    return pd.DataFrame([asdict(f) for verdict in verdicts for f in verdict.findings], columns=columns)


def verdict_records(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return the verdicts as plain JSON types, findings nested; NaN becomes None."""
    return [_without_nan(asdict(verdict)) for verdict in verdicts]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _judge(claim: Claim, runs: pd.DataFrame, alpha: float) -> Verdict:
    findings = tuple(_find(claim, criterion, runs, alpha) for criterion in claim.criteria)
    failing = [finding for finding in findings if finding.outcome == "fails"]
    undecided = [finding for finding in findings if finding.outcome == "undecided"]
    verdict: Literal["supported", "refuted", "inconclusive"]
    if claim.without_study is not None:
        verdict, reason = "inconclusive", f"No study has been run: {claim.without_study}"
    elif failing:
        verdict, reason = "refuted", _sentence("Fails", failing)
    elif undecided:
        verdict, reason = "inconclusive", _sentence("Undecided", undecided)
    else:
        verdict, reason = "supported", _sentence("Holds", findings)
    return Verdict(claim.id, claim.title, claim.statement, claim.level_of_evidence, verdict, reason, findings)


def _sentence(outcome: str, findings: Sequence[Finding]) -> str:
    return f"{outcome}: " + "; ".join(f"{finding.criterion} ({finding.reason})" for finding in findings) + "."


def _find(claim: Claim, criterion: Criterion, runs: pd.DataFrame, alpha: float) -> Finding:
    try:
        found = _read(criterion, runs)
    except _NothingToReadError as nothing:
        empty = _Seeds(np.empty(0), (), 0, 0, 0, ())
        return _finding(claim, criterion, empty, student_t_interval([]), "undecided", nothing.cause, str(nothing))
    bounds = decision_bounds(found.statistic, criterion.predicts, alpha, len(claim.criteria))
    outcome, cause, reason = _decide(criterion, found, bounds)
    return _finding(claim, criterion, found, bounds, outcome, cause, reason)


def _finding(
    claim: Claim,
    criterion: Criterion,
    found: _Seeds,
    bounds: Interval,
    outcome: Outcome,
    cause: Cause,
    reason: str,
) -> Finding:
    return Finding(
        claim=claim.id,
        criterion=criterion.name,
        study=criterion.study,
        statistic=describe_statistic(criterion),
        predicts=criterion.predicts,
        threshold=criterion.threshold,
        value=bounds.mean,
        low=bounds.low,
        high=bounds.high,
        n_seeds=len(found.seeds),
        points=found.points,
        runs=found.runs,
        runs_dropped=len(found.dropped),
        dropped="; ".join(found.dropped),
        outcome=outcome,
        cause=cause,
        reason=reason,
    )


def decision_bounds(per_seed: np.ndarray, predicts: str, alpha: float, criteria: int) -> Interval:
    """Return the mean over seeds and the two bounds that decide a criterion.

    The bound that must clear the threshold for the prediction to hold has two-sided confidence 1 − alpha, the one that
    must clear it for the prediction to fail 1 − alpha/criteria.
    """
    holds = student_t_interval(per_seed, 1 - alpha)
    fails = student_t_interval(per_seed, 1 - alpha / criteria)
    return Interval(holds.mean, fails.low, holds.high) if predicts == "below" else Interval(holds.mean, holds.low, fails.high)


def _decide(criterion: Criterion, found: _Seeds, bounds: Interval) -> tuple[Outcome, Cause, str]:
    n = len(found.seeds)
    if found.seeds_run < MINIMUM_SEEDS:
        return "undecided", "too few seeds", f"too few seeds: {found.seeds_run} run, {MINIMUM_SEEDS} needed"
    if n < MINIMUM_SEEDS:
        return (
            "undecided",
            "not converged",
            f"not converged: {len(found.dropped)} of {found.runs} runs are over the gate, which leaves {n} of"
            f" {found.seeds_run} seeds where {MINIMUM_SEEDS} are needed",
        )
    if not np.isfinite(found.statistic).all():
        return "undecided", "statistic undefined", f"{describe_statistic(criterion)} is undefined for some seeds"
    numbers = f"{describe_statistic(criterion)} is {bounds.mean:.3g} [{bounds.low:.3g}, {bounds.high:.3g}]"
    basis = f"{n} seeds" + (f", {len(found.dropped)} of {found.runs} runs not converged" if found.dropped else "")
    side = "below" if bounds.high < criterion.threshold else "above" if bounds.low > criterion.threshold else None
    if side is None:
        wanted = f"predicted {criterion.predicts} {criterion.threshold:g}"
        return "undecided", "interval crosses", f"interval crosses: {numbers}, {wanted}, {basis}"
    if side == criterion.predicts:
        return "holds", "", f"{numbers}, {side} {criterion.threshold:g} as predicted, {basis}"
    return "fails", "", f"{numbers}, {side} {criterion.threshold:g} and not {criterion.predicts} as predicted, {basis}"


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


def _read(criterion: Criterion, runs: pd.DataFrame) -> _Seeds:
    of_study = runs[runs["study"] == criterion.study]
    if of_study.empty:
        raise _NothingToReadError("no study", f"study '{criterion.study}' has not been run")
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
    over_gate = students[~students["converged"].astype(bool)]
    return _Seeds(
        statistic=_per_seed(criterion, selected, other, seeds),
        seeds=tuple(int(seed) for seed in seeds),
        seeds_run=int(run.sum()),
        points=points,
        runs=len(students),
        dropped=tuple(f"{point}: seed {seed}" for point, seed in zip(over_gate["point"], over_gate["seed"], strict=True)),
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
    if missing := sorted(set(runs["point"]) - set(values.columns)) if len(seeds) else []:
        where = "" if generator_step is None else f" at generator step {generator_step}"
        raise _NothingToReadError("no matching run", f"no {metric}{where} for {missing[0]}")
    return values


def _select(runs: pd.DataFrame, selection: Selection) -> pd.DataFrame:
    chosen = runs
    for column, wanted in selection.model_dump(exclude_defaults=True).items():
        chosen = chosen[chosen[column].isin(wanted)]
    for column, wanted in selection.model_dump(exclude_defaults=True).items():
        if absent := [value for value in wanted if value not in set(chosen[column])]:
            study = runs["study"].iloc[0]
            only = Selection(**{**selection.model_dump(exclude_defaults=True), column: absent})
            raise _NothingToReadError("no matching run", f"study '{study}' has no run with {_describe(only)}")
    return chosen


def _describe(selection: Selection) -> str:
    chosen = selection.model_dump(exclude_defaults=True)
    return ", ".join(f"{column} {' or '.join(str(v) for v in values)}" for column, values in chosen.items())
