"""`dmdpipe results` and `dmdpipe verdicts` on planted files."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dmdpipe.artifacts.tables import encode_table
from dmdpipe.specs.config import study_names

COLUMNS = [
    *["study", "scale", "point", "data", "d", "network", "init", "recipe", "sigma_max", "seed"],
    *["generator_step", "metric", "value", "low", "high", "n_seeds", "gate_ratio", "converged", "readout"],
]
VERDICTS = pd.DataFrame(
    {
        "id": ["C1", "C4", "H1"],
        "title": ["Freedom", "Not memorization", "Inheritance"],
        "verdict": ["refuted", "inconclusive", "supported"],
        "reason": ["rho is 0.25 [0.2, 0.3], below 0.5", "no study has been run, " * 12 + "so it is open", "all hold"],
    }
)
CRITERIA = pd.DataFrame({"id": ["C1"], "criterion": ["does not copy"], "estimate": [0.1 + 0.2], "low": [np.nan]})


def planted(study: str, scale: str = "laptop") -> pd.DataFrame:
    """A results table with a NaN, a long float and both kinds of rows."""
    point = (study, scale, "d=4", "digits-2x2", 4, "mlp-64x3", "teacher", "dmd2", 80.0)
    rows = [
        (*point, -1, 9, "rho", 1 / 3, 0.1, 0.5, 5, 1.5, True, True),
        (*point, 0, 0, "rho", 2 / 3, np.nan, np.nan, 1, 2.5, False, False),
        (*point, 0, 9, "delta_e", 1e-9, np.nan, np.nan, 1, 1.5, True, True),
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.fixture
def results(checkout: Any, plant_artifact: Callable[..., Path]) -> Path:
    """The results of two studies, the verdicts, and nothing else."""
    folder: Path = checkout / "results"
    for study in ("dimension", "dynamics"):
        plant_artifact(
            folder / f"studies/{study}/laptop", "evidence", {"results.parquet": encode_table(planted(study))}
        )
    tables = {"verdicts": VERDICTS, "criteria": CRITERIA}
    files = {f"{name}.csv": table.to_csv(index=False).encode() for name, table in tables.items()}
    plant_artifact(folder / "verdicts/laptop", "verdicts", files)
    return folder


def expected() -> pd.DataFrame:
    return pd.concat([planted("dimension"), planted("dynamics")], ignore_index=True)


def test_csv_holds_every_number_to_the_last_bit(dmdpipe: Callable[..., Any], results: Path) -> None:
    done = dmdpipe("results", "--format", "csv")
    assert (done.status, done.err) == (0, "")
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(done.out)), expected(), check_exact=True)


def test_json_holds_every_column_and_null_for_what_is_missing(dmdpipe: Callable[..., Any], results: Path) -> None:
    rows = json.loads(dmdpipe("results", "--format", "json").out)
    assert all(list(row) == COLUMNS for row in rows)
    for row, (_, wanted) in zip(rows, expected().iterrows(), strict=True):
        for column in COLUMNS:
            if isinstance(wanted[column], float) and np.isnan(wanted[column]):
                assert row[column] is None
            elif isinstance(wanted[column], float):
                assert row[column] == pytest.approx(wanted[column], rel=1e-12)
            else:
                assert row[column] == wanted[column]


def test_the_table_for_people_has_a_line_a_row(dmdpipe: Callable[..., Any], results: Path) -> None:
    lines = dmdpipe("results").out.splitlines()
    assert lines[0].split() == COLUMNS
    assert len(lines) == 1 + len(expected())
    assert "nan" not in " ".join(lines).lower()


def test_rows_can_be_chosen_by_study_metric_and_read_out(dmdpipe: Callable[..., Any], results: Path) -> None:
    def shown(*options: str) -> pd.DataFrame:
        return pd.read_csv(io.StringIO(dmdpipe("results", "--format", "csv", *options).out))

    assert set(shown("--study", "dynamics")["study"]) == {"dynamics"}
    assert set(shown("--metric", "delta_e")["metric"]) == {"delta_e"}
    assert shown("--readout")["readout"].all() and len(shown("--readout")) == 4
    assert len(shown("--study", "dimension", "--metric", "rho", "--readout")) == 1


def test_an_unknown_metric_comes_with_the_nearest_one(dmdpipe: Callable[..., Any], results: Path) -> None:
    done = dmdpipe("results", "--metric", "roh")
    assert (done.status, done.out) == (2, "")
    assert done.err == "dmdpipe: --metric: there is no 'roh' (did you mean 'rho'?)\n"


def test_no_row_left_is_an_empty_table(
    dmdpipe: Callable[..., Any], results: Path, plant_artifact: Callable[..., Path]
) -> None:
    table = encode_table(planted("dimension").assign(readout=False))
    plant_artifact(results / "studies/dimension/laptop", "evidence", {"results.parquet": table})
    assert dmdpipe("results", "--study", "dimension", "--readout", "--format", "csv").out.strip() == ",".join(COLUMNS)
    assert json.loads(dmdpipe("results", "--study", "dimension", "--readout", "--format", "json").out) == []


def test_verdicts_for_people_say_claim_verdict_and_reason(dmdpipe: Callable[..., Any], results: Path) -> None:
    done = dmdpipe("verdicts")
    assert (done.status, done.err) == (0, "")
    text = " ".join(done.out.split())
    for row in VERDICTS.to_dict("records"):
        assert f"{row['id']} {row['title']} {row['verdict'].upper()}" in text
        assert row["reason"] in text
    assert max(map(len, done.out.splitlines())) <= 110


@pytest.mark.parametrize("form", ["csv", "json"])
def test_verdicts_and_criteria_for_programs(dmdpipe: Callable[..., Any], results: Path, form: str) -> None:
    def shown(*options: str) -> pd.DataFrame:
        text = dmdpipe("verdicts", "--format", form, *options).out
        return pd.read_csv(io.StringIO(text)) if form == "csv" else pd.DataFrame(json.loads(text))

    pd.testing.assert_frame_equal(shown(), VERDICTS)
    found = shown("--criteria").astype({"low": float})
    pd.testing.assert_frame_equal(found, CRITERIA)


def asked(dmdpipe: Callable[..., Any], name: str) -> Any:
    words = {"results.parquet": "results --study dimension", "verdicts.csv": "verdicts"}
    return dmdpipe(*words.get(name, "verdicts --criteria").split())


def assert_refused(done: Any, path: str, says: str) -> None:
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("dmdpipe: ") and f"{path}: " in done.err and says in done.err
    assert done.err[:-1].isprintable()


@pytest.mark.parametrize(
    "path", ["studies/dimension/laptop/results.parquet", "verdicts/laptop/verdicts.csv", "verdicts/laptop/criteria.csv"]
)
@pytest.mark.parametrize("change", ["one byte", "emptied", "a byte more", "another manifest", "no manifest"])
def test_a_table_that_is_not_the_one_its_step_made_is_named_in_one_line(
    dmdpipe: Callable[..., Any], results: Path, path: str, change: str
) -> None:
    file = results / path
    data = file.read_bytes()
    manifest = file.with_name("manifest.json")
    match change:
        case "one byte":
            file.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
        case "emptied":
            file.write_bytes(b"")
        case "a byte more":
            file.write_bytes(data + b"\n")
        case "another manifest":
            manifest.write_text(manifest.read_text().replace("planted", "painted"))
        case "no manifest":
            manifest.unlink()
    says = {"one byte": "was changed", "another manifest": "digest", "no manifest": "no artifact"}.get(change, "bytes")
    at_fault = manifest if change == "another manifest" else file
    assert_refused(asked(dmdpipe, file.name), f"results/{at_fault.relative_to(results)}", says)


HOSTILE = [
    ("studies/dimension/laptop", "evidence", "results.parquet", b"PAR1 no parquet PAR1", "no valid parquet"),
    ("studies/dimension/laptop", "evidence", "results.parquet", encode_table(VERDICTS), "no column 'metric'"),
    ("verdicts/laptop", "verdicts", "verdicts.csv", b"", "is damaged"),
    ("verdicts/laptop", "verdicts", "verdicts.csv", b"\xff\xfe\x00", "is damaged"),
    ("verdicts/laptop", "verdicts", "verdicts.csv", b"id\n1\n", "no column 'title'"),
    ("verdicts/laptop", "verdicts", "criteria.csv", b"", "is damaged"),
]


@pytest.mark.parametrize(("folder", "stage", "name", "content", "says"), HOSTILE)
def test_a_table_that_a_manifest_vouches_for_may_still_be_no_table(
    dmdpipe: Callable[..., Any],
    results: Path,
    plant_artifact: Callable[..., Path],
    folder: str,
    stage: str,
    name: str,
    content: bytes,
    says: str,
) -> None:
    plant_artifact(results / folder, stage, {name: content})
    assert_refused(asked(dmdpipe, name), f"results/{folder}/{name}", says)


# Other choices


@pytest.fixture
def judged(checkout: Any, plant_artifact: Callable[..., Path]) -> Callable[..., Path]:
    """Make the verdicts of a planted study, in which ρ refutes C2, C3 and C7 and ΔE, a reconstruction, would not."""
    from dmdpipe.evidence.results import results_table
    from dmdpipe.evidence.sensitivity import sensitivity_table
    from dmdpipe.evidence.verdicts import evaluate_claims, verdict_table
    from dmdpipe.specs.claims import load_claims

    point = {"point": "recipe=dmd2", "data": "digits-8x8", "d": 64, "network": "mlp-64x3", "init": "teacher"}
    point |= {"recipe": "dmd2", "sigma_max": 80.0}
    values = {"rho": 0.8, "delta_e": 0.1, "rho_affine": 0.9, "gate_ratio": 1.2, "converged": 1.0}
    cells = [
        (
            point | {"seed": seed},
            pd.DataFrame([(9, *v) for v in seen.items()], columns=["generator_step", "metric", "value"]),
        )
        for seed in range(5)
        for seen in [values | {"rho": 0.8 + seed / 1_000, "delta_e": 0.1 + seed / 1_000}]
    ]

    def plant() -> Path:
        results = results_table("high_dimension", "laptop", cells, {})
        claims = load_claims(checkout / "config/claims.yaml", STUDIES_OF_CLAIMS)
        verdicts = verdict_table(evaluate_claims(claims, results))
        files = {
            "results.parquet": encode_table(results),
            "verdicts.csv": verdicts.to_csv(index=False).encode(),
            "sensitivity.parquet": encode_table(sensitivity_table(claims, results)),
        }
        return plant_artifact(checkout / "results/verdicts/laptop", "verdicts", files)

    return plant


STUDIES_OF_CLAIMS = study_names(Path(__file__).parents[2] / "config")


def test_other_choices_are_shown_beside_the_declared_one(
    dmdpipe: Callable[..., Any], judged: Callable[..., Path]
) -> None:
    folder = judged()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = dmdpipe("verdicts", "--sensitivity")
    assert (done.status, done.err) == (0, "")
    assert "metric    rho (declared): refuted; delta_e: supported REVERSED" in done.out
    assert max(map(len, done.out.splitlines())) <= 110
    rows = pd.read_csv(io.StringIO(dmdpipe("verdicts", "--sensitivity", "--format", "csv").out), keep_default_na=False)
    assert rows.loc[rows["change"] != "", ["id", "option", "change"]].to_numpy().tolist() == [
        ["C2", "delta_e", "reversed"],
        ["C3", "delta_e", "lost"],  # its second criterion, of a study that was not run, stays open
        ["C7", "delta_e", "reversed"],
    ]
    assert rows["declared"].isin(["refuted", "inconclusive"]).all()
    assert json.loads(dmdpipe("verdicts", "--sensitivity", "--format", "json").out)[0]["id"] == "C1"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_other_choices_are_another_table(dmdpipe: Callable[..., Any], judged: Callable[..., Path]) -> None:
    judged()
    done = dmdpipe("verdicts", "--sensitivity", "--criteria")
    assert (done.status, done.out) == (2, "")
    assert "--criteria and --sensitivity are two tables" in done.err


# Controls


def test_controls_are_judged_on_the_same_results_and_change_no_verdict(
    dmdpipe: Callable[..., Any], judged: Callable[..., Path]
) -> None:
    folder = judged()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    claims = dmdpipe("verdicts", "--format", "csv").out
    done = dmdpipe("verdicts", "--controls")
    assert (done.status, done.err) == (0, "")
    assert re.search(r"^K-capacity +Capacity +NOT RUN\n +Undecided: ", done.out, re.MULTILINE)
    # Its study is there, but not the student that is told to copy, and that of the shuffled pairing is not.
    rows = pd.read_csv(io.StringIO(dmdpipe("verdicts", "--controls", "--criteria", "--format", "csv").out))
    of_study = rows[rows["study"] == "high_dimension"].iloc[0]
    assert (of_study["id"], of_study["cause"], of_study["verdict"]) == ("K-validity", "no matching run", "not run")
    assert (rows.loc[rows["study"] != "high_dimension", "cause"] == "no study").all()
    assert json.loads(dmdpipe("verdicts", "--controls", "--format", "json").out)[0]["id"] == "K-validity"
    assert dmdpipe("verdicts", "--format", "csv").out == claims
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    both = dmdpipe("verdicts", "--controls", "--sensitivity")
    assert both.status == 2 and "--controls and --sensitivity are two tables" in both.err


def test_a_mistake_in_the_controls_is_named(
    dmdpipe: Callable[..., Any], checkout: Any, judged: Callable[..., Path]
) -> None:
    judged()
    path = checkout / "config/controls.yaml"
    path.write_text(path.read_text().replace("study: validity", "study: validty", 1))
    for words in (("verdicts", "--controls"), ("config", "check")):
        done = dmdpipe(*words)
        assert (done.status, done.out) == (2, "")
        assert "config/controls.yaml: claims.0.criteria.0.study: there is no study 'validty'" in done.err
