"""The short form of the campaign finds what it looks for: all is well as things are, and not with a fault planted.

Thirty students are measured at every point, once. A simulated study draws its seeds from these, so that the truth is
known to the last digit: the mean over them. The script beside this file measures new students for every study.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import planted_campaign
import pytest
from planted_campaign import (
    BIAS_ALLOWANCE,
    Plan,
    Readings,
    biases,
    drawn_studies,
    make_plan,
    read_tables,
    report,
    simulated_tables,
    tally,
)
from planted_outcomes import declared_claims, planted_claims
from scipy.stats import norm

from dmdpipe.copying import measure
from dmdpipe.evidence.readings import read_criterion

STUDIES = 150
STUDENTS = 30


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(declared_claims(), pairs=64)


@pytest.fixture(scope="module")
def planted() -> Plan:
    return make_plan(planted_claims(), pairs=64)


@pytest.fixture(scope="module")
def planted_once(planted: Plan) -> Readings:
    return read_tables(planted, simulated_tables(planted, seed=2, students=STUDENTS))


@pytest.fixture(scope="module")
def measured_once(plan: Plan) -> Readings:
    return read_tables(plan, simulated_tables(plan, seed=2, students=STUDENTS))


def problems(plan: Plan, pool: Readings, what: str, seeds: int | None = None) -> list[str]:
    truths = {key: sum(float(group.mean()) for group in one.groups) for key, one in pool.items()}
    studies = drawn_studies(plan, pool, STUDIES, np.random.default_rng(3), seeds)
    return report(plan, tally(plan, studies, truths, what.split()), say=lambda line: None)


def test_most_declared_claims_are_planted_and_the_others_named(plan: Plan) -> None:
    """One is left out if a claim before it has another threshold for the same number."""
    tested = {claim.id for claim in plan.claims.tested}
    assert {claim.id for claim in plan.planted} == tested - plan.left_out.keys()
    assert len(plan.planted) > len(tested) / 2


def test_metrics_and_tables_read_what_was_planted(plan: Plan, measured_once: Readings) -> None:
    assert biases(plan, [measured_once], say=lambda line: None) == []


def test_intervals_cover_and_verdicts_are_rarely_wrong(plan: Plan, measured_once: Readings) -> None:
    assert problems(plan, measured_once, "coverage verdicts") == []


def test_mode_agreement_memorization_independence_and_weak_correlation_are_read_and_judged(
    planted: Plan, planted_once: Readings
) -> None:
    assert planted.left_out == {}
    assert biases(planted, [planted_once], say=lambda line: None) == []
    assert problems(planted, planted_once, "coverage verdicts hardest") == []


def test_normal_quantiles_over_three_seeds_would_be_found(
    plan: Plan, measured_once: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(line.startswith("value (3 seeds)") for line in problems(plan, measured_once, "coverage", seeds=3))
    monkeypatch.setattr("dmdpipe.evidence.intervals.stdtrit", lambda df, p: norm.ppf(p))
    assert any(line.startswith("value (3 seeds)") for line in problems(plan, measured_once, "coverage", seeds=3))


def test_a_missing_correction_for_many_claims_would_be_found(
    plan: Plan, measured_once: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = planted_campaign.judge_claim
    monkeypatch.setattr(planted_campaign, "judge_claim", lambda claim, readings, alpha: judge(claim, readings, 0.05))
    assert any("any refuted" in line for line in problems(plan, measured_once, "verdicts"))


@pytest.mark.parametrize(
    ("metric", "wrong", "claim"),
    [
        ("mode_agreement", lambda right: lambda *pair: right(*pair) * 0.8, "P-modes"),
        ("memorized_share", lambda right: lambda ratios: right(ratios) ** 0.5, "P-memorization"),
        ("relative_pair_error", lambda right: lambda s, t: right(s, t) - 0.05, "P-independent"),
    ],
)
def test_a_wrong_metric_of_the_planted_claims_would_be_found(
    metric: str, wrong: Callable, claim: str, planted: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, metric, wrong(getattr(measure, metric)))
    pool = read_tables(planted, simulated_tables(planted, seed=2, students=STUDENTS))
    assert any(line.startswith(claim) for line in biases(planted, [pool], say=lambda line: None))


def test_a_wrong_metric_would_be_found(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """ρ that is a quarter too large."""
    right = measure.relative_pair_error
    monkeypatch.setattr(measure, "relative_pair_error", lambda s, t: 1.25 * right(s, t))
    few = replace(plan, points={"high_dimension": plan.points["high_dimension"]})
    runs = simulated_tables(few, seed=2, students=4 * STUDENTS)
    (group,) = read_criterion(next(c for c in plan.planted if c.id == "C3").criteria[0], runs).groups
    assert group.mean() - 0.5 > 3 * group.std(ddof=1) / np.sqrt(group.size) + BIAS_ALLOWANCE
