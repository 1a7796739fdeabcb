"""`dmdpipe results` and `dmdpipe verdicts` on planted files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

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
def results(checkout: Any) -> Path:
    """The results of two studies, the verdicts, and nothing else."""
    folder: Path = checkout / "results"
    for study in ("dimension", "dynamics"):
        path = folder / "studies" / study / "laptop"
        path.mkdir(parents=True)
        planted(study).to_parquet(path / "results.parquet")
    path = folder / "verdicts" / "laptop"
    path.mkdir(parents=True)
    VERDICTS.to_csv(path / "verdicts.csv", index=False)
    CRITERIA.to_csv(path / "criteria.csv", index=False)
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


def test_no_row_left_is_an_empty_table(dmdpipe: Callable[..., Any], results: Path) -> None:
    table = planted("dimension").assign(readout=False)
    table.to_parquet(results / "studies/dimension/laptop/results.parquet")
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


@pytest.mark.parametrize("content", [b"", b"PAR1 no parquet PAR1", b"\x00" * 64], ids=["empty", "PAR1", "zeros"])
def test_a_damaged_table_of_results_is_named_in_one_line(
    dmdpipe: Callable[..., Any], results: Path, content: bytes
) -> None:
    (results / "studies/dimension/laptop/results.parquet").write_bytes(content)
    done = dmdpipe("results", "--study", "dimension")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("dmdpipe: results/studies/dimension/laptop/results.parquet: ")
    assert done.err[:-1].isprintable()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"], ids=["empty", "no text"])
@pytest.mark.parametrize("name", ["verdicts", "criteria"])
def test_a_damaged_table_of_verdicts_is_named_in_one_line(
    dmdpipe: Callable[..., Any], results: Path, name: str, content: bytes
) -> None:
    (results / f"verdicts/laptop/{name}.csv").write_bytes(content)
    done = dmdpipe("verdicts", *(["--criteria"] if name == "criteria" else []))
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"dmdpipe: results/verdicts/laptop/{name}.csv: ")
    assert done.err[:-1].isprintable()
