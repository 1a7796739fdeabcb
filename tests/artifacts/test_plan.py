"""The stages, their folders and parents, and the orders of planned steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product

import pytest

from dmdpipe.artifacts import plan as planning
from dmdpipe.artifacts.code import own_sources
from dmdpipe.artifacts.plan import PlannedStep, plan, read_order
from dmdpipe.artifacts.stages import FIGURE_MODULES, STAGES, find_stage
from dmdpipe.errors import UserError
from dmdpipe.specs.data import FAMILIES, Digits, Gaussian, dimension
from dmdpipe.specs.diffusion import ExactScore, NoiseBankSpec, TeacherSamplesSpec, TeacherSpec, TrainedScore
from dmdpipe.specs.network import Linear
from dmdpipe.specs.pairs import MetricsSpec, PairsSpec
from dmdpipe.specs.student import Init, Recipe, StudentSpec


def metrics_of(teacher: TeacherSpec, **student: object) -> MetricsSpec:
    bank = NoiseBankSpec(dim=dimension(teacher.data))
    return MetricsSpec(
        pairs=PairsSpec(
            student=StudentSpec(teacher=teacher, **student),
            teacher_samples=TeacherSamplesSpec(teacher=teacher, bank=bank),
        )
    )


DIGITS = metrics_of(TeacherSpec(data=Digits()), seed=3)
LINEAR = metrics_of(TeacherSpec(data=Gaussian(), score=ExactScore()), network=Linear(), recipe={"fake": "oracle"})


def everything_before(step: PlannedStep) -> Iterator[PlannedStep]:
    yield step
    for parent in step.parents.values():
        yield from everything_before(parent)


@pytest.mark.parametrize(
    ("stage", "spec", "folder"),
    [
        ("data", Digits(), "data/digits-8x8-"),
        ("noise", NoiseBankSpec(dim=64, seed=1), "noise/d64_seed1-"),
        ("teacher", DIGITS.pairs.student.teacher, "teachers/digits-8x8_mlp-64x3_seed0-"),
        ("teacher", LINEAR.pairs.student.teacher, "teachers/gaussian-16_exact-"),
        (
            "teacher_samples",
            DIGITS.pairs.teacher_samples,
            "teacher_samples/digits-8x8_mlp-64x3_seed0_heun64-",
        ),
        ("student", DIGITS.pairs.student, "students/digits-8x8_teacher_dmd2_sigma80_seed3-"),
        ("pairs", DIGITS.pairs, "pairs/digits-8x8_teacher_dmd2_sigma80_seed3-"),
        ("metrics", DIGITS, "metrics/digits-8x8_teacher_dmd2_sigma80_seed3-"),
    ],
)
def test_folders_are_readable_and_end_in_the_digest(stage: str, spec: object, folder: str) -> None:
    step = plan(stage, spec)
    assert step.folder == folder + step.digest
    assert len(step.digest) == 16


def test_every_parent_of_a_stage_is_there_and_hangs_together() -> None:
    for step in everything_before(plan("metrics", DIGITS)):
        for parent in step.parents.values():
            assert isinstance(parent.stage, str)
            assert json.dumps(parent.spec.model_dump(mode="json"), sort_keys=True) in json.dumps(
                step.spec.model_dump(mode="json"), sort_keys=True
            ), f"{step.stage} does not nest the spec of its parent {parent.stage}"
    stages = {step.stage for step in everything_before(plan("metrics", DIGITS))}
    assert stages == {"data", "noise", "teacher", "teacher_samples", "student", "pairs", "metrics"}


def test_what_trains_on_a_gpu_has_folders_and_a_promise_of_its_own() -> None:
    spec = DIGITS.pairs.student
    teacher = spec.teacher.model_copy(update={"score": spec.teacher.score.model_copy(update={"device": "cuda"})})
    there = {"teacher": teacher, "student": spec.model_copy(update={"device": "cuda"})}
    for stage, here in (("teacher", spec.teacher), ("student", spec)):
        found = find_stage(stage)
        assert found.path(there[stage]) != found.path(here)
        promises = [found.equality_of(one) for one in (here, there[stage])]
        assert promises[0] == found.equality
        assert promises[1].kind == "statistical" and "GPU" in promises[1].reason and promises[1] != promises[0]
    assert find_stage("teacher").equality_of(LINEAR.pairs.student.teacher) == find_stage("teacher").equality
    assert find_stage("pairs").equality_of(DIGITS.pairs).kind == "tolerance"


def test_only_trainings_in_bfloat16_reach_its_code() -> None:
    spec = DIGITS.pairs.student
    score = spec.teacher.score.model_copy(update={"precision": "bf16"})
    half = {
        "teacher": spec.teacher.model_copy(update={"score": score}),
        "student": spec.model_copy(update={"precision": "bf16"}),
    }
    for stage, full in (("teacher", spec.teacher), ("student", spec)):
        code, other = (plan(stage, one).code.modules for one in (half[stage], full))
        assert code.keys() - other.keys() == {"dmdpipe.networks.bf16"}
    samples = DIGITS.pairs.teacher_samples.model_copy(update={"teacher": half["teacher"]})
    assert "dmdpipe.networks.bf16" not in plan("teacher_samples", samples).code.modules


def test_parents_are_shared() -> None:
    other = metrics_of(TeacherSpec(data=Digits()), seed=4)
    assert plan("metrics", DIGITS).parents["data"] is plan("metrics", other).parents["data"]
    assert plan("metrics", DIGITS).parents["pairs"].digest != plan("metrics", other).parents["pairs"].digest


def test_an_order_comes_back_with_the_same_digest() -> None:
    for step, text in ((step, step.canonical()) for step in everything_before(plan("metrics", LINEAR))):
        order = read_order(text)
        stage = find_stage(order.stage)
        assert stage.parse(order.spec) == step.spec
        assert stage.path(stage.parse(order.spec)) == step.folder
        assert order.code == step.code_digest
        assert {role: p.folder for role, p in order.parents.items()} == {
            role: parent.folder for role, parent in step.parents.items()
        }


def test_the_code_of_a_step_is_that_of_what_its_spec_selects() -> None:
    digits, gaussian = plan("data", Digits()), plan("data", Gaussian())
    assert "dmdpipe.data.digits" in digits.code.modules
    assert "dmdpipe.data.gaussian" not in digits.code.modules
    assert "dmdpipe.data.gaussian" in gaussian.code.modules
    teacher = plan("teacher", DIGITS.pairs.student.teacher)
    assert "dmdpipe.networks.mlp" in teacher.code.modules
    assert not {"dmdpipe.networks.linear", "dmdpipe.data.digits"} & set(teacher.code.modules)
    linear = plan("student", LINEAR.pairs.student)
    assert {"dmdpipe.networks.linear", "dmdpipe.diffusion.exact"} <= set(linear.code.modules)
    assert "dmdpipe.networks.mlp" not in linear.code.modules


def test_a_loss_term_and_a_start_are_the_code_of_the_students_that_use_them_alone() -> None:
    usual = DIGITS.pairs.student
    terms = {f"dmdpipe.distill.{term}" for term in ("dmd", "oracle", "regression")}
    regressed = usual.model_copy(update={"recipe": Recipe(name="dmd2", regression_weight=0.25)})
    distilled = usual.model_copy(update={"recipe": Recipe(name="regression")})
    turned = usual.model_copy(update={"init": Init(kind="kd-rotated")})
    longer = usual.teacher.score.model_copy(update={"steps": 99})
    other = usual.teacher.model_copy(update={"score": longer})
    elsewhere = usual.model_copy(update={"init": Init(kind="other-teacher"), "start": other})
    assert plan("student", elsewhere).parents["start"] is plan("teacher", other)
    for spec, used in (
        (usual, {"dmd"}),
        (regressed, {"dmd", "regression"}),
        (distilled, {"regression"}),
        (turned, {"dmd", "regression"}),
        *((usual.model_copy(update={"init": Init(kind=k)}), {"dmd", "regression"}) for k in ("kd", "kd-one-step")),
        (elsewhere, {"dmd"}),
        (LINEAR.pairs.student, {"dmd", "oracle"}),
    ):
        assert terms & set(plan("student", spec).code.modules) == {f"dmdpipe.distill.{term}" for term in used}
    assert not terms & set(plan("pairs", DIGITS.pairs).code.modules)


def test_every_entry_and_every_module_that_a_spec_can_select_exists() -> None:
    for family in FAMILIES.values():
        assert plan("data", family()).code_digest
    for spec, stage in product((DIGITS, LINEAR), STAGES.values()):
        for step in everything_before(plan("metrics", spec)):
            if step.stage == stage.name:
                assert own_sources().reach(stage.entry.partition(":")[0]).modules.items() <= step.code.modules.items()


def test_an_edit_upstream_changes_the_orders_of_all_below_and_of_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def steps() -> dict[str, PlannedStep]:
        teacher = TeacherSpec(data=Digits(), score=TrainedScore(seed=11))
        plan.cache_clear()
        return {step.stage: step for step in everything_before(plan("metrics", metrics_of(teacher)))}

    before = {stage: step.canonical() for stage, step in steps().items()}
    definitions = dict(own_sources()._definitions)
    monkeypatch.setattr(own_sources(), "_codes", {})
    edited = {"dmdpipe.diffusion.training": {"train_teacher": "0" * 16}}
    monkeypatch.setattr(own_sources(), "_definitions", definitions | edited)
    after = {stage: step.canonical() for stage, step in steps().items()}
    plan.cache_clear()
    changed = {stage for stage in before if before[stage] != after[stage]}
    assert changed >= {"teacher", "student", "teacher_samples", "pairs", "metrics"}
    assert not changed & {"data", "noise"}


def test_explicit_parents_replace_the_derived_ones() -> None:
    data = plan("data", Digits())
    step = PlannedStep("noise", NoiseBankSpec(dim=2), parents={"some": data})
    assert read_order(step.canonical()).parents["some"].digest == data.digest
    assert step.provenance != plan("noise", NoiseBankSpec(dim=2)).provenance


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "order"),
        ("{}", "stage: Field required"),
        ('{"stage":"noise","spec":{},"code":"0","parents":{}}', "code: String should match"),
        (
            '{"stage":"noise","spec":{},"code":"0123456789abcdef","parents":{"x":{"folder":"../x",'
            '"digest":"0123456789abcdef","code":"0123456789abcdef"}}}',
            r"parents.x.folder: .*without '\.\.'",
        ),
    ],
)
def test_orders_that_are_none_are_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_order(text)


def test_unknown_stages_and_specs_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'teacher'"):
        planning.find_stage("teachr")
    with pytest.raises(UserError, match="noise step: dim: Input should be greater than 0"):
        find_stage("noise").parse({"dim": 0})


@pytest.mark.parametrize("stage", ["metrics", "evidence", "verdicts", "figures"])
def test_what_measures_tabulates_and_draws_can_reach_no_torch(stage: str) -> None:
    """Not within any function either: such a step must start soon, also without a server that forks it."""
    entry = STAGES[stage].entry.partition(":")[0]
    modules = {f"dmdpipe.figures.{module}" for module in FIGURE_MODULES} if stage == "figures" else set()
    libraries = own_sources().reach(entry, *modules).libraries
    assert "pandas" in libraries and "torch" not in libraries
