"""Verdicts on claims, computed from the results tables of studies by rules that are fixed in advance.

Which runs count is said in ``dmdpipe.evidence.readings``: none that is over the gate.

When a criterion is decided. Its statistic is a mean over seeds, or a sum of such means where it spans several
dimensions, which are independent and have seeds of their own (a *group* each). With K tested claims and m criteria in
the claim, a criterion *holds* if a one-sided t test over seeds puts the statistic on the predicted side of the
threshold at level 0.05/K, and *fails* if it puts it on the other side at level 0.05/(K·m); else, and below three
counting seeds in any group, it is *undecided*. The test is Student's for one group, Welch's for several: their spreads
and numbers of seeds may differ. A claim is supported if all of its criteria hold, refuted if any fails, inconclusive
otherwise. Some criteria are *premises*, which say that the test is one, e.g. that some teacher does memorize: unless
all of them hold, the claim is inconclusive, whatever its other criteria say. That only takes decisive verdicts away.

Why these levels. All m criteria must hold at once, so a claim that is false in one of them is supported with
probability at most 0.05/K (an intersection–union test: no correction for m). Any one of m suffices to refute,
so each gets an m-th, and a claim that is true is refuted with probability at most 0.05/K. Over K claims, the
probability of any wrong decisive verdict is at most 0.05. One group's test keeps its level exactly for normal values;
Welch's is an approximation, which docs/studies.md puts a number on.

What K counts: the claims that have criteria. One without is never tested, so it has no chance of a wrong verdict and
needs no share of the 0.05. A claim whose study has not been run counts all the same: K is fixed by the declaration,
not by what was run.

What seeds could decide. Beside each finding stands how small a difference its seeds could have decided, and how many
seeds a difference like the observed one needs (``dmdpipe.evidence.power``), both with probability 0.8. Every finding's
reason ends with the first. They plan the next run, on fresh seeds; adding seeds to a run until it decides would break
its levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import pandas as pd

from dmdpipe.evidence.intervals import Interval, sum_interval
from dmdpipe.evidence.power import MOST_SEEDS, PROBABILITY, detectable_difference, seeds_needed
from dmdpipe.evidence.readings import Cause, Reading, describe_statistic, read_criterion
from dmdpipe.specs.claims import Claim, Claims, Criterion

FAMILYWISE_ERROR = 0.05
MINIMUM_SEEDS = 3

Outcome = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Finding:
    """What the runs say about one criterion.

    ``value`` is the statistic: the mean over the counting seeds, or the sum of the means of independent groups of
    seeds, one per dimension. ``n_seeds`` counts the seeds; with groups, those of the smallest. ``low`` and ``high`` are
    the bounds that decide, one-sided: the criterion is undecided exactly when the threshold lies between them, or seeds
    are missing (NaN below two).

    ``spread`` is the standard deviation over these seeds; with groups, the standard error of ``value`` times
    √``n_seeds``, i.e. √(Σ s_g²·n_seeds/n_g). ``effect`` is the effect size: how many of these ``value`` lies from the
    threshold, positive on the predicted side. It is Cohen's d of one sample against the threshold, which few seeds
    overstate, five by a quarter (L. Hedges, J. Educ. Stat. 6, 1981). ``detectable`` is the smallest difference from the
    threshold that as many seeds with these spreads find to hold, at the level 0.05/K of *holds*, with probability 0.8.
    ``seeds_needed`` is how many counting seeds decide a difference like the observed one with probability 0.8: at the
    level of *holds* if the value is on the predicted side, else at that of *fails*; with groups, how many in the
    smallest, if all grow alike. All four are NaN below three counting seeds or where the statistic is undefined,
    ``effect`` also where seeds do not differ, ``seeds_needed`` also above 10,000.

    ``runs`` counts the selected students, ``runs_dropped`` those over the gate, which ``dropped`` names. ``cause`` says
    why a criterion is undecided.
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
    spread: float
    effect: float
    detectable: float
    seeds_needed: float
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


def evaluate_claims(claims: Claims, results: pd.DataFrame) -> list[Verdict]:
    """Return the verdict on every claim.

    ``results`` is the union of studies' results tables (``dmdpipe.evidence.results``) at one scale; studies
    that have not been run are simply not in it, and an empty table is fine.

    Raises ValueError if the table mixes scales: a verdict is about one.
    """
    if results["scale"].nunique() > 1:
        raise ValueError(f"one scale at a time, got {', '.join(sorted(results['scale'].unique()))}")
    runs = results[results["seed"] >= 0]
    alpha = FAMILYWISE_ERROR / max(len(claims.tested), 1)
    return [
        judge_claim(claim, [read_criterion(criterion, runs) for criterion in claim.criteria], alpha)
        for claim in claims.claims
    ]


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


def judge_claim(claim: Claim, readings: Sequence[Reading], alpha: float) -> Verdict:
    """Return the verdict on a claim from the readings of its criteria; ``alpha`` is 0.05/K."""
    findings = tuple(
        judge_criterion(claim, criterion, reading, alpha)
        for criterion, reading in zip(claim.criteria, readings, strict=True)
    )
    premises = [finding for finding, criterion in zip(findings, claim.criteria, strict=True) if criterion.premise]
    missing = [finding for finding in premises if finding.outcome != "holds"]
    failing = [finding for finding in findings if finding.outcome == "fails"]
    undecided = [finding for finding in findings if finding.outcome == "undecided"]
    verdict: Literal["supported", "refuted", "inconclusive"]
    if claim.without_study is not None:
        verdict, reason = "inconclusive", f"No study has been run: {claim.without_study}."
    elif missing:
        verdict, reason = "inconclusive", _sentence("Not tested, for want of a premise", missing)
    elif failing:
        verdict, reason = "refuted", _sentence("Fails", failing)
    elif undecided:
        verdict, reason = "inconclusive", _sentence("Undecided", undecided)
    else:
        verdict, reason = "supported", _sentence("Holds", findings)
    return Verdict(claim.id, claim.title, claim.statement, claim.level_of_evidence, verdict, reason, findings)


def _sentence(outcome: str, findings: Sequence[Finding]) -> str:
    return f"{outcome}: " + "; ".join(f"{finding.criterion} ({finding.reason})" for finding in findings) + "."


def judge_criterion(claim: Claim, criterion: Criterion, reading: Reading, alpha: float) -> Finding:
    """Return whether one criterion of a claim holds, fails or is undecided, and why."""
    bounds = decision_bounds(reading.groups, criterion.predicts, alpha, len(claim.criteria))
    spread, detectable, needed = _what_seeds_decide(criterion, reading, bounds.mean, alpha, len(claim.criteria))
    outcome, cause, reason = _decide(criterion, reading, bounds, needed)
    if not math.isnan(detectable):
        reason += f"; {describe_power(reading.n_seeds, detectable)}"
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
        n_seeds=min(reading.n_seeds, default=0),
        spread=spread,
        effect=_effect(criterion, bounds.mean, spread),
        detectable=detectable,
        seeds_needed=needed,
        points=reading.points,
        runs=reading.runs,
        runs_dropped=len(reading.dropped),
        dropped="; ".join(reading.dropped),
        outcome=outcome,
        cause=cause,
        reason=reason,
    )


def _effect(criterion: Criterion, value: float, spread: float) -> float:
    beyond = value - criterion.threshold if criterion.predicts == "above" else criterion.threshold - value
    return beyond / spread if spread > 0 else np.nan


def describe_power(seeds: Sequence[int], detectable: float) -> str:
    """Return in words how small a difference from the threshold so many seeds, per group, find to hold."""
    return (
        f"with {_each(seeds)} seeds a difference of {detectable:.2g} from the threshold would be seen with"
        f" probability {PROBABILITY:g}"
    )


def decision_bounds(groups: Sequence[np.ndarray], predicts: str, alpha: float, criteria: int) -> Interval:
    """Return the sum of the groups' means over seeds and the two bounds that decide a criterion.

    Both are one-sided: the bound that must clear the threshold for the prediction to hold at level alpha, the
    one that must clear it for the prediction to fail at level alpha/criteria.
    """
    holds = sum_interval(groups, 1 - 2 * alpha)
    fails = sum_interval(groups, 1 - 2 * alpha / criteria)
    low, high = (fails.low, holds.high) if predicts == "below" else (holds.low, fails.high)
    return Interval(holds.mean, low, high)


def _what_seeds_decide(
    criterion: Criterion, reading: Reading, value: float, alpha: float, criteria: int
) -> tuple[float, float, float]:
    n = np.array(reading.n_seeds)
    if min(reading.n_seeds, default=0) < MINIMUM_SEEDS or not _is_defined(reading):
        return np.nan, np.nan, np.nan
    spreads = np.array([group.std(ddof=1) for group in reading.groups])
    as_predicted = (value < criterion.threshold) == (criterion.predicts == "below")
    level = alpha if as_predicted else alpha / criteria
    needed = seeds_needed(abs(value - criterion.threshold), spreads, level, proportions=n)
    return (
        math.hypot(*(spreads * np.sqrt(n.min() / n))),
        detectable_difference(n, spreads, alpha),
        np.nan if needed is None else float(max(needed, MINIMUM_SEEDS)),
    )


def _decide(criterion: Criterion, reading: Reading, bounds: Interval, needed: float) -> tuple[Outcome, Cause, str]:
    if reading.absent:
        return "undecided", *reading.absent
    if min(reading.seeds_run) < MINIMUM_SEEDS:
        return "undecided", "too few seeds", f"too few seeds: {_each(reading.seeds_run)} run, {MINIMUM_SEEDS} needed"
    if min(reading.n_seeds) < MINIMUM_SEEDS:
        left = _each([f"{n} of {run}" for n, run in zip(reading.n_seeds, reading.seeds_run, strict=True)])
        reason = (
            f"not converged: {len(reading.dropped)} of {reading.runs} runs are over the gate, which leaves"
            f" {left} seeds where {MINIMUM_SEEDS} are needed"
        )
        return "undecided", "not converged", reason
    statistic = describe_statistic(criterion)
    if not _is_defined(reading):
        return "undecided", "statistic undefined", f"{statistic} is undefined for some seeds"
    numbers = f"{statistic} is {bounds.mean:.3g} [{bounds.low:.3g}, {bounds.high:.3g}]"
    basis = f"{_each(reading.n_seeds)} seeds"
    if reading.dropped:
        basis += f", {len(reading.dropped)} of {reading.runs} runs dropped as not converged"
    threshold = f"{criterion.threshold:g}"
    if bounds.low <= criterion.threshold <= bounds.high:
        seeds = f"more than {MOST_SEEDS:,}" if math.isnan(needed) else f"{needed:.0f}"
        where = " in the smallest group, the others in proportion," if len(set(reading.n_seeds)) > 1 else ""
        reason = (
            f"interval crosses: {numbers}, predicted {criterion.predicts} {threshold}, {basis};"
            f" {seeds} seeds{where} would decide a difference of this size with probability {PROBABILITY:g}"
        )
        return "undecided", "interval crosses", reason
    side = "below" if bounds.high < criterion.threshold else "above"
    if side == criterion.predicts:
        return "holds", "", f"{numbers}, {side} {threshold} as predicted, {basis}"
    return "fails", "", f"{numbers}, {side} {threshold} and not {criterion.predicts} as predicted, {basis}"


def _is_defined(reading: Reading) -> bool:
    return all(np.isfinite(group).all() for group in reading.groups)


def _each(numbers: Sequence[object]) -> str:
    """Return the groups' numbers in words, e.g. ``10 and 5``: once if they agree."""
    words = [str(number) for number in numbers]
    if len(set(words)) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} and {words[-1]}"
