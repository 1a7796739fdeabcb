from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import planted_trees
import pytest
from planted_trees import POINT, STUDY

from dmdpipe.artifacts.plan import PlannedStep
from dmdpipe.artifacts.tables import encode_table
from dmdpipe.audit.findings import scale_block, tables_in, with_block, write_findings
from dmdpipe.errors import UserError
from dmdpipe.evidence.controls import judge_controls
from dmdpipe.evidence.results import results_table
from dmdpipe.evidence.sensitivity import sensitivity_table
from dmdpipe.evidence.verdicts import evaluate_claims, findings_table, verdict_table
from dmdpipe.specs.claims import Claims
from dmdpipe.specs.report import Axis, StudyFigureSpec, StudyPage

DOCS = Path(__file__).parents[2] / "docs"
RHO = {0: 0.2000123, 1: 0.31, 2: 0.2503}
PAGE = "# F\n\nbefore\n<!-- findings tiny:begin -->\nold\n<!-- findings tiny:end -->\nafter\n"
CRITERIA = [
    {"name": "copies | well", "statistic": {"value": {"metric": "rho"}}, "predicts": "below", "threshold": 0.5},
    {
        "name": "leaves the floor",
        "statistic": {"difference": {"metric": "rho", "minus_metric": "rho_floor"}},
        "predicts": "above",
        "threshold": 0.1,
    },
    {
        "name": "elsewhere",
        "study": "other",
        "statistic": {"value": {"metric": "rho"}},
        "predicts": "below",
        "threshold": 1,
    },
]
CLAIMS = Claims.model_validate(
    {
        "claims": [
            {"id": id_, "title": "t", "statement": "s", "level_of_evidence": "e", "criteria": [criterion]}
            for id_, criterion in (
                (id_, {"study": STUDY, "because": "b", **one})
                for id_, one in zip(("C1", "C2", "H1"), CRITERIA, strict=True)
            )
        ]
    }
)


CONTROLS = Claims.model_validate(
    {
        "claims": [
            {
                "id": id_, "title": "a | b", "statement": "s", "level_of_evidence": "e",
                "criteria": [{"study": study, "because": "b", **CRITERIA[0]}],
            }
            for id_, study in (("K-here", STUDY), ("K-absent", "other"))
        ]
    }
)  # fmt: skip


def metrics(rho: float) -> pd.DataFrame:
    values = {"rho": rho, "rho_floor": 0.01, "rho_affine": 0.1, "gate_ratio": 1.5, "converged": 1.0}
    return pd.DataFrame([(10, *row) for row in values.items()], columns=["generator_step", "metric", "value"])


def tables(rho: dict[int, float]) -> dict[str, pd.DataFrame]:
    (evidence,) = [step for step in planted_trees.study(len(rho)).values() if step.stage == "evidence"]
    results = results_table(
        STUDY, "tiny", [(cell.model_dump(), metrics(rho[cell.seed])) for cell in evidence.spec.cells], {}
    )
    verdicts = evaluate_claims(CLAIMS, results)
    criteria = findings_table(verdicts).rename(columns={"claim": "id"})
    sensitivity = sensitivity_table(CLAIMS, results)
    for row, change in enumerate(("reversed", "lost", "gained", "lost")):
        sensitivity.loc[row, ["option", "change"]] = [f"planted {row}", change]
    return {
        "results": results,
        "verdicts": verdict_table(verdicts),
        "criteria": criteria,
        "sensitivity": sensitivity,
    }


def tree(root: Path, rho: dict[int, float]) -> Path:
    """The results of a study of one point, judged, with its page."""
    steps = planted_trees.study(len(rho))
    (empty,) = [step for step in steps.values() if step.stage == "verdicts"]
    verdicts = PlannedStep("verdicts", empty.spec.model_copy(update={"claims": CLAIMS}), empty.parents)
    steps[verdicts.folder] = verdicts
    words = StudyPage(
        name=STUDY, number=7, title="A title", question="Is it?", prediction="It is.", changes_mind="",
        axes=(Axis(name="point", labels=(POINT,)),), readers=(), students=(),
    )  # fmt: skip
    spec = StudyFigureSpec(notebook="study", scale="tiny", source_sha256="0", study=words)
    page = PlannedStep("figures", spec, {"verdicts": verdicts})
    made = tables(rho)
    usual = planted_trees.payload_of(rho)

    def payload(step: PlannedStep) -> planted_trees.Files:
        match step.stage:
            case "evidence":
                return {"results.csv": made["results"].to_csv(index=False).encode()}
            case "verdicts":
                names = ("verdicts", "criteria", "sensitivity")
                texts = {f"{name}.csv": made[name].to_csv(index=False).encode() for name in names}
                return {**texts, "results.parquet": encode_table(made["results"])}
            case "figures":
                return {
                    "read_out-planted.png": b"png",
                    "read_out-planted.csv": b"d\n1\n",
                    "read_out-planted.pdf": b"pdf",
                }
        return usual(step)

    return planted_trees.plant(root, {**steps, page.folder: page}, payload)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/findings.md").write_text(PAGE)
    return tmp_path / "docs"


def cells(text: str, first: str) -> list[list[str]]:
    return [re.split(r"(?<!\\) \| ", line.strip("| \n")) for line in text.splitlines() if line.startswith(f"| {first}")]


def test_every_number_is_the_one_in_the_tables(tmp_path: Path, docs: Path) -> None:
    root = tree(tmp_path / "results", RHO)
    write_findings(root, "tiny", docs, CONTROLS)
    text = (docs / "findings.md").read_text()
    assert text.startswith("# F\n\nbefore\n<!-- findings tiny:begin -->\n```sh") and text.endswith(":end -->\nafter\n")
    expected = tables(RHO)["criteria"]
    rows = [row for id_ in ("C1", "C2", "H1") for row in cells(text, f"{id_} |") if len(row) == 12]
    assert len(rows) == len(expected) == 3
    for shown, wanted in zip(rows, expected.to_dict("records"), strict=True):
        numbers = [float(word) for word in re.findall(r"-?[\d.]+(?:e-?\d+)?|inf", shown[3])]
        known = [wanted[name] for name in ("value", "low", "high") if wanted[name] == wanted[name]]
        assert numbers == [float(f"{value:.4g}") for value in known]
        assert shown[4] == f"{wanted['predicts']} {wanted['threshold']:.4g}" and int(shown[6]) == wanted["n_seeds"]
        assert shown[5].startswith(f"**{wanted['outcome']}**")
        assert shown[8] == (f"{wanted['effect']:.4g}" if wanted["effect"] == wanted["effect"] else "–")
        assert shown[10] == f"`./run study_{wanted['study']} --config scale=tiny`"
    root_of_study = json.loads((root / f"studies/{STUDY}/tiny/manifest.json").read_text())["result"]["result_digest"]
    assert rows[0][11] == f"[`{root_of_study[:16]}…`](reference/tiny/{STUDY}/README.md)"
    assert rows[0][1] == "copies \\| well" and rows[2][11] == "not run" and "(no study)" in rows[2][5]
    manifest = json.loads((root / "verdicts/tiny/manifest.json").read_text())
    assert f"`{manifest['result']['result_digest']}`" in text
    takes = re.findall(r"^- (C\d|H1), (.*): (.*)\.$", text, re.MULTILINE)
    wanted = [row for row in expected.to_dict("records") if row["id"] in ("C2", "H1")]
    assert [id_ for id_, _, _ in takes] == [row["id"] for row in wanted] and len(wanted) == 2
    for (_, name, words), row in zip(takes, wanted, strict=True):
        assert name == row["criterion"].replace("|", "\\|") and row["outcome"] == "undecided"
        seeds = (
            f"{row['seeds_needed']:.0f} seeds that count decide" if row["cause"] == "interval crosses" else row["cause"]
        )
        assert words.startswith(seeds)
    assert "\n- 1 supported: K-here.\n\n" in text
    said = "- Agrees with the text: C1.\n- Does not agree: none.\n- Open: C2.\n- Our own hypothesis H1: inconclusive."
    assert said in text
    mean = f"{sum(RHO.values()) / 3:.4g}"
    study = (docs / f"reference/tiny/{STUDY}/README.md").read_text()
    (row,) = cells(study, POINT)
    assert row[1].split()[0] == mean and row[2:] == ["0.01", "0.1", "3", "3"]
    assert "**Prediction.** It is." in study and "![read_out-planted](read_out-planted.png)" in study


def test_the_same_results_give_the_same_files_and_what_is_gone_goes(tmp_path: Path, docs: Path) -> None:
    root = tree(tmp_path / "results", RHO)
    written = write_findings(root, "tiny", docs, CONTROLS)
    before = {path: path.read_bytes() for path in written}
    folder = docs / "reference/tiny" / STUDY
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "numbers.csv", "manifest.json", "page.manifest.json"),
        *("read_out-planted.png", "read_out-planted.csv"),
    }
    measured = (root / f"studies/{STUDY}/tiny/results.csv").read_text().splitlines()
    assert (folder / "numbers.csv").read_text().splitlines() == measured
    (folder / "old-figure.png").write_bytes(b"old")
    gone = folder.with_name("gone")
    gone.mkdir()
    (gone / "README.md").write_text("a study of an earlier run")
    assert write_findings(root, "tiny", docs, CONTROLS) == written
    assert {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()} == before
    check_reference(docs / "reference/tiny")
    assert not gone.exists()


def test_what_the_verdicts_do_not_stand_on_is_refused(tmp_path: Path, docs: Path) -> None:
    root, other = tree(tmp_path / "results", RHO), tree(tmp_path / "other", {**RHO, 2: 0.4})
    for place in (f"studies/{STUDY}/tiny", f"report/tiny/study_{STUDY}"):
        mine, theirs = root / place, other / place
        kept = {path.name: path.read_bytes() for path in mine.iterdir()}
        for path in theirs.iterdir():
            (mine / path.name).write_bytes(path.read_bytes())
        with pytest.raises(UserError, match=r"run again$"):
            write_findings(root, "tiny", docs, CONTROLS)
        for name, data in kept.items():
            (mine / name).write_bytes(data)
    assert (docs / "findings.md").read_text() == PAGE and not (docs / "reference").exists()
    (docs / "findings.md").write_text(PAGE.replace("tiny:end", "tiny:and"))
    with pytest.raises(UserError, match=r"needs the lines '<!-- findings tiny:begin -->'"):
        write_findings(root, "tiny", docs, CONTROLS)


@pytest.fixture
def published(tmp_path: Path, docs: Path) -> Path:
    """Findings of two studies, of which a claim reads the other one alone."""
    write_findings(tree(tmp_path / "results", RHO), "tiny", docs, CONTROLS)
    folder = docs / "reference/tiny"
    shutil.copytree(folder / STUDY, folder / "other")
    criteria = (folder / "criteria.csv").read_text()
    (folder / "criteria.csv").write_text(criteria.replace(f",{STUDY},", ",other,"))
    studies = table_of(folder / "studies.csv")
    pd.concat([studies.assign(study="other", root="0" * 64), studies]).to_csv(folder / "studies.csv", index=False)
    controls = (folder / "controls.csv").read_text()
    (folder / "controls.csv").write_text(controls.replace("K-absent,a | b,not run", "K-absent,a | b,refuted"))
    return folder


def test_a_study_that_no_claim_reads_is_replaced_alone(tmp_path: Path, docs: Path, published: Path) -> None:
    before = {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()}
    again = tree(tmp_path / "again", {**RHO, 2: 0.9, 1: 0.9})
    (published / STUDY / "old-figure.png").write_bytes(b"old")
    write_findings(again, "tiny", docs, CONTROLS, [STUDY])
    after = {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()}
    replaced = {
        published / STUDY / name for name in ("README.md", "numbers.csv", "manifest.json", "page.manifest.json")
    }
    assert {path for path in before if before[path] != after.get(path)} == {
        *(docs / "findings.md", published / "controls.csv", published / "studies.csv"),
        *replaced,
    }
    assert after.keys() == before.keys()
    assert table_of(published / "controls.csv")["verdict"].tolist() == ["inconclusive", "refuted"]
    rows = table_of(published / "studies.csv")
    manifest = json.loads((again / f"studies/{STUDY}/tiny/manifest.json").read_text())
    assert rows["study"].tolist() == ["other", STUDY]
    assert rows["root"].tolist() == ["0" * 64, manifest["result"]["result_digest"]]
    text = (docs / "findings.md").read_text()
    tables = tables_in(published)
    root = json.loads((published / "manifest.json").read_text())["result"]["result_digest"]
    assert with_block(text, "tiny", scale_block("tiny", root, tables), docs) == text and f"`{root}`" in text


def test_a_study_that_can_not_be_replaced_alone_is_refused(tmp_path: Path, docs: Path, published: Path) -> None:
    root = tmp_path / "results"
    before = {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()}
    for only, why in (("other", "is not among those"), ("stduy", "is not among those")):
        with pytest.raises(UserError, match=why):
            write_findings(root, "tiny", docs, CONTROLS, [only])
    (published / "criteria.csv").write_text((published / "criteria.csv").read_text().replace(",other,", f",{STUDY},"))
    with pytest.raises(UserError, match="read by a claim"):
        write_findings(root, "tiny", docs, CONTROLS, [STUDY])
    (published / "criteria.csv").write_bytes(before[published / "criteria.csv"])
    assert {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()} == before
    every = [one for control in CONTROLS.claims for one in control.criteria]
    criteria = tuple(one.model_copy(update={"name": f"{i}"}) for i, one in enumerate(every))
    of_both = Claims(claims=(CONTROLS.claims[0].model_copy(update={"criteria": criteria}),))
    with pytest.raises(UserError, match="K-here reads other, too"):
        write_findings(root, "tiny", docs, of_both, [STUDY])
    (published / "studies.csv").unlink()
    with pytest.raises(UserError, match="write all of them first"):
        write_findings(root, "tiny", docs, CONTROLS, [STUDY])


def table_of(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def test_controls_and_sensitivity_are_those_of_the_results(tmp_path: Path, docs: Path) -> None:
    root = tree(tmp_path / "results", RHO)
    write_findings(root, "tiny", docs, CONTROLS)
    folder = docs / "reference/tiny"
    results = tables(RHO)["results"]
    wanted = judge_controls(CONTROLS, results).criteria
    found = table_of(folder / "controls.csv")
    assert found["verdict"].tolist() == wanted["verdict"].tolist() == ["supported", "not run"]
    assert found["low"].tolist()[0] == pytest.approx(wanted["low"][0], rel=1e-12)
    sensitivity = tables(RHO)["sensitivity"]
    assert (folder / "sensitivity.csv").read_text() == sensitivity.to_csv(index=False)
    text = (docs / "findings.md").read_text()
    columns = ("reversed", "lost", "gained")
    shown_changes = [
        (row[0], change, option)
        for row in cells(text, "")
        if len(row) == 5 and row[0] in ("C1", "C2")
        for change, cell in zip(columns, row[2:], strict=True)
        for option in cell.split(", ")
        if option != "–"
    ]
    changed = sensitivity[sensitivity["change"] != ""].to_dict("records")
    assert len(changed) == 4 and sorted(shown_changes) == sorted(
        (row["id"], row["change"], f"{row['choice']} {row['option']}") for row in changed
    )
    ((name, verdict, criterion, statistic, shown, predicted, outcome, command, study),) = cells(text, "K-here ")
    low, high = (f"{found[name][0]:.4g}" for name in ("low", "high"))
    assert (name, criterion, statistic) == ("K-here a \\| b", "copies \\| well", "rho")
    assert (verdict, predicted, outcome) == ("**supported**", "below 0.5", "**holds**")
    assert shown == f"{found['value'][0]:.4g} [{low}, {high}]"
    assert command == f"`./run study_{STUDY} --config scale=tiny`"
    digest = json.loads((root / f"studies/{STUDY}/tiny/manifest.json").read_text())["result"]["result_digest"]
    assert study == f"[`{digest[:16]}…`](reference/tiny/{STUDY}/README.md)"
    assert (
        "\nNot run at this scale: K-absent.\n" in text and "[sensitivity.csv](reference/tiny/sensitivity.csv)" in text
    )
    assert "- **K-here**, copies | well: **holds**." in (folder / STUDY / "README.md").read_text()


def check_reference(folder: Path) -> None:
    """What a scale's folder holds is what its manifests vouch for, and what the findings say of it follows from it."""
    for path, name in [(path, path.name) for path in folder.rglob("*manifest.json")]:
        payload = json.loads(path.read_text())["result"]["payload"]
        for file, described in payload.items():
            if (path.parent / file).exists() and (name != "manifest.json" or path.parent == folder):
                assert hashlib.sha256((path.parent / file).read_bytes()).hexdigest() == described["sha256"]
    root = json.loads((folder / "manifest.json").read_text())["result"]["result_digest"]
    page = folder.parents[1] / "findings.md"
    text = page.read_text()
    assert with_block(text, folder.name, scale_block(folder.name, root, tables_in(folder)), page) == text


def test_the_committed_findings_follow_from_the_committed_tables() -> None:
    for manifest in sorted((DOCS / "reference").glob("*/manifest.json")):
        check_reference(manifest.parent)
