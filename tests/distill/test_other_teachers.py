"""Students that start with another teacher's weights: whose weights, which steps, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dmdpipe.artifacts.plan import PlannedStep, plan
from dmdpipe.artifacts.step import run_step
from dmdpipe.artifacts.tensors import decode_tensors
from dmdpipe.distill.ensemble import check
from dmdpipe.errors import UserError
from dmdpipe.specs.grid import Member, expand
from dmdpipe.specs.student import Init, StudentSpec
from dmdpipe.specs.study import Scale, Study

BASE: dict[str, Any] = {
    "data.family": "digits",
    "data.side": 2,
    "data.n_train": 200,
    "data.n_held_out": 20,
    "score.steps": 6,
    "score.network.width": 8,
    "score.network.depth": 1,
    "student.generator_steps": 2,
    "student.snapshots": 3,
    "student.batch": 8,
}


def other(**source: Any) -> dict[str, Any]:
    return {"student.init.kind": "other-teacher", "student.init.source": source}


def members(base: dict[str, Any] | None = None, **axes: Any) -> list[Member]:
    declared = Study.model_validate(
        {"number": 0, "title": "t", "question": "q", "prediction": "p", "base": {**BASE, **(base or {})}, "axes": axes}
    )
    return expand("mine", declared, "tiny", Scale(title="t", seeds=1, first_seed=3))


def student(base: dict[str, Any]) -> StudentSpec:
    (member,) = members(base)
    return member.spec.pairs.student


def made(step: PlannedStep, results: Path) -> dict[str, Any]:
    for parent in step.parents.values():
        if not (results / parent.folder / "manifest.json").exists():
            made(parent, results)
    if not (results / step.folder / "manifest.json").exists():
        run_step(step.canonical(), results)
    files = sorted((results / step.folder).glob("*.safetensors"))
    return decode_tensors(files[0].read_bytes(), str(files[0]))


MIXTURE = {"family": "mixture", "dim": 4, "n_train": 200, "n_held_out": 20}


@pytest.mark.parametrize("source", [{"steps": 2}, {"seed_offset": 4}, {"half": "second"}, {"data": MIXTURE}], ids=str)
def test_the_first_weights_are_the_other_teachers_to_the_byte(source: dict[str, Any], tmp_path: Path) -> None:
    base = {"data.half": "first"} if "half" in source else {}
    spec = student({**base, **other(**source)})
    assert spec.start and spec.start != spec.teacher
    step = plan("student", spec)
    snapshots = made(step, tmp_path)
    start, own = (made(step.parents[role], tmp_path) for role in ("start", "teacher"))
    first = {name.removeprefix("generator.network."): value[0] for name, value in snapshots.items()}
    assert start.keys() < first.keys()
    assert all(first[name].tobytes() == value.tobytes() for name, value in start.items())
    assert any(first[name].tobytes() != value.tobytes() for name, value in own.items())


def test_the_score_and_the_fake_score_are_the_students_own_teachers(tmp_path: Path) -> None:
    """Two students with one start part at once if their scores differ."""
    a, b = (student({"score.steps": steps, **other(steps=2)}) for steps in (6, 12))
    assert a.start == b.start
    first, second = (made(plan("student", spec), tmp_path) for spec in (a, b))
    names = [name for name in first if name != "generator_step"]
    assert all((first[name][0] == second[name][0]).all() for name in names)
    assert any((first[name][-1] != second[name][-1]).any() for name in names)


def test_a_square_of_starts_and_scores_trains_each_teacher_once() -> None:
    steps = ("2", "6")
    found = members(
        start={number: other(steps=int(number)) for number in steps},
        score={number: {"score.steps": int(number)} for number in steps},
    )
    specs = {member.point: member.spec.pairs.student for member in found}
    kinds = {point: spec.init.kind for point, spec in specs.items()}
    assert kinds == {
        "start=2, score=2": "teacher",
        "start=2, score=6": "other-teacher",
        "start=6, score=2": "other-teacher",
        "start=6, score=6": "teacher",
    }
    planned = [plan("student", spec) for spec in specs.values()]
    teachers = {parent.folder for step in planned for parent in step.parents.values() if parent.stage == "teacher"}
    assert len(teachers) == 2
    assert len({step.folder for step in planned}) == 4


def test_a_start_that_is_the_students_own_teacher_is_the_usual_student() -> None:
    usual = student({})
    assert student(other(steps=6)) == usual
    assert student({"data.half": "first", **other(half="first")}) == student({"data.half": "first"})
    assert set(plan("student", usual).parents) == {"teacher", "data"}


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"student.init.kind": "other-teacher"}, "give a source to the kind 'other-teacher', and to no other"),
        ({"student.init.source.steps": 2}, "give a source to the kind 'other-teacher', and to no other"),
        (other(steps=0), "student.init.source.steps"),
        (other(seed_offset=-1), "student.init.source.seed_offset"),
        (other(half="third"), "student.init.source.half"),
        (other(step=3), "did you mean 'steps'"),
        (other(data={"family": "mixture", "dim": 5}), "start must have data of the same dimension"),
        (other(data={"family": "mixtures"}), "student.init.source.data"),
        (other(data=MIXTURE, half="first"), "data of the family 'mixture' have no halves"),
        ({**other(steps="../../etc/passwd")}, "student.init.source.steps"),
        ({"data": {"family": "moons"}, **other(half="first")}, "data of the family 'moons' have no halves"),
        ({"data": {"family": "ring"}, "score": {"kind": "exact"}, "student.network.kind": "mlp", **other(steps=2)},
         "an exact teacher has no steps, seed or data to change"),
        ({"student.network.width": 16, **other(steps=2)}, "start must be trained, on the same network"),
        ({"data": {"family": "moons"}, "score.samples": "fresh"}, "the distribution of 'moons' is not known"),
        ({"data.half": "third"}, "data.half"),
        ({"data.n_images": 0}, "data.n_images"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(base: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        student(base)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_spec_cannot_say_one_thing_and_hold_another() -> None:
    usual = student({})
    spec = student(other(steps=2))
    for fields, message in (
        ({"start": spec.start}, "give both or neither"),
        ({"init": Init(kind="other-teacher")}, "give both or neither"),
        ({"init": Init(kind="other-teacher"), "start": usual.teacher}, "that is init.kind 'teacher'"),
        ({"init": Init(kind="other-teacher"), "start": student({"data.side": 4}).teacher}, "same dimension"),
    ):
        with pytest.raises(ValueError, match=message):
            StudentSpec.model_validate({**usual.model_dump(), **{k: v.model_dump() for k, v in fields.items()}})


def test_an_ensemble_refuses_other_teachers() -> None:
    with pytest.raises(ValueError, match="start with their own teachers' weights"):
        check([student(other(steps=2))])
