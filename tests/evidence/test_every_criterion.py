"""Every criterion of every claim in config/claims.yaml can hold, fail and stay undecided, and every claim so, too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from planted_outcomes import Place, declared_claims, declared_points, table, values_for, weights

from dmdpipe.evidence.verdicts import Verdict, evaluate_claims
from dmdpipe.specs.claims import Claim, Criterion

CLAIMS = declared_claims()
POINTS = declared_points(CLAIMS)
MARGIN = 0.2
NARROW, WIDE = 1e-3, 10 * MARGIN
SEEDS = 4
EACH = [(claim.id, criterion.name) for claim in CLAIMS.tested for criterion in claim.criteria]


def named(id_: str) -> Claim:
    return next(claim for claim in CLAIMS.claims if claim.id == id_)


def judged(claim: Claim, outcomes: Sequence[str], gate_ratio: float = 1.2, seeds: int = SEEDS) -> Verdict:
    """The verdict on a claim whose criteria are planted to come out like this."""
    linear = [one for one in claim.criteria if one.statistic.rank_correlation is None]
    wanted = dict(zip([one.name for one in claim.criteria], outcomes, strict=True))
    places, matrix = weights_of(claim.criteria)
    matrix = matrix[[one in linear for one in claim.criteria]]
    targets = [one.threshold + beyond(one, wanted[one.name]) for one in linear]
    # What no equation fixes must differ from point to point, or it has no ranks.
    values = values_for(matrix, targets, near=0.5 + 0.01 * np.arange(len(places)))
    assert values is not None, f"the criteria of {claim.id} contradict one another: {wanted}"
    spreads = np.array([WIDE if wanted[one.name] == "undecided" else NARROW for one in linear])
    offsets = np.linalg.pinv(matrix) @ spreads if linear else np.zeros(len(places))
    np.testing.assert_allclose(matrix @ offsets, spreads, atol=1e-9)
    signs = {}
    for one in correlations(claim):
        side = {"holds": 1, "fails": -1}.get(wanted[one.name], 0) * (1 if one.predicts == "above" else -1)
        assert -1 < one.threshold < 1, f"{one.name}: a rank correlation cannot fall on both sides of {one.threshold}"
        signs[one.name] = [side or (-1) ** seed for seed in range(seeds)]
    studies = {one.study: POINTS[one.study] for one in claim.criteria}
    results = table(
        studies,
        dict(zip(places, values, strict=True)),
        dict(zip(places, offsets, strict=True)),
        seeds,
        claim.criteria,
        signs,
        gate_ratio,
    )
    return next(verdict for verdict in evaluate_claims(CLAIMS, results) if verdict.id == claim.id)


@cache
def weights_of(criteria: tuple[Criterion, ...]) -> tuple[list[Place], np.ndarray]:
    return weights(criteria, POINTS)


def correlations(claim: Claim) -> list[Criterion]:
    return [one for one in claim.criteria if one.statistic.rank_correlation is not None]


def beyond(criterion: Criterion, outcome: str) -> float:
    """How far from the threshold its statistic is planted."""
    side = {"holds": 1, "fails": -1, "undecided": 0}[outcome]
    return side * MARGIN * (1 if criterion.predicts == "above" else -1)


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


@pytest.mark.parametrize("id_", [claim.id for claim in CLAIMS.tested])
def test_a_claim_whose_criteria_all_hold_is_left_open_by_the_gate_and_by_two_seeds(id_: str) -> None:
    claim = named(id_)
    for verdict, cause in (
        (judged(claim, ["holds"] * len(claim.criteria), gate_ratio=2.01), "not converged"),
        (judged(claim, ["holds"] * len(claim.criteria), seeds=2), "too few seeds"),
    ):
        assert verdict.verdict == "inconclusive"
        assert {finding.cause for finding in verdict.findings} == {cause}


def test_every_tested_claim_is_read_from_declared_points() -> None:
    assert {one.study for claim in CLAIMS.tested for one in claim.criteria} == set(POINTS)
    assert all(len(of_study) for of_study in POINTS.values())


# Statistics that no claim uses yet


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
def test_a_rank_correlation_can_be_planted_too(outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"name": "value", "study": "dimension", "statistic": {"value": {"metric": "rho"}}, "predicts": "below"}
    criteria = tuple(Criterion.model_validate(one) for one in (RANK, {**value, "threshold": 0.5, "because": "b"}))
    claim = Claim(id="X", title="t", statement="s", level_of_evidence="l", criteria=criteria)
    alone = CLAIMS.model_copy(update={"claims": (claim,)})
    monkeypatch.setattr("test_every_criterion.CLAIMS", alone)
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
    places, matrix = weights([slope], POINTS)
    by_d = {POINTS[study][point]["d"]: weight for (study, point, _), weight in zip(places, matrix[0], strict=True)}
    assert by_d == pytest.approx({4: -1 / 4, 16: 0, 64: 1 / 4})
