"""Every criterion of every claim and control in config/ can hold, fail and stay undecided, and so can each of these."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from planted_outcomes import CONFIG, Place, declared_claims, declared_controls, points_for, table, weights
from scipy.optimize import linprog

from dmdpipe.evidence.controls import judge_controls
from dmdpipe.evidence.readings import read_criterion
from dmdpipe.evidence.verdicts import FAMILYWISE_ERROR, Verdict, evaluate_claims, judge_claim
from dmdpipe.specs.claims import Claim, Claims, Criterion
from dmdpipe.specs.config import study_names

CLAIMS, CONTROLS = declared_claims(), declared_controls()
EVERY = (*CLAIMS.tested, *CONTROLS.tested)
READ = {one.study for claim in EVERY for one in claim.criteria}
ROOM = 0.02  # beyond a threshold; less than between two thresholds on one statistic
NARROW = 1e-5  # spread of the seeds: little beside the room that a threshold of 0.001 leaves
SEEDS = 4
EACH = [(claim.id, criterion.name) for claim in EVERY for criterion in claim.criteria]
UNREAD = {
    "curves": "its prediction is which students pass the gate, and one that does not counts for no criterion",
    "mixture_pools": "it came after the others' results, which one more control would have judged more strictly",
}
"""The studies that neither a claim nor a control reads, and why."""


def named(id_: str) -> Claim:
    return next(claim for claim in EVERY if claim.id == id_)


def judged(claim: Claim, outcomes: Sequence[str], gate_ratio: float = 1.2, seeds: int = SEEDS) -> Verdict:
    """The verdict on a claim whose criteria are planted to come out like this, at the level of its family."""
    results = planted(claim, outcomes, gate_ratio, seeds)
    alpha = FAMILYWISE_ERROR / len((CONTROLS if claim in CONTROLS.claims else CLAIMS).tested)
    return judge_claim(claim, [read_criterion(one, results) for one in claim.criteria], alpha)


def planted(claim: Claim, outcomes: Sequence[str], gate_ratio: float = 1.2, seeds: int = SEEDS) -> pd.DataFrame:
    """The results of the points that a claim reads, with metrics that give these outcomes."""
    wanted = dict(zip([one.name for one in claim.criteria], outcomes, strict=True))
    places, matrix = weights_of(claim.criteria)
    values = planted_values(claim, wanted, matrix)
    assert values is not None, f"the criteria of {claim.id} contradict one another: {wanted}"
    offsets = NARROW * (1 + np.sin(np.arange(len(places))))  # unlike everywhere, so that differences have a spread too
    signs = {}
    for one in correlations(claim):
        side = {"holds": 1, "fails": -1}.get(wanted[one.name], 0) * (1 if one.predicts == "above" else -1)
        assert -1 < one.threshold < 1, f"{one.name}: a rank correlation cannot fall on both sides of {one.threshold}"
        signs[one.name] = [side or (-1) ** seed for seed in range(seeds)]
    read = {(study, point) for study, point, _ in places}
    return table(
        {
            study: {point: labels for point, labels in points_of(study).items() if (study, point) in read}
            for study in dict.fromkeys(one.study for one in claim.criteria)
        },
        dict(zip(places, values, strict=True)),
        dict(zip(places, offsets, strict=True)),
        seeds,
        claim.criteria,
        signs,
        gate_ratio,
    )


def planted_values(claim: Claim, wanted: dict[str, str], matrix: np.ndarray) -> np.ndarray | None:
    """Metric values that put every statistic with weights on its side, or on its threshold; None if none do.

    The nearest to some start, in the sum of absolute differences, by a linear programme in the steps up and down.
    """
    # What nothing fixes must differ from point to point, or it has no ranks.
    start = 0.5 + 0.01 * np.arange(matrix.shape[1])
    on, beyond = [], []
    for one, row in zip(claim.criteria, matrix, strict=True):
        if one.statistic.rank_correlation is None:
            side = {"holds": 1, "fails": -1, "undecided": 0}[wanted[one.name]] * (1 if one.predicts == "above" else -1)
            missing = one.threshold + side * room(one) - row @ start
            if side:
                beyond.append((-side * row, -side * missing))
            else:
                on.append((row, missing))

    def system(rows: list[tuple[np.ndarray, float]]) -> tuple[np.ndarray | None, list[float] | None]:
        steps = [np.concatenate([row, -row]) for row, _ in rows]
        return (np.array(steps), [bound for _, bound in rows]) if rows else (None, None)

    found = linprog(np.ones(2 * len(start)), *system(beyond), *system(on))
    return start + found.x[: len(start)] - found.x[len(start) :] if found.success else None


def room(criterion: Criterion) -> float:
    """How far beyond its threshold a statistic is planted: thresholds near 0 are of finer statistics."""
    return min(ROOM, abs(criterion.threshold) / 2) or ROOM


@cache
def points_of(study: str) -> dict[str, dict[str, Any]]:
    return points_for(study, [one for claim in EVERY for one in claim.criteria if one.study == study])


@cache
def weights_of(criteria: tuple[Criterion, ...]) -> tuple[list[Place], np.ndarray]:
    return weights(criteria, {one.study: points_of(one.study) for one in criteria})


def correlations(claim: Claim) -> list[Criterion]:
    return [one for one in claim.criteria if one.statistic.rank_correlation is not None]


VERDICT = {"holds": "supported", "fails": "refuted", "undecided": "inconclusive"}


@pytest.mark.parametrize("outcome", VERDICT)
@pytest.mark.parametrize(("id_", "name"), EACH)
def test_a_criterion_comes_out_as_planted_and_decides_the_claim(id_: str, name: str, outcome: str) -> None:
    """All others hold, so the claim's verdict hangs on this one. Without a premise nothing is tested."""
    claim = named(id_)
    verdict = judged(claim, [outcome if one.name == name else "holds" for one in claim.criteria])
    found = {finding.criterion: finding for finding in verdict.findings}
    assert found.pop(name).outcome == outcome
    assert {finding.outcome for finding in found.values()} <= {"holds"}
    premise = next(one.premise for one in claim.criteria if one.name == name)
    assert verdict.verdict == ("inconclusive" if premise and outcome == "fails" else VERDICT[outcome])


@pytest.mark.parametrize("id_", [claim.id for claim in EVERY])
def test_a_claim_whose_criteria_all_hold_is_left_open_by_the_gate_and_by_two_seeds(id_: str) -> None:
    claim = named(id_)
    for verdict, cause in (
        (judged(claim, ["holds"] * len(claim.criteria), gate_ratio=2.01), "not converged"),
        (judged(claim, ["holds"] * len(claim.criteria), seeds=2), "too few seeds"),
    ):
        assert verdict.verdict == "inconclusive"
        assert {finding.cause for finding in verdict.findings} == {cause}


def test_every_study_is_read_by_a_claim_or_a_control_or_it_is_said_why_not() -> None:
    assert READ | UNREAD.keys() == set(study_names(CONFIG)) and not READ & UNREAD.keys()


def test_each_control_says_when_its_rule_was_written_and_what_it_could_sink() -> None:
    when = {
        "Written before the study's run at laptop scale.": {
            *("analytic", "classes", "drift", "halves", "intrinsic", "invariances", "mixtures", "mixtures_apart"),
            *(
                "noise_levels",
                "noisy_score",
                "other_densities",
                "other_starts",
                "photos",
                "photos_wide",
                "same_start",
                "start_scale",
            ),
        },
        "Written after the study's runs at laptop scale had been made, without a look at them.": {"fashion"},
    }
    for control in CONTROLS.claims:
        assert control.id.startswith("K-") and ("Refuted" in control.statement or "Supported" in control.statement)
        for one in control.criteria:
            said = next((words for words in when if one.because.endswith(words)), None)
            assert said or one.because.endswith("Transcribed after the study's laptop results had been seen.")
            assert one.study in when[said] if said else one.study not in set().union(*when.values())


def test_controls_are_a_family_of_their_own() -> None:
    """Not one number of a claim's verdict knows that there are controls, and theirs share 0.05 among themselves."""
    assert not {claim.id for claim in CLAIMS.claims} & {control.id for control in CONTROLS.claims}
    claim, control = named("C2"), named("K-validity")
    of_claim, of_control = (planted(one, ["holds"] * len(one.criteria)) for one in (claim, control))
    every = pd.concat([of_claim, of_control])
    (before,) = [one for one in evaluate_claims(CLAIMS, of_claim) if one.id == claim.id]
    judge_controls(CONTROLS, every)
    (after,) = [one for one in evaluate_claims(CLAIMS, every) if one.id == claim.id]
    assert after == before == judged(claim, ["holds", "holds"])
    found = judge_controls(CONTROLS, every).criteria.query("id == 'K-validity'").iloc[0]
    wanted = judged(control, ["holds"] * 3).findings[0]
    assert (found["low"], found["high"]) == (wanted.low, wanted.high)
    alone = judge_controls(Claims(claims=(control,)), every).criteria.iloc[0]
    assert found["high"] - found["low"] > 1.2 * (alone["high"] - alone["low"])


# Other claims than those declared


RANK = {
    "name": "ranks",
    "study": "dimension",
    "select": {"init": "teacher"},
    "statistic": {
        "rank_correlation": {"metric": "rho", "against": {"metric": "delta_e", "generator_step": 0}},
    },
    "predicts": "above",
    "threshold": 0.3,
    "because": "b",
}


@pytest.mark.parametrize("outcome", VERDICT)
def test_a_rank_correlation_can_be_planted_beside_a_value(outcome: str) -> None:
    value = {"name": "value", "study": "dimension", "statistic": {"value": {"metric": "rho"}}, "predicts": "below"}
    criteria = tuple(Criterion.model_validate(one) for one in (RANK, {**value, "threshold": 0.5, "because": "b"}))
    claim = Claim(id="X", title="t", statement="s", level_of_evidence="l", criteria=criteria)
    verdict = judged(claim, [outcome, "holds"])
    assert [finding.outcome for finding in verdict.findings] == [outcome, "holds"]


def test_a_claim_that_no_world_could_support_is_found() -> None:
    copies = named("C3").criteria[0]
    other = copies.model_copy(update={"name": "and does not", "predicts": "above", "threshold": 0.6})
    claim = named("C3").model_copy(update={"criteria": (copies, other)})
    with pytest.raises(AssertionError, match="contradict one another"):
        judged(claim, ["holds", "holds"])


def test_weights_are_those_of_the_statistics() -> None:
    slope = named("C5").criteria[0]
    places, matrix = weights([slope], {"dimension": points_of("dimension")})
    by_d = {points_of(study)[point]["d"]: weight for (study, point, _), weight in zip(places, matrix[0], strict=True)}
    assert by_d == pytest.approx({4: -1 / 4, 16: 0, 64: 1 / 4})
