"""Verdicts that hang on a choice are shown to, where it was planted that they do; the official ones stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from planted_outcomes import declared_claims, declared_points
from planted_studies import labels

from dmdpipe.evidence.results import results_table
from dmdpipe.evidence.sensitivity import COLUMNS, sensitivity_table
from dmdpipe.evidence.verdicts import evaluate_claims
from dmdpipe.specs.claims import Claim, Claims, Criterion
from dmdpipe.tables import sensitivity_text

OFFSETS = np.linspace(-0.01, 0.01, 5)
SAME = {"rho": 0.8, "delta_e": 0.8, "cosine": 0.2, "retrieval_at_1": 0.1, "rho_floor": 0.0, "rho_affine": 0.9}
Snapshots = Mapping[int, Mapping[str, float]]  # generator step → metrics, with gate_ratio


def planted(points: Mapping[str, tuple[dict[str, Any], Snapshots]], study: str = "s") -> pd.DataFrame:
    """A study of five seeds, nearly alike, whose points have these metrics at these steps."""
    cells = []
    for name, (of_point, snapshots) in points.items():
        for seed, offset in enumerate(OFFSETS):
            rows = []
            for step, given in snapshots.items():
                values = {"gate_ratio": 1.2} | given
                rows += [(step, "converged", float(values["gate_ratio"] <= 2))]
                rows += [(step, metric, value + (metric != "gate_ratio") * offset) for metric, value in values.items()]
            frame = pd.DataFrame(rows, columns=["generator_step", "metric", "value"])
            cells.append(({**of_point, "point": name, "seed": seed}, frame))
    return results_table(study, "test", cells, {})


def one_claim(
    statistic: Mapping[str, Any], threshold: float = 0.5, *others: Mapping[str, Any], **select: Any
) -> Claims:
    criteria = tuple(
        Criterion.model_validate(
            {"name": f"n{i}", "study": "s", "select": select, "statistic": given}
            | {"predicts": "below", "threshold": threshold, "because": "b"}
        )
        for i, given in enumerate((statistic, *others))
    )
    claim = Claim(id="X", title="A claim", statement="s", level_of_evidence="l", criteria=criteria)
    return Claims(claims=(claim,))


RHO = {"value": {"metric": "rho"}}


def changes(table: pd.DataFrame, choice: str) -> dict[str, tuple[str, str]]:
    chosen = table[table["choice"] == choice]
    return {row.option: (row.verdict, row.change) for row in chosen.itertuples()}


def of(snapshots: Snapshots, **more: tuple[dict[str, Any], Snapshots]) -> pd.DataFrame:
    return planted({"a": (labels("digits-8x8", 64), snapshots), **more})


@pytest.mark.parametrize(
    ("gate_ratio", "declared", "expected"),
    [
        (1.2, "refuted", {"1.5": "", "2": "", "3": "", "none": ""}),
        (1.8, "refuted", {"1.5": "lost", "2": "", "3": "", "none": ""}),
        (2.5, "inconclusive", {"1.5": "", "2": "", "3": "gained", "none": "gained"}),
        (50.0, "inconclusive", {"1.5": "", "2": "", "3": "", "none": "gained"}),
    ],
)
def test_a_verdict_that_hangs_on_the_gate(gate_ratio: float, declared: str, expected: dict[str, str]) -> None:
    table = sensitivity_table(one_claim(RHO), of({100: {**SAME, "gate_ratio": gate_ratio}}))
    assert set(table["declared"]) == {declared}
    assert {option: change for option, (_, change) in changes(table, "gate").items()} == expected
    assert table.loc[table["as_declared"] & (table["choice"] == "gate"), "option"].tolist() == ["2"]


@pytest.mark.parametrize(
    ("differs", "flips"),
    [
        ({}, set()),
        ({"delta_e": 0.1}, {"delta_e"}),
        ({"cosine": 0.9, "retrieval_at_1": 0.95}, {"cosine", "retrieval_at_1"}),
    ],
)
def test_a_verdict_that_hangs_on_the_metric(differs: dict[str, float], flips: set[str]) -> None:
    """ΔE, a reconstruction, and the two others say copy where ρ says none."""
    table = sensitivity_table(one_claim(RHO), of({100: SAME | differs}))
    found = changes(table, "metric")
    assert list(found) == ["rho", "delta_e", "retrieval_at_1", "cosine"]
    for option, verdict in found.items():
        assert verdict == (("supported", "reversed") if option in flips else ("refuted", "")), option


def test_only_criteria_about_rho_get_another_metric() -> None:
    against_affine = {"difference": {"metric": "rho", "minus_metric": "rho_affine"}}
    against_floor = {"difference": {"metric": "rho", "minus_metric": "rho_floor"}}
    results = of({100: SAME | {"delta_e": 0.1}})
    for statistics, criteria in (
        ([RHO, against_affine], 1),
        ([RHO, against_floor], 2),
        ([against_floor, against_affine, {"value": {"metric": "delta_e"}}], 1),
    ):
        table = sensitivity_table(one_claim(statistics[0], 0.5, *statistics[1:]), results)
        assert set(table.loc[table["choice"] == "metric", "criteria"]) == {criteria}
    assert changes(sensitivity_table(one_claim(against_affine), results), "metric") == {}
    found = changes(sensitivity_table(one_claim(against_floor), results), "metric")
    assert found["delta_e"] == ("supported", "reversed")


def test_a_verdict_that_hangs_on_the_read_out() -> None:
    """Points may have snapshots at other steps: they are counted in each student's own."""
    early, unfinished = SAME | {"rho": 0.1}, SAME | {"rho": 0.1, "gate_ratio": 9.0}
    more = {"b": (labels("digits-4x4", 64), {0: unfinished, 70: early, 700: SAME})}
    results = of({0: unfinished, 50: unfinished, 100: early, 400: SAME}, **more)
    found = changes(sensitivity_table(one_claim(RHO), results), "read-out")
    assert found == {
        "3 snapshots earlier": ("inconclusive", "lost"),
        "2 snapshots earlier": ("inconclusive", "lost"),
        "1 snapshot earlier": ("supported", "reversed"),
        "the read-out": ("refuted", ""),
    }


def test_a_verdict_that_hangs_on_the_recipe() -> None:
    """Told to copy, the student copies: the declared recipe is not that one."""
    told = {"b": (labels("digits-8x8", 64, recipe="regression"), {100: SAME | {"rho": 0.05}})}
    elsewhere = planted({"c": (labels("digits-8x8", 64, recipe="fastgen"), {100: SAME})}, study="another")
    results = pd.concat([of({100: SAME}, **told), elsewhere], ignore_index=True)
    table = sensitivity_table(one_claim(RHO, recipe="dmd2"), results)
    assert changes(table, "recipe") == {"dmd2": ("refuted", ""), "regression": ("supported", "reversed")}
    assert table.loc[(table["choice"] == "recipe") & table["as_declared"], "option"].tolist() == ["dmd2"]
    assert changes(sensitivity_table(one_claim(RHO), of({100: SAME})), "recipe") == {}


def test_a_difference_between_recipes_is_read_with_no_other_recipe() -> None:
    """With one recipe on both sides it would be 0, which proves nothing."""
    told = {"b": (labels("digits-8x8", 64, recipe="regression"), {100: SAME | {"rho": 0.05}})}
    difference = {"difference": {"metric": "rho", "minus": {"recipe": "regression"}}}
    table = sensitivity_table(one_claim(difference, recipe="dmd2"), of({100: SAME}, **told))
    assert changes(table, "recipe") == {}


def test_nothing_planted_nothing_changes_and_the_official_verdicts_stay() -> None:
    claims = declared_claims()
    studies = [
        planted(
            {name: (of_point, {50: SAME, 100: SAME}) for name, of_point in points.items()},
            study,
        )
        for study, points in declared_points(claims).items()
    ]
    results = pd.concat(studies, ignore_index=True)
    before = results.copy()
    table = sensitivity_table(claims, results)
    pd.testing.assert_frame_equal(results, before)
    assert list(table.columns) == COLUMNS
    official = {verdict.id: verdict.verdict for verdict in evaluate_claims(claims, results)}
    assert dict(zip(table["id"], table["declared"], strict=True)) == {one.id: official[one.id] for one in claims.tested}
    as_declared = table[table["as_declared"]]
    assert (as_declared["verdict"] == as_declared["declared"]).all() and not as_declared["change"].any()
    assert set(table.loc[table["choice"].isin(["gate", "read-out"]), "change"]) == {""}


def test_the_text_marks_every_change() -> None:
    table = sensitivity_table(one_claim(RHO), of({50: SAME, 100: SAME | {"delta_e": 0.1, "gate_ratio": 1.8}}))
    text = sensitivity_text(table)
    assert text.startswith(
        "X   A claim  REFUTED\n      gate      1.5: inconclusive LOST; 2 (declared): refuted; 3: refuted;"
    )
    assert "delta_e: supported REVERSED" in " ".join(text.split())
    assert text.splitlines()[-1] == f"2 of {len(table)} readings give another verdict than the declared one"
    assert max(map(len, text.splitlines())) <= 110
    assert sensitivity_text(table.iloc[:0]).endswith("0 of 0 readings give another verdict than the declared one")


def test_scales_are_not_mixed() -> None:
    results = of({100: SAME})
    with pytest.raises(ValueError, match="one scale at a time"):
        sensitivity_table(one_claim(RHO), pd.concat([results, results.assign(scale="smoke")]))
