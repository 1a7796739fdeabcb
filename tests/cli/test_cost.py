"""What a cluster is asked for: more for larger steps and later attempts, a GPU only where a spec trains on one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from dmdpipe.artifacts.dag import plan_run, plan_study, steps_below
from dmdpipe.artifacts.plan import PlannedStep, plan
from dmdpipe.bench.training import student_spec
from dmdpipe.cost import (
    estimated_mebibytes,
    estimated_seconds,
    mebibytes_on_a_gpu,
    megabytes_to_ask_for,
    minutes_to_ask_for,
    runs_on_gpu,
    takes_much_of_a_gpu,
)
from dmdpipe.specs.config import members_of, study_names
from dmdpipe.specs.data import dimension
from dmdpipe.specs.diffusion import TeacherSamplesSpec, TeacherSpec
from dmdpipe.specs.pairs import MetricsSpec
from dmdpipe.specs.student import Members, obstacle_to_members

SMALL: dict[str, Any] = {
    "data": {"family": "digits", "side": 2},
    "score": {"kind": "trained", "network": {"kind": "mlp", "width": 16, "depth": 1}},
}


def steps_of(**student: Any) -> dict[str, PlannedStep]:
    """The steps below one metrics step, by stage."""
    teacher = student.pop("teacher", SMALL)
    spec = {
        "pairs": {
            "student": {"teacher": teacher, "network": {"kind": "mlp", "width": 16, "depth": 1}, **student},
            "teacher_samples": {"teacher": teacher, "bank": {"dim": 4}},
        }
    }
    found: dict[str, PlannedStep] = {}

    def visit(step: PlannedStep) -> None:
        found[step.stage] = step
        for parent in step.parents.values():
            visit(parent)

    visit(plan("metrics", MetricsSpec.model_validate(spec)))
    return found


def test_a_gpu_is_for_the_training_whose_spec_says_so_and_no_other_step() -> None:
    assert not any(runs_on_gpu(step) for step in steps_of().values())
    on_gpu = steps_of(device="cuda")
    assert [stage for stage, step in on_gpu.items() if runs_on_gpu(step)] == ["student"]
    teacher = {**SMALL, "score": {**SMALL["score"], "device": "cuda"}}
    assert [stage for stage, step in steps_of(teacher=teacher).items() if runs_on_gpu(step)] == ["teacher"]
    sampling = {"teacher": TeacherSpec.model_validate(SMALL), "bank": {"dim": 4}, "sampler": {"device": "cuda"}}
    assert runs_on_gpu(plan("teacher_samples", TeacherSamplesSpec.model_validate(sampling)))
    exact = {"data": {"family": "gaussian", "dim": 4}, "score": {"kind": "exact"}}
    assert not runs_on_gpu(plan("teacher", TeacherSpec.model_validate(exact)))


@pytest.mark.parametrize(
    ("of_teacher", "of_student", "counted"),
    [
        ("unet", "unet", ["teacher", "teacher_samples", "student", "pairs"]),
        ("unet", "mlp", ["teacher", "teacher_samples", "student", "pairs"]),  # its teacher computes beside it
        ("mlp", "unet", ["student", "pairs"]),
        ("mlp", "mlp", []),
    ],
)
def test_steps_in_which_a_unet_computes_on_a_gpu_are_counted(
    of_teacher: str, of_student: str, counted: list[str]
) -> None:
    for device in ("cuda", "cpu"):
        networks = {"unet": {"kind": "unet", "channels": 8}, "mlp": {"kind": "mlp", "width": 16}}
        score = {"kind": "trained", "network": networks[of_teacher], "device": device}
        teacher = {"data": {"family": "digits", "side": 4}, "score": score}
        start = {"kind": "teacher" if of_teacher == of_student else "edm-default"}
        student = {"teacher": teacher, "network": networks[of_student], "device": device, "init": start}
        samples = {"teacher": teacher, "bank": {"dim": 16}, "sampler": {"device": device}}
        below = steps_below(
            plan("metrics", MetricsSpec.model_validate({"pairs": {"student": student, "teacher_samples": samples}}))
        )
        found = {step.stage for step in below if takes_much_of_a_gpu(step)}
        assert found == set(counted if device == "cuda" else [])


@pytest.mark.parametrize(
    ("width", "members", "measured"), [(64, 128, 980), (64, 512, 2928), (256, 64, 2146), (256, 128, 3920)]
)
def test_an_ensemble_takes_of_a_card_what_it_took_on_one(width: int, members: int, measured: int) -> None:
    """MiB on an H200 (docs/benchmarks.md)."""
    student = student_spec(width=width, dim=64, batch=256, steps=2_000)
    of_one = student.model_copy(update={"members": Members(seeds=tuple(range(members)))})
    assert mebibytes_on_a_gpu(of_one) == pytest.approx(measured, rel=0.1)
    for device in ("cuda", "cpu"):
        step = plan("ensemble", of_one.model_copy(update={"device": device}))
        assert takes_much_of_a_gpu(step) == (device == "cuda" and measured > 2_000)


def test_at_the_scale_gpu_students_train_by_the_hundred_and_ensembles_leave_room_on_a_card() -> None:
    for study in study_names():
        students = {member.point: member.spec.pairs.student for member in members_of(study, "gpu")}
        together = [student for student in students.values() if student.members]
        others = [student for student in students.values() if not obstacle_to_members(student)]
        assert len(together) == len(others)
        for student in together:
            assert len(student.members.seeds) == (32 if dimension(student.teacher.data) == 4_096 else 128)
            assert student.device == "cuda" and student.network.kind == "mlp"
            assert mebibytes_on_a_gpu(student) < 16_000  # of the 80,000 of an H100


def test_a_time_limit_leaves_room_and_grows_with_the_training_and_the_attempt() -> None:
    short, long = steps_of(generator_steps=100)["student"], steps_of(generator_steps=1_000_000)["student"]
    for step in (short, long):
        limits = [minutes_to_ask_for(step, attempt) for attempt in (1, 2, 3)]
        assert limits == [limits[0], 2 * limits[0], 3 * limits[0]]
        assert 60 * limits[0] >= 600 + 4 * estimated_seconds(step)
    assert minutes_to_ask_for(long, 1) > 3 * minutes_to_ask_for(short, 1)


@pytest.mark.parametrize("stage", ["student", "pairs", "metrics"])
def test_memory_grows_with_the_snapshots_by_what_they_hold_and_doubles_with_the_attempt(stage: str) -> None:
    few, many = (steps_of(snapshots=snapshots, generator_steps=50_000)[stage] for snapshots in (100, 20_100))
    numbers = 16 * (8 + 16 + 32) if stage == "student" else 4 * 1_000
    more = estimated_mebibytes(many) - estimated_mebibytes(few)
    assert 2 <= more / (20_000 * numbers * 4 / 2**20) <= 10  # times what float32 takes
    assert 1_000 <= estimated_mebibytes(few) <= 2_500  # a step of a laptop run peaks at 390, beside two Snakemakes
    assert [megabytes_to_ask_for(few, attempt) for attempt in (1, 2, 3)] == [
        times * estimated_mebibytes(few) for times in (1, 2, 4)
    ]


def test_particles_take_the_memory_of_their_places_since_they_have_no_weights() -> None:
    network = {"kind": "particles", "count": 500_000}
    particles = steps_of(network=network, bank={"dim": 4}, snapshots=100, generator_steps=200)["student"]
    assert estimated_mebibytes(particles) > 1_500 + 2 * 100 * 500_000 * 4 * 4 / 2**20


def test_a_unets_steps_take_as_long_as_its_products_and_less_on_a_gpu() -> None:
    """28×28 against 14×14: four times the products in training and in sampling, besides what does not grow."""

    def seconds(side: int, device: str) -> dict[str, float]:
        network = {"kind": "unet", "channels": 64}
        score = {"kind": "trained", "network": network, "device": device}
        teacher = {"data": {"family": "fashion", "side": side}, "score": score}
        samples = {"teacher": teacher, "bank": {"dim": side * side}, "sampler": {"device": device}}
        student = {"teacher": teacher, "network": network, "device": device}
        spec = {"pairs": {"student": student, "teacher_samples": samples}}
        below = steps_below(plan("metrics", MetricsSpec.model_validate(spec)))
        return {step.stage: estimated_seconds(step) for step in below}

    large, small, on_gpu = seconds(28, "cpu"), seconds(14, "cpu"), seconds(28, "cuda")
    for stage in ("teacher", "student", "teacher_samples", "pairs"):
        assert 2.5 < large[stage] / small[stage] < 5
        assert on_gpu[stage] < large[stage] / 5


def minutes_on_two_cores(steps: Iterable[PlannedStep]) -> float:
    return sum(map(estimated_seconds, steps)) / 2 / 60


@pytest.mark.parametrize(
    ("study", "label", "stage", "measured"),
    [
        # Seconds on an Intel Xeon (docs/benchmarks.md): of 3,072 coordinates, nothing beside or another student; of a
        # linear student, with another beside it.
        ("photos", "photos-32x32", "student", 141),
        ("photos", "photos-32x32", "teacher_samples", 41),
        ("photos", "photos-32x32", "metrics", 75),
        ("linear_ladder", "gaussian-16_teacher", "student", 3.7),
    ],
)
def test_a_step_takes_less_than_its_estimate_and_more_than_half(
    study: str, label: str, stage: str, measured: float
) -> None:
    steps = steps_below(plan_study(study, "laptop").evidence)
    found = next(step for step in steps if step.stage == stage and label in step.folder)
    assert 1 < estimated_seconds(found) / measured < 2


@pytest.mark.parametrize(("scale", "minutes"), [("smoke", 10), ("laptop", 6 * 60)])
def test_all_studies_together_fit_into_a_break_and_into_a_night(scale: str, minutes: float) -> None:
    """Shared teachers count once. The times are estimates."""
    run = plan_run({"scale": scale, "studies": study_names()})
    assert minutes_on_two_cores(run.steps.values()) < minutes


@pytest.mark.parametrize("study", study_names())
def test_a_study_alone_takes_at_most_three_quarters_of_an_hour_at_laptop_scale(study: str) -> None:
    assert minutes_on_two_cores(steps_below(plan_study(study, "laptop").evidence)) < 45
