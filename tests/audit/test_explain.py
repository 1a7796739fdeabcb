"""Lineages: what they name, and why a step would run again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import pretend_older_code

from dmdpipe.audit.accepted import accept, read_acceptances
from dmdpipe.audit.differences import code_differences, spec_differences
from dmdpipe.audit.explain import Explanation, explain_artifact, explanation_text
from dmdpipe.audit.tree import read_artifact
from dmdpipe.audit.verify import verify_tree
from dmdpipe.errors import UserError


@pytest.fixture
def own(own_tree: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(own_tree.checkout)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return own_tree


def everything(step: Explanation) -> dict[str, Explanation]:
    found = {step.folder: step}
    for parent in step.parents.values():
        found |= everything(parent)
    return found


def test_a_lineage_goes_down_to_data_and_noise(own: Any) -> None:
    explanation = explain_artifact(own.artifact("studies"))
    steps = everything(explanation)
    assert {folder.partition("/")[0] for folder in steps} == {
        *("studies", "metrics", "pairs", "students", "teacher_samples", "teachers", "noise", "data"),
    }
    assert len(steps) == 15
    assert not any(step.would_run for step in steps.values())
    for folder, step in steps.items():
        facts = json.loads((own.results / folder / "run.json").read_text())
        assert step.run == facts and step.seeds is not None
    student = next(step for folder, step in steps.items() if folder.startswith("students/"))
    assert student.parameters["generator_steps"] == 5
    assert not any(key.startswith("teacher") for key in student.parameters)
    text = explanation_text(explanation)
    assert all(folder in text for folder in steps)
    assert text.count("environment ") >= len(steps) and "Python 3." in text


def test_a_change_of_the_configuration_is_named(own: Any) -> None:
    scale = own.checkout / "config/scales/tiny.yaml"
    scale.write_text(scale.read_text().replace("score.steps: 20", "score.steps: 30"))
    explanation = explain_artifact(own.artifact("students"))
    said, *differences = explanation.would_run
    assert said.startswith("no study asks for it today; instead students/")
    assert differences == ["teacher.score.steps: 20 → 30"]
    assert "score.steps: 20 → 30" in explanation_text(explanation)


def test_a_change_of_the_code_is_named_and_can_be_accepted(own: Any) -> None:
    folder = own.folder("students")
    pretend_older_code(folder)
    child = sorted(own.results.glob("pairs/*/manifest.json"))[0]
    assert explain_artifact(own.artifact("students")).would_run == ("code: distill/dmd.py::dm_gradient changed",)
    assert {problem.kind for problem in verify_tree(own.results).problems} == {"stale code", "stale parent"}
    (entry,) = accept([own.artifact("students")], "a  renamed\nvariable").entries
    assert (entry.step, entry.reason) == (own.artifact("students").folder, "a renamed variable")
    assert entry.changes == ("code: distill/dmd.py::dm_gradient changed",)
    explanation = explain_artifact(own.artifact("students"))
    assert explanation.would_run == () and "a renamed variable" in explanation.accepted
    assert "a renamed variable" in " ".join(explanation_text(explanation).replace("│", "").split())
    audit = verify_tree(own.results)
    assert any("a renamed variable" in note.said for note in audit.notes)
    # The forged child's parent really is another making; accepting code does not hide that.
    assert {problem.kind for problem in audit.problems} == {"stale parent"} and child.exists()
    assert accept([own.artifact("students")], "again").entries == ()
    assert accept([own.artifact("metrics")], "nothing has changed there").entries == ()


def test_an_acceptance_holds_for_one_state_of_the_code_only(own: Any) -> None:
    pretend_older_code(own.folder("students"))
    (entry,) = accept([own.artifact("students")], "why").entries
    known = read_acceptances(own.results)
    assert known.find(entry.step, entry.made_by, entry.accepted) == entry
    assert known.find(entry.step, entry.made_by, "1" * 16) is None
    assert known.find(entry.step, "1" * 16, entry.accepted) is None
    assert known.find("students/other", entry.made_by, entry.accepted) is None


@pytest.fixture
def log(own: Any) -> Path:
    """Three entries."""
    for path in sorted(own.results.glob("students/*/manifest.json")):
        pretend_older_code(path.parent)
    pretend = [own.artifact("students")]
    accept(pretend, "one")
    from dmdpipe.audit.tree import read_artifact

    accept([read_artifact(path) for path in sorted(own.results.glob("students/*/manifest.json"))], "two")
    path = own.results / "audit/accepted.jsonl"
    assert len(path.read_text().splitlines()) == 2
    return Path(path)


@pytest.mark.parametrize(
    "forge",
    [
        lambda lines: [lines[0].replace('"one"', '"fine"'), lines[1]],
        lambda lines: [lines[1]],
        lambda lines: [lines[1], lines[0]],
        lambda lines: [lines[0], lines[0]],
        lambda lines: [lines[0], "{}"],
        lambda lines: [lines[0], "nonsense"],
    ],
)
def test_a_forged_log_of_accepted_changes_is_refused_and_reported(own: Any, log: Path, forge: Any) -> None:
    log.write_text("\n".join(forge(log.read_text().splitlines())) + "\n")
    with pytest.raises(UserError, match="accepted.jsonl line"):
        read_acceptances(own.results)
    problems = verify_tree(own.results).problems
    assert ("tampered", "audit/accepted.jsonl") in {(str(problem.kind), problem.where) for problem in problems}
    before = log.read_text()
    with pytest.raises(UserError, match="accepted.jsonl line"):
        accept([own.artifact("students")], "more")
    assert log.read_text() == before


def test_an_entry_cut_off_the_end_accepts_nothing(own: Any, log: Path) -> None:
    accepted = [entry.step for entry in read_acceptances(own.results).entries]
    log.write_text(log.read_text().splitlines()[0] + "\n")
    stale = {problem.where for problem in verify_tree(own.results).problems if problem.kind == "stale code"}
    assert stale == {accepted[1]}


def test_a_change_is_not_accepted_without_a_reason(own: Any) -> None:
    pretend_older_code(own.folder("students"))
    with pytest.raises(UserError, match="--reason: is empty"):
        accept([own.artifact("students")], " ")
    assert not (own.results / "audit").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ["a.b: 1 → 2"]),
        ({"a": [1, 2]}, {"a": [1]}, ["a.1: 2 → (absent)"]),
        ({"a": None}, {"a": {}}, ["a: None → {}"]),
        ({"a": 1, "b": 2}, {"b": 2}, ["a: 1 → (absent)"]),
        ({}, {"a": 1}, [": {} → (absent)", "a: (absent) → 1"]),
        ({"a": 1.0}, {"a": 1.0}, []),
    ],
)
def test_differences_of_specs_are_named_leaf_by_leaf(old: Any, new: Any, said: list[str]) -> None:
    assert spec_differences(old, new) == said


def test_differences_of_code_are_named_by_file_and_definition() -> None:
    old = {"dmdpipe.a.b": {"f": "1", "g": "1", "(module)": "1"}, "dmdpipe.gone": {"f": "1"}}
    new = {"dmdpipe.a.b": {"f": "2", "h": "1", "(module)": "1"}, "workflow.scripts.x": {"(module)": "1"}}
    assert code_differences(old, new) == [
        "code: a/b.py::f changed",
        "code: a/b.py::g removed",
        "code: a/b.py::h added",
        "code: gone.py is no longer used",
        "code: workflow/scripts/x.py is now used",
    ]


def test_two_writers_of_the_log_at_once_leave_it_whole(own: Any) -> None:
    folders = [path.parent for path in sorted(own.results.glob("students/*/manifest.json"))]
    for folder in folders:
        pretend_older_code(folder)
    program = (
        "import sys; from pathlib import Path; from dmdpipe.audit.accepted import accept; "
        "from dmdpipe.audit.tree import read_artifact; accept([read_artifact(Path(sys.argv[1]))], 'at once')"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(folder)]) for folder in folders]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(read_acceptances(own.results).entries) == 2


def test_of_several_steps_all_are_accepted_or_none(own: Any) -> None:
    pretend_older_code(own.folder("students"))
    student, metrics = own.artifact("students"), own.artifact("metrics")
    metrics.manifest.result.spec["unknown"] = 1
    with pytest.raises(UserError, match="unknown"):
        accept([student, metrics], "why")
    assert read_acceptances(own.results).entries == ()


def test_a_user_without_a_name_can_accept(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    pretend_older_code(own.folder("students"))
    (entry,) = accept([own.artifact("students")], "why").entries
    assert entry.who.startswith(f"{os.getuid()}@")


def test_what_a_file_says_cannot_steer_the_terminal(own: Any) -> None:
    path = own.folder("studies") / "run.json"
    path.write_text(path.read_text().replace('"host": "', '"host": "\\u001b[2J'))
    text = explanation_text(explain_artifact(own.artifact("studies")))
    assert "[2J" in text and all(line.isprintable() for line in text.splitlines())


def test_a_file_that_nobody_made_has_no_lineage(own: Any) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_artifact(own.folder("studies") / "nosuch.png")


def test_a_file_in_the_place_of_the_logs_folder_is_named(own: Any) -> None:
    pretend_older_code(own.folder("students"))
    (own.results / "audit").touch()
    with pytest.raises(UserError, match="is no folder"):
        accept([own.artifact("students")], "why")


def test_who_made_a_step_is_told(own: Any) -> None:
    assert re.search(r"made \S+ by \S+ on \S+ in", explanation_text(explain_artifact(own.artifact("studies"))))
