"""A mistake in claims.yaml is named by file and key, with the nearest known name."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from planted_studies import STUDIES

from dmdpipe.copying.maps import MAP_CONSTANTS, MAP_METRICS
from dmdpipe.copying.measure import CONSTANT_METRICS, SNAPSHOT_METRICS, SPECIAL_METRICS
from dmdpipe.errors import UserError
from dmdpipe.specs.claims import Claims, MetricName, load_claims

CLAIMS = Path(__file__).parents[2] / "config" / "claims.yaml"

GOOD = """
claims:
  - id: C1
    title: t
    statement: s
    level_of_evidence: l
    criteria:
      - name: low
        study: dimension
        select: {init: teacher, d: [4, 16]}
        statistic:
          value: {metric: rho}
        predicts: below
        threshold: 0.5
        because: b
"""


def load(tmp_path: Path, text: str) -> Claims:
    path = tmp_path / "claims.yaml"
    path.write_text(text, encoding="utf-8")
    return load_claims(path, STUDIES)


def test_the_projects_own_claims() -> None:
    claims = load_claims(CLAIMS, STUDIES).claims
    assert [claim.id for claim in claims] == ["C1", "C2", "C3", "C4", "C5", "C6", "C7", "H1"]
    assert [claim.id for claim in claims if claim.without_study] == []


def test_claims_can_be_about_everything_that_is_measured() -> None:
    measured = {*SNAPSHOT_METRICS, *CONSTANT_METRICS, *SPECIAL_METRICS, *MAP_METRICS, *MAP_CONSTANTS}
    of_controls = {"rho_start", "rho_as_started", "rho_late_change", "log2_drift_speed", "seed_seed"}
    assert set(get_args(MetricName)) == measured - {"converged", "assignment_pairs"} | of_controls


def test_controls_read_what_is_made_for_them(tmp_path: Path) -> None:
    path = tmp_path / "controls.yaml"
    path.write_text(GOOD.replace("metric: rho", "metric: rho_start"), encoding="utf-8")
    assert load_claims(path, STUDIES, controls=True).metrics == {"rho_start"}


def test_one_value_stands_for_a_list_of_one(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD) == load(tmp_path, GOOD.replace("init: teacher", "init: [teacher]"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("threshold: 0.5", "treshold: 0.5", "unknown key 'claims.0.criteria.0.treshold' (did you mean 'threshold'?)"),
        (
            "because: b",
            "because: b\n        becuase: c",
            "unknown key 'claims.0.criteria.0.becuase' (did you mean 'because'?)",
        ),
        (
            "metric: rho",
            "metric: rho_rotatd",
            "claims.0.criteria.0.statistic.value.metric: unknown metric 'rho_rotatd' (did you mean 'rho_rotated'?)",
        ),
        (
            "metric: rho",
            "metric: rho_start",
            "claims.0.criteria.0.statistic: 'rho_start' is made for controls alone; a criterion that reads it belongs"
            " in controls.yaml",
        ),
        (
            "init: teacher",
            "init: techer",
            "claims.0.criteria.0.select.init.0: unknown value 'techer' (did you mean 'teacher'?)",
        ),
        (
            "init: teacher",
            "innit: teacher",
            "unknown key 'claims.0.criteria.0.select.innit' (did you mean 'init'?)",
        ),
        (
            "study: dimension",
            "study: dimensions",
            "claims.0.criteria.0.study: there is no study 'dimensions' (did you mean 'dimension'?)",
        ),
        (
            "threshold: 0.5",
            "threshold: half",
            "claims.0.criteria.0.threshold: input should be a valid number",
        ),
        (
            "threshold: 0.5",
            "threshold: .nan",
            "claims.0.criteria.0.threshold: input should be a finite number",
        ),
        (
            "value: {metric: rho}",
            "value: {metric: rho}\n          slope: {metric: rho, against: d}",
            "claims.0.criteria.0.statistic: give exactly one of value, difference, slope,"
            " rank_correlation; got value and slope",
        ),
        (
            "value: {metric: rho}",
            "difference: {metric: rho}",
            "claims.0.criteria.0.statistic.difference: give either minus or minus_metric",
        ),
        (
            "value: {metric: rho}",
            "difference: {metric: rho, minus_metric: rho}",
            "claims.0.criteria.0.statistic.difference: nothing would be left",
        ),
        (
            "level_of_evidence: l",
            "level_of_evidence: l\n    without_study: w",
            "claims.0: give either criteria or",
        ),
        ("claims:", "claim:", "unknown key 'claim' (did you mean 'claims'?)"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'claims.yaml'}: {message}"), text
    assert "\n" not in text


def test_ids_must_differ(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two claims have the id 'C1'"):
        load(tmp_path, GOOD + GOOD.replace("\nclaims:\n", ""))


def test_names_of_criteria_must_differ(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two criteria are named 'low'"):
        load(tmp_path, GOOD + GOOD[GOOD.index("      - name") :])


@pytest.mark.parametrize("text", ["claims: [", "claims: 3", "- id: C1", "", "claims: []"])
def test_what_is_no_list_of_claims_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"claims\.yaml") as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        load_claims(tmp_path / "nowhere.yaml", STUDIES)
