"""The audit of a tree: every kind of damage by its kind and place, and nothing said of a tree that is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planted_trees import STUDY, payload_of, plant, study, write

from dmdpipe.artifacts.checked import json_text
from dmdpipe.artifacts.dag import plan_run
from dmdpipe.artifacts.manifest import sealed
from dmdpipe.artifacts.plan import PlannedStep
from dmdpipe.artifacts.stages import STAGES
from dmdpipe.audit.commands import locate, trees_of
from dmdpipe.audit.inspection import Kind, inspect_steps
from dmdpipe.audit.tree import read_artifact
from dmdpipe.audit.verify import Audit, study_roots, verify_tree
from dmdpipe.audit.words import audit_page, audit_text
from dmdpipe.errors import UserError


@pytest.fixture
def own(own_tree: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(own_tree.checkout)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return own_tree


def audit(tree: Any, *only: str) -> Audit:
    return verify_tree(tree.results, only or None)


def found(tree: Any) -> set[tuple[str, str]]:
    """Kind and place of every problem."""
    return {(str(problem.kind), problem.where) for problem in audit(tree).problems}


def reseal(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and seal it again, as a forger would."""
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest["result"] = sealed(manifest["result"], "result_digest")
    manifest["provenance"] = sealed(manifest["provenance"], "provenance_digest")
    path.write_text(json_text(manifest))


def name(tree: Any, path: Path) -> str:
    return path.relative_to(tree.results).as_posix()


def test_a_whole_tree_has_no_problems_and_one_root(own: Any) -> None:
    result = audit(own)
    assert result.problems == () and result.notes == ()
    manifests = list(own.results.rglob("manifest.json"))
    assert result.steps == len(manifests) == 15
    payload = [p for m in manifests for p in m.parent.iterdir() if p.name not in ("manifest.json", "run.json")]
    assert result.size == sum(path.stat().st_size for path in payload)
    (root,) = result.roots
    leaf = json.loads((own.results / "studies/dimension/tiny/manifest.json").read_text())
    assert (root.name, root.scale) == ("dimension", "tiny")
    assert root.result == leaf["result"]["result_digest"]
    assert root.provenance == leaf["provenance"]["provenance_digest"]
    assert root.result in audit_text(result) and "no problems" in audit_text(result)
    assert root.result in audit_page(result, "tiny") and "no problems" in audit_page(result, "tiny")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def link(path: Path) -> None:
    shutil.copy(path, path.parents[4] / "copy")
    path.unlink()
    path.symlink_to(path.parents[4] / "copy")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (flip, "tampered"),
        (cut, "truncated"),
        (lengthen, "tampered"),
        (Path.unlink, "missing"),
        (link, "tampered"),
        (pipe, "tampered"),
    ],
)
@pytest.mark.parametrize("stage", ["students", "studies"])
def test_damage_to_a_payload_file_is_named(own: Any, damage: Callable[[Path], None], kind: str, stage: str) -> None:
    path = own.folder(stage) / ("snapshots.safetensors" if stage == "students" else "results.csv")
    damage(path)
    assert found(own) == {(kind, name(own, path))}


def test_a_damaged_manifest_and_one_of_another_version_are_told_apart(own: Any) -> None:
    damaged, old = own.folder("data") / "manifest.json", own.folder("metrics") / "manifest.json"
    flip(damaged)
    old.write_text(old.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    assert found(own) == {("tampered", name(own, damaged)), ("unknown schema", name(own, old))}
    assert "has schema version 1, this dmdpipe reads 2" in audit_text(audit(own))


def test_what_belongs_to_no_step_is_an_orphan(own: Any) -> None:
    (own.folder("students") / "notes.txt").write_text("x")
    (own.results / "stray.bin").write_text("x")
    (own.results / "data/empty").mkdir()
    (own.results / "teachers/link").symlink_to(own.results / "data")
    for expected in ("logs/x.log", ".tmp/a/b", "report/tiny/report.html", "report/tiny/audit.html"):
        (own.results / expected).parent.mkdir(parents=True, exist_ok=True)
        (own.results / expected).write_text("x")
    places = {f"{name(own, own.folder('students'))}/notes.txt", "stray.bin", "data/empty", "teachers/link"}
    assert found(own) == {("orphan", place) for place in places}


def test_a_step_in_another_steps_folder_is_tampered(own: Any) -> None:
    one, other = sorted(path.parent for path in own.results.glob("students/*/manifest.json"))
    one.rename(own.results / "kept")
    other.rename(one)
    (own.results / "kept").rename(other)
    # Neither lies where it belongs, and what was made from them finds others there.
    assert {"tampered", "stale parent"} <= {kind for kind, _ in found(own)}
    assert {("tampered", f"{name(own, folder)}/manifest.json") for folder in (one, other)} <= found(own)


def test_a_forged_payload_shows_in_what_was_made_from_it(own: Any) -> None:
    """Sealed anew in itself, but its children know its digest."""
    teacher = own.folder("teachers")
    content = (teacher / "model.safetensors").read_bytes()
    (teacher / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    def forge(manifest: dict[str, Any]) -> None:
        import hashlib

        data = (teacher / "model.safetensors").read_bytes()
        manifest["result"]["payload"]["model.safetensors"]["sha256"] = hashlib.sha256(data).hexdigest()

    reseal(teacher / "manifest.json", forge)
    kinds = found(own)
    assert {kind for kind, _ in kinds} == {"stale parent"}
    assert {place.partition("/")[0] for _, place in kinds} == {"students", "teacher_samples"}


def test_a_forged_provenance_shows_too(own: Any) -> None:
    def forge(manifest: dict[str, Any]) -> None:
        manifest["provenance"]["environment"]["python"] = "3.99"

    reseal(own.folder("data") / "manifest.json", forge)
    kinds = {kind for kind, _ in found(own)}
    assert kinds == {"stale parent", "foreign environment"}


def test_parents_that_are_not_those_of_the_spec_are_tampered(own: Any) -> None:
    def forge(manifest: dict[str, Any]) -> None:
        del manifest["result"]["parents"]["data"]
        del manifest["provenance"]["parents"]["data"]

    path = own.folder("teachers") / "manifest.json"
    reseal(path, forge)
    assert ("tampered", name(own, path)) in found(own)


def test_a_payload_that_its_stage_does_not_write_is_tampered(own: Any) -> None:
    def forge(manifest: dict[str, Any]) -> None:
        del manifest["result"]["payload"]["history.parquet"]

    path = own.folder("students") / "manifest.json"
    reseal(path, forge)
    assert ("tampered", name(own, path)) in found(own)


def test_a_parent_that_is_gone_is_missing(own: Any) -> None:
    folder = own.folder("noise")
    shutil.rmtree(folder)
    assert found(own) == {("missing", name(own, folder))}
    assert audit(own).roots == ()


def test_a_step_made_from_itself_is_a_cycle(own: Any) -> None:
    folder = own.folder("data")

    def forge(manifest: dict[str, Any]) -> None:
        manifest["result"]["parents"]["self"] = {"folder": name(own, folder), "result_digest": "0" * 64}
        manifest["provenance"]["parents"]["self"] = "0" * 64

    reseal(folder / "manifest.json", forge)
    assert ("cycle", name(own, folder)) in found(own)


def test_another_configuration_is_named_key_by_key(own: Any) -> None:
    scale = own.checkout / "config/scales/tiny.yaml"
    scale.write_text(scale.read_text().replace("student.generator_steps: 5", "student.generator_steps: 6"))
    result = audit(own)
    kinds = {(str(problem.kind), problem.where.partition("/")[0]) for problem in result.problems}
    assert kinds == {("stale config", stage) for stage in ("students", "pairs", "metrics", "studies")}
    said = {problem.what for problem in result.problems if problem.where.startswith("students/")}
    assert said == {"no study asks for it today; the nearest that one does differs in generator_steps: 5 → 6"}


def test_steps_that_nobody_asks_for_or_uses_are_orphans(own: Any) -> None:
    study = own.checkout / "config/studies/dimension.yaml"
    study.write_text(study.read_text().replace('["4", "16"]', '["4"]'))
    shutil.rmtree(own.results / "studies")
    kinds = found(own)
    assert {kind for kind, _ in kinds} == {"orphan", "stale config"}
    assert {place.partition("/")[0] for kind, place in kinds if kind == "orphan"} == {"metrics"}


def test_only_a_lineage_is_audited_if_one_is_named(own: Any) -> None:
    one, other = sorted(path.parent for path in own.results.glob("students/*/manifest.json"))
    flip(other / "snapshots.safetensors")
    assert audit(own, name(own, one)).problems == ()
    assert audit(own, name(own, one)).steps == 3
    assert [problem.kind for problem in audit(own, name(own, other)).problems] == [Kind.tampered]


def test_other_locks_are_a_foreign_environment(own: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks/base.txt").write_text("numpy==0\n")
    monkeypatch.setenv("DMDPIPE_LOCKS", str(tmp_path / "locks"))
    assert {kind for kind, _ in found(own)} == {"foreign environment"}
    # One cause, one line, however many steps it concerns.
    assert audit_text(audit(own)).count("foreign environment: ") == 1


def test_an_empty_folder_is_no_results(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results"):
        verify_tree(tmp_path)


def test_the_command_says_by_its_status_what_it_found(own: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from dmdpipe import cli

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr("sys.argv", ["dmdpipe", "audit", "verify", *words])
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    assert run() == (0, audit_text(audit(own)).replace(str(own.results), "results") + "\n", "")
    path = own.folder("students") / "history.parquet"
    flip(path)
    status, out, _ = run(str(own.results), "--format", "json")
    (said,) = json.loads(out)
    assert status == 1
    assert [(problem["kind"], problem["where"]) for problem in said["problems"]] == [("tampered", name(own, path))]
    assert run(str(path))[0] == 1
    assert run(str(own.folder("data")))[0] == 0
    status, out, err = run("nowhere")
    assert status == 2 and out == "" and err.count("\n") == 1


def test_a_study_made_from_nothing_is_tampered(own: Any) -> None:
    def forge(manifest: dict[str, Any]) -> None:
        manifest["result"]["parents"] = manifest["provenance"]["parents"] = {}

    path = own.folder("studies") / "manifest.json"
    reseal(path, forge)
    assert ("tampered", name(own, path)) in found(own)


def test_names_that_steer_a_terminal_or_break_an_encoding_are_made_harmless(own: Any) -> None:
    (own.results / os.fsdecode(b"stray\xff\x1b[2J")).touch()
    result = audit(own)
    (problem,) = result.problems
    assert problem.kind == Kind.orphan and problem.where.isprintable()
    audit_page(result, "tiny").encode()


def test_a_stage_folder_stands_for_its_steps(own: Any) -> None:
    students = [name(own, path.parent) for path in sorted(own.results.glob("students/*/manifest.json"))]
    assert trees_of([own.results / "students"]) == [(own.results, students)]
    assert trees_of([own.results]) == [(own.results, None)]


@pytest.mark.parametrize("above", ["data", "students", "report", "studies"])
def test_a_checkout_may_lie_below_any_name(own: Any, tmp_path: Path, above: str) -> None:
    results = tmp_path / above / "project/results"
    shutil.copytree(own.results, results)
    for stage in ("students", "data", "noise", "studies"):
        folder = next((results / stage).rglob("manifest.json")).parent
        assert locate(folder) == (results, folder.relative_to(results).as_posix())


def test_a_step_behind_a_link_is_read_where_it_is_named(own: Any) -> None:
    folder = own.folder("data")
    link = own.results / "data/link"
    link.symlink_to(folder)
    assert read_artifact(link).folder == "data/link"


def test_a_run_of_some_studies_is_audited_against_what_it_was_asked_for(own: Any) -> None:
    """Else every such run would end by calling its own verdicts stale."""
    asked = plan_run({"scale": "smoke", "studies": ["dimension", "validity"]})
    everything = plan_run({"scale": "smoke"})
    assert asked.verdicts.folder == everything.verdicts.folder and asked.verdicts.digest != everything.verdicts.digest
    made = PlannedStep("verdicts", asked.verdicts.spec, {})
    write(own.results, made, dict.fromkeys(STAGES["verdicts"].payload, b"x"))
    stale = ("stale config", asked.verdicts.folder)
    assert stale in found(own)
    problems = verify_tree(own.results, run_plan=asked).problems
    assert stale not in {(str(problem.kind), problem.where) for problem in problems}


def test_a_form_that_is_not_offered_is_refused(dmdpipe: Callable[..., Any]) -> None:
    for words in (("verify",), ("explain", "results")):
        outcome = dmdpipe("audit", *words, "--format", "csv")
        assert (outcome.status, outcome.out) == (2, "") and "'csv' is not offered" in outcome.err


def test_what_is_asked_for_and_not_there_is_told(own: Any) -> None:
    def missing(stage: str) -> int:
        (said,) = audit(own).gaps
        assert said in audit_text(audit(own))
        counts = dict(reversed(count.split()) for count in said.partition(": ")[2].split(", "))
        return int(counts.get(stage, 0))

    before = {stage: missing(stage) for stage in ("evidence", "metrics", "pairs")}
    shutil.rmtree(own.results / "studies")
    for folder in sorted(own.results.glob("metrics/*")):
        shutil.rmtree(folder)
    (own.results / "report/tiny").mkdir(parents=True)
    (own.results / "report/tiny/report.html").touch()
    after = {"evidence": before["evidence"] + 1, "metrics": before["metrics"] + 2, "pairs": before["pairs"]}
    assert {stage: missing(stage) for stage in before} == after


def test_a_study_with_a_damaged_step_is_said_to_have_no_root(own: Any) -> None:
    flip(own.folder("students") / "history.parquet")
    result = audit(own)
    assert result.roots == ()
    assert "dimension (tiny): no root, since a step of it is damaged or missing" in result.gaps


def test_verdicts_and_pages_have_roots_of_their_own(tmp_path: Path) -> None:
    """Otherwise whoever forges a verdict, or swaps a figure, still has every study's published root."""
    steps = study(2)
    plant(tmp_path, steps, payload_of({0: 0.5, 1: 0.6}))
    inspections = inspect_steps(tmp_path, steps)
    before = study_roots(inspections, [])
    assert [(root.stage, root.name) for root in before] == [
        ("evidence", STUDY), ("verdicts", "verdicts"), ("figures", "page overview"),
    ]  # fmt: skip
    verdicts = next(step for step in steps.values() if step.stage == "verdicts")
    write(tmp_path, verdicts, {name: b"forged" for name in STAGES["verdicts"].payload})
    after = study_roots(inspect_steps(tmp_path, steps), [])
    changed = [root.stage for root, old in zip(after, before, strict=True) if root.result != old.result]
    assert changed == ["verdicts"]


def test_a_page_of_other_verdicts_is_of_another_configuration(tmp_path: Path) -> None:
    """Its own spec is the same; else it would be said to differ from a page that is published for other studies."""
    steps = study(2)
    plant(tmp_path, steps, payload_of({0: 0.5, 1: 0.6}))
    before = study_roots(inspect_steps(tmp_path, steps), [])
    verdicts = next(step for step in steps.values() if step.stage == "verdicts")
    other = PlannedStep("verdicts", verdicts.spec.model_copy(update={"studies": ("another",)}), verdicts.parents)
    write(tmp_path, other, dict.fromkeys(STAGES["verdicts"].payload, b"x"))
    after = study_roots(inspect_steps(tmp_path, steps), [])
    changed = [root.stage for root, old in zip(after, before, strict=True) if root.spec != old.spec]
    assert changed == ["verdicts", "figures"]


def test_a_code_digest_that_is_not_that_of_its_definitions_is_tampered(own: Any) -> None:
    def forge(manifest: dict[str, Any]) -> None:
        manifest["provenance"]["modules"].popitem()

    path = own.folder("metrics") / "manifest.json"
    reseal(path, forge)
    assert ("tampered", name(own, path)) in found(own)


def test_a_folder_that_cannot_be_read_ends_the_audit(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def forbidden(path: Any = ".") -> Any:
        if str(path).endswith("/metrics"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(UserError, match=r"metrics: cannot be read \(Permission denied\)"):
        audit(own)


def test_a_link_is_called_a_link(own: Any) -> None:
    shutil.move(own.results / "metrics", own.checkout / "elsewhere")
    (own.results / "metrics").symlink_to(own.checkout / "elsewhere")
    whats = [problem.what for problem in audit(own).problems if problem.where == "metrics"]
    assert whats == ["is a link, which no run makes; delete it"]
