"""Accepted changes: what counts as current after one, what never does, and a log that nobody can bend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import plant, pretend_older_code

from dmdpipe.artifacts.checked import json_text
from dmdpipe.artifacts.dag import plan_study, steps_below
from dmdpipe.artifacts.manifest import sealed
from dmdpipe.audit.accepted import accept, alike, read_acceptances
from dmdpipe.audit.commands import artifacts_at
from dmdpipe.audit.explain import explain_artifact, explanation_text
from dmdpipe.audit.inspection import Kind
from dmdpipe.audit.reproduce import reproduce
from dmdpipe.audit.status import State, assess
from dmdpipe.audit.tree import Artifact
from dmdpipe.audit.verify import verify_tree
from dmdpipe.audit.words import audit_page, audit_text
from dmdpipe.errors import UserError

# Written by dmdpipe before an entry could say anything of parents.
OLD_ENTRY = """\
{"accepted":"fedcba9876543210","changes":["code: seeds.py::f changed"],"made_by":"0123456789abcdef",\
"previous":"%s","reason":"a name","seal":"%s","step":"%s","when":"2026-11-01T00:00:00+00:00","who":"a@b"}
"""
OLD_SEALS = (
    "78f5285f61b670e77d1831d1f4d0f2af9c911b0f4cd5a470e153b6205860c980",
    "9d30cd6f3b0c0948784fea7240c13078a28c9050529dc64eeb92a847d2a34610",
)
OLD_LOG = OLD_ENTRY % ("0" * 64, OLD_SEALS[0], "data/ring-0011223344556677") + OLD_ENTRY % (
    *OLD_SEALS,
    "noise/d2_seed0-8899aabbccddeeff",
)


@pytest.fixture
def own(own_tree: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(own_tree.checkout)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return own_tree


@pytest.fixture
def log(own: Any) -> Path:
    path: Path = own.results / "audit/accepted.jsonl"
    return path


def make_again(own: Any, *stages: str, lock: str = "1" * 64) -> None:
    """As if all steps of these stages had been made again under another lock: the same bytes, another provenance."""
    for stage in stages:
        for path in own.results.glob(f"{stage}/**/manifest.json"):
            manifest = json.loads(path.read_text())
            manifest["provenance"]["environment_lock"] = lock
            manifest["provenance"] = sealed(manifest["provenance"], "provenance_digest")
            path.write_text(json_text(manifest))


def everything(own: Any) -> list[Artifact]:
    return artifacts_at([own.results])


def to_run(own: Any) -> set[str]:
    """The stages' folders in which the next run would make a step."""
    steps = steps_below(plan_study("dimension", "tiny").evidence)
    statuses = assess(steps, own.results, read_acceptances(own.results)).values()
    assert {status.kind for status in statuses if status.state is not State.current} <= {Kind.stale_parent}
    return {status.step.folder.partition("/")[0] for status in statuses if status.state is not State.current}


def stale(own: Any) -> set[str]:
    """The stages' folders in which an audit finds a stale step, of any kind."""
    problems = verify_tree(own.results).problems
    assert {problem.kind for problem in problems} <= {Kind.stale_parent, Kind.foreign_environment}
    return {problem.where.partition("/")[0] for problem in problems if problem.kind is Kind.stale_parent}


def test_parents_made_again_with_the_same_bytes_count_as_the_same_once_accepted(own: Any) -> None:
    make_again(own, "teachers", "metrics")
    assert stale(own) == {"students", "teacher_samples", "studies"}
    assert to_run(own) == {"students", "teacher_samples", "pairs", "metrics", "studies"}
    outcome = accept(everything(own), "made again by newer code, with equal bytes")
    assert outcome.refused == {}
    assert {entry.step.partition("/")[0] for entry in outcome.entries} == {"students", "teacher_samples", "studies"}
    assert stale(own) == to_run(own) == set()


def test_an_entry_says_which_parent_counts_as_which(own: Any) -> None:
    before = own.artifact("teachers").manifest
    make_again(own, "teachers")
    after = own.artifact("teachers").manifest
    assert before.result == after.result
    (entry,) = accept([own.artifact("teacher_samples")], "why").entries
    sampled = own.artifact("teacher_samples").manifest
    (role, parent) = next(iter(entry.parents.items()))
    assert entry.parents.keys() == {"teacher"} and role == "teacher"
    assert parent.folder == sampled.result.parents["teacher"].folder
    assert parent.result_digest == sampled.result.parents["teacher"].result_digest
    assert parent.made_from == sampled.provenance.parents["teacher"] != parent.accepted
    assert entry.made_by == entry.accepted == sampled.provenance.code and entry.changes == ()


def test_one_entry_covers_code_and_parents(own: Any) -> None:
    """Both of a step that was itself made by older code, from parents that were made again."""
    make_again(own, "teachers")
    pretend_older_code(own.folder("students"))
    (entry,) = accept([own.artifact("students")], "why").entries
    assert entry.changes and entry.parents and entry.made_by != entry.accepted


def test_an_entry_about_parents_claims_nothing_of_code_that_is_accepted_already(own: Any) -> None:
    pretend_older_code(own.folder("students"))
    accept([own.artifact("students")], "a name")
    make_again(own, "teachers")
    (entry,) = accept([own.artifact("students")], "equal bytes").entries
    assert entry.parents and entry.changes == () and entry.accepted == entry.made_by
    student = own.artifact("students")
    reasons = {note.said.rpartition(": ")[2] for note in verify_tree(own.results, [student.folder]).notes}
    assert reasons == {"a name", "equal bytes"}


def test_a_second_acceptance_writes_nothing(own: Any, log: Path) -> None:
    make_again(own, "teachers", "metrics")
    assert accept(everything(own), "why").entries
    written, time = log.read_bytes(), log.stat().st_mtime_ns
    assert accept(everything(own), "again").entries == ()
    twice = own.artifact("students")
    assert accept([twice, twice], "again").entries == ()
    assert (log.read_bytes(), log.stat().st_mtime_ns) == (written, time)


def test_a_step_named_twice_gets_one_entry(own: Any) -> None:
    make_again(own, "teachers")
    twice = own.artifact("students")
    assert len(accept([twice, twice], "why").entries) == 1


def other_bytes(own: Any) -> None:
    """The data come out otherwise. Their provenance digest is what it was."""
    facts = own.folder("data") / "facts.json"
    plant(facts.parent, "facts.json", facts.read_bytes() + b"\n")


@pytest.mark.parametrize("lock", [None, "1" * 64], ids=["by the same code", "by other code"])
def test_a_parent_with_other_bytes_is_never_accepted(own: Any, log: Path, lock: str | None) -> None:
    if lock:
        make_again(own, "data", lock=lock)
    other_bytes(own)
    before = stale(own)
    assert "teachers" in before
    outcome = accept(everything(own), "it surely does not matter")
    folder = own.folder("data").relative_to(own.results).as_posix()
    children = {artifact.folder for artifact in everything(own) if folder in parents(artifact)}
    assert set(outcome.refused) == children
    assert all(folder in what for what in outcome.refused.values())
    assert not children & {entry.step for entry in outcome.entries}
    assert stale(own) >= {child.partition("/")[0] for child in children}


def test_nothing_is_accepted_of_a_step_with_a_parent_of_other_bytes(own: Any) -> None:
    make_again(own, "teachers")
    pretend_older_code(own.folder("students"))
    other_bytes(own)
    student = own.artifact("students")
    outcome = accept([student], "why")
    assert outcome.entries == () and outcome.refused.keys() == {student.folder}


def parents(artifact: Artifact) -> set[str]:
    return {parent.folder for parent in artifact.manifest.result.parents.values()}


def test_an_acceptance_ends_when_the_parent_is_made_again_with_other_bytes(own: Any) -> None:
    make_again(own, "data")
    accept(everything(own), "why")
    assert stale(own) == to_run(own) == set()
    other_bytes(own)
    # The provenance digest is the accepted one still, so that only the bytes can tell.
    assert {"teachers", "metrics"} <= stale(own) and {"teachers", "metrics"} <= to_run(own)
    assert accept(everything(own), "why").entries == ()


def test_a_parent_made_again_once_more_needs_another_acceptance(own: Any) -> None:
    make_again(own, "teachers")
    accept(everything(own), "why")
    make_again(own, "teachers", lock="2" * 64)
    assert stale(own) == {"students", "teacher_samples"}
    assert accept(everything(own), "why").entries
    assert stale(own) == set()


def test_a_child_made_from_another_making_is_not_covered(own: Any) -> None:
    """An entry is about one state of the child: a child that says it was made from a third parent is stale."""
    make_again(own, "teachers")
    accept(everything(own), "why")
    path = own.folder("students") / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["provenance"]["parents"]["teacher"] = "3" * 64
    manifest["provenance"] = sealed(manifest["provenance"], "provenance_digest")
    path.write_text(json_text(manifest))
    assert "students" in stale(own)


def rewrite(log: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change every entry and seal the whole chain again, as a forger would."""
    previous, lines = "0" * 64, []
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        change(entry)
        entry = sealed({**entry, "previous": previous}, "seal")
        previous = entry["seal"]
        lines.append(json.dumps(entry))
    log.write_text("\n".join(lines) + "\n")


def test_a_forged_log_cannot_accept_other_bytes(own: Any, log: Path) -> None:
    """Whoever seals the log anew can claim much, but not that a parent with other bytes is the same."""
    make_again(own, "data")
    accept(everything(own), "why")
    other_bytes(own)
    now = own.artifact("data").manifest.result.result_digest

    def claim(entry: dict[str, Any]) -> None:
        for parent in entry["parents"].values():
            parent["result_digest"] = now

    rewrite(log, claim)
    known, data, teacher = read_acceptances(own.results), own.artifact("data"), own.artifact("teachers")
    assert all(parent.result_digest == now for entry in known.entries for parent in entry.parents.values())
    assert known.find_parent(teacher.folder, teacher.manifest, "data", data.manifest) is None
    assert {"teachers", "metrics"} <= stale(own) and {"teachers", "metrics"} <= to_run(own)


@pytest.mark.parametrize("change", ["made_from", "accepted", "result_digest"])
def test_a_changed_digest_of_a_parent_is_noticed(own: Any, log: Path, change: str) -> None:
    make_again(own, "teachers")
    accept(everything(own), "why")
    first, *others = log.read_text().splitlines()
    entry = json.loads(first)
    entry["parents"]["teacher"][change] = "4" * 64
    log.write_text("\n".join([json.dumps(entry), *others]) + "\n")
    with pytest.raises(UserError, match=r"accepted.jsonl line 1: was changed"):
        read_acceptances(own.results)
    assert any(problem.kind is Kind.tampered for problem in verify_tree(own.results).problems)


def test_what_an_entry_says_of_parents_cannot_be_taken_out(own: Any, log: Path) -> None:
    make_again(own, "teachers")
    accept(everything(own), "why")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    del lines[0]["parents"]
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(UserError, match=r"accepted.jsonl line 1: was changed"):
        read_acceptances(own.results)


def test_a_log_from_before_there_were_parents_in_it_is_read_and_continued(own: Any, log: Path) -> None:
    log.parent.mkdir()
    log.write_text(OLD_LOG)
    old = read_acceptances(own.results)
    assert [entry.parents for entry in old.entries] == [{}, {}]
    make_again(own, "teachers")
    new = accept(everything(own), "why").entries
    assert log.read_text().startswith(OLD_LOG) and new[0].previous == old.entries[-1].seal
    assert read_acceptances(own.results).entries == (*old.entries, *new)
    log.write_text(log.read_text().replace("a name", "A name", 1))
    with pytest.raises(UserError, match=r"accepted.jsonl line 1: was changed"):
        read_acceptances(own.results)


def test_a_parent_that_is_not_there_is_not_accepted(own: Any) -> None:
    make_again(own, "teachers")
    for path in own.results.glob("teachers/*/manifest.json"):
        path.unlink()
    outcome = accept([own.artifact("students")], "why")
    assert outcome.entries == () and outcome.refused == {}


def test_verify_tells_acceptances_in_few_lines(own: Any) -> None:
    make_again(own, "teachers", "metrics")
    entries = accept(everything(own), "equal bytes").entries
    audit = verify_tree(own.results)
    assert {note.where for note in audit.notes} == {entry.step for entry in entries} and len(entries) > 3
    (line,) = [line for line in audit_text(audit).splitlines() if line.startswith("accepted: ")]
    assert f"and {len(entries) - 2} more: parent in " in line
    assert "parent in teachers made again, with the same bytes" in line and line.endswith(": equal bytes")
    assert audit_page(audit, "tiny").count("equal bytes") == 1


def test_explain_tells_of_an_accepted_parent(own: Any) -> None:
    make_again(own, "teachers")
    assert "was made again since, with the same bytes" in explain_artifact(own.artifact("students")).would_run[0]
    accept(everything(own), "equal bytes")
    explanation = explain_artifact(own.artifact("students"))
    assert explanation.would_run == ()
    assert (
        "parent in teachers made again, with the same bytes" in explanation.accepted
        and "equal bytes" in explanation.accepted
    )
    assert "would not run again: parent in teachers made again" in explanation_text(explanation)


def test_a_step_with_an_accepted_parent_can_be_reproduced(own: Any, tmp_path: Path) -> None:
    make_again(own, "teacher_samples", "noise")
    accept(everything(own), "why")
    assert reproduce(own.artifact("metrics"), tmp_path / "scratch").reproduced


def test_the_command_tells_what_it_refuses_and_accepts_the_rest(
    own: Any, log: Path, dmdpipe: Callable[..., Any]
) -> None:
    make_again(own, "metrics")
    other_bytes(own)
    outcome = dmdpipe("audit", "accept", str(own.results), "--reason", "why")
    accepted = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert (outcome.status, accepted) == (1, ["studies/dimension/tiny"])
    first, *refused = outcome.out.splitlines()
    assert first == "accepted for studies/dimension/tiny: parent in metrics made again, with the same bytes"
    folder = own.folder("data").relative_to(own.results).as_posix()
    assert len(refused) == len([artifact for artifact in everything(own) if folder in parents(artifact)])
    assert all(line.startswith("not accepted for ") and f"{folder} has other bytes" in line for line in refused)
    for path in own.results.glob("studies/**/manifest.json"):
        outcome = dmdpipe("audit", "accept", str(path.parent), "--reason", "again")
        assert (outcome.status, outcome.out.count("nothing to accept")) == (0, 1)


# What is made again before it is accepted


def test_one_of_those_that_changed_alike_is_made_again_first(own: Any, log: Path, dmdpipe: Callable[..., Any]) -> None:
    students = sorted(path.parent for path in own.results.glob("students/*/manifest.json"))
    assert len(students) == 2
    for folder in students:
        pretend_older_code(folder)
    (group,) = alike(everything(own))
    assert [artifact.path for artifact in group] == students
    outcome = dmdpipe("audit", "accept", str(own.results / "students"), "--reason", "a name", "--seed", "3")
    assert outcome.status == 0 and len(log.read_text().splitlines()) == 2
    first, *_ = outcome.out.splitlines()
    assert (
        first.startswith("1/1 made again (seed 3): students/") and ": reproduced bitwise (code: distill/dmd.py" in first
    )
    assert alike(everything(own)) == []


def test_what_changed_elsewhere_is_another_group(own: Any) -> None:
    make_again(own, "teachers")
    pretend_older_code(own.folder("students"))
    assert [[artifact.path for artifact in group] for group in alike(everything(own))] == [[own.folder("students")]]


def test_a_change_that_alters_bytes_is_not_accepted(own: Any, log: Path, dmdpipe: Callable[..., Any]) -> None:
    """The recorded history is one that today's code does not make. Nobody's word is taken for that."""
    folder = own.folder("students")
    plant(folder, "history.parquet", (folder / "history.parquet").read_bytes() + b"\n")
    pretend_older_code(folder)
    outcome = dmdpipe("audit", "accept", str(folder), "--reason", "cosmetic")
    assert outcome.status == 1 and not log.exists()
    told, refused = outcome.out.splitlines()
    assert "differs: file history.parquet" in told
    assert refused == f"not accepted for students/{folder.name}: their code gives other bytes, or none"
    outcome = dmdpipe("audit", "accept", str(folder), "--reason", "cosmetic", "--unchecked")
    assert outcome.status == 0 and len(log.read_text().splitlines()) == 1


def test_a_step_that_cannot_be_made_again_is_not_accepted(own: Any, log: Path, dmdpipe: Callable[..., Any]) -> None:
    folder = own.folder("students")
    pretend_older_code(folder)
    shutil.rmtree(own.results / next(iter(parents(own.artifact("students")))))
    outcome = dmdpipe("audit", "accept", str(folder), "--reason", "cosmetic")
    assert outcome.status == 1 and not log.exists() and "not accepted for students/" in outcome.out
