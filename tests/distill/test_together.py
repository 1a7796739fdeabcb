"""The steps of students that train together: each is stored as the student that it would have become alone."""

from __future__ import annotations

import signal
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from dmdpipe.artifacts.dag import steps_below
from dmdpipe.artifacts.plan import plan
from dmdpipe.artifacts.step import Step, run_step
from dmdpipe.diffusion import state
from dmdpipe.errors import UserError
from dmdpipe.specs.grid import expand
from dmdpipe.specs.problems import parse
from dmdpipe.specs.student import StudentSpec
from dmdpipe.specs.study import Scale, Study

NETWORK = {"width": 8, "depth": 1, "embedding": 4}
OPTIMISER = {"learning_rate": 1e-3, "warmup": 4}
BASE = {
    "data": {"family": "moons", "n_train": 200, "n_held_out": 50},
    "score.network": NETWORK,
    "score.steps": 20,
    "bank": {"n_paired": 8, "n_held_out": 4, "n_reference_sets": 2},
    "student.batch": 8,
    "student.generator_steps": 7,
    "student.snapshots": 4,
    "student.dtype": "float64",
    "student.recipe": {"generator": OPTIMISER, "fake_score": OPTIMISER},
}
FASTGEN = {"student.recipe.name": "fastgen", "student.recipe.ema": 0.5}
ALONE, TOGETHER = {"student.together": False}, {"student.together": True}
SCALE = Scale(title="three seeds", seeds=3, first_seed=4)


def study(*layers, axes=None):
    base = {key: value for layer in (BASE, *layers) for key, value in layer.items()}
    return Study(number=0, title="t", question="q", prediction="p", base=base, axes=axes or {})


def students(*layers, axes=None, scale=SCALE):
    return [member.spec.pairs.student for member in expand("some", study(*layers, axes=axes), "some", scale)]


def pairs(*layers):
    return [plan("pairs", member.spec.pairs) for member in expand("some", study(*layers), "some", SCALE)]


def made(steps, results):
    for step in {below.folder: below for one in steps for below in steps_below(one)}.values():
        run_step(step.canonical(), results)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("layer", [{}, {"score.seed": 3}, FASTGEN], ids=str)
def test_a_member_is_stored_as_the_student_that_it_is_alone(tmp_path: Path, layer) -> None:
    for kind in (ALONE, TOGETHER):
        made([step.parents["student"] for step in pairs(layer, kind)], tmp_path)
    for one, other in zip(pairs(layer, ALONE), pairs(layer, TOGETHER), strict=True):
        alone, together = (tmp_path / step.parents["student"].folder for step in (one, other))
        assert alone.parent.name == "students" and together.parent.name == "members"
        expected, found = (load_file(folder / "snapshots.safetensors") for folder in (alone, together))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            assert_close(found[name], value, rtol=1e-9, atol=1e-12)
        moved = max(float((value[-1] - value[0]).abs().max()) for name, value in expected.items() if "step" not in name)
        assert moved > 1e-3
        expected, found = (pd.read_parquet(folder / "history.parquet") for folder in (alone, together))
        # Alone, a student is done with its last generator step, without all of the fake score's steps after it.
        pd.testing.assert_frame_equal(found[:-1], expected[:-1], rtol=1e-9)


def test_what_follows_reads_a_member_like_any_student(tmp_path: Path) -> None:
    made(pairs(TOGETHER)[1:2], tmp_path)
    (folder,) = (tmp_path / "pairs").iterdir()
    assert load_file(folder / "pairs.safetensors")["student"].shape == (4, 8, 2)
    assert sum(1 for _ in (tmp_path / "ensembles").iterdir()) == sum(1 for _ in (tmp_path / "members").iterdir()) == 1


def test_a_killed_ensemble_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    ensemble = pairs(TOGETHER)[0].parents["student"].parents["ensemble"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    made([ensemble], whole)
    made(ensemble.parents.values(), killed)
    progress, first = Step.progress, []

    def kill(self, done, total):
        first.append(done)
        if done in (3, 5) and first.count(done) == 1:
            raise KilledError
        progress(self, done, total)

    monkeypatch.setattr(Step, "progress", kill)
    for _ in range(2):
        with pytest.raises(KilledError):
            run_step(ensemble.canonical(), killed)
    run_step(ensemble.canonical(), killed)
    # What is done when it is killed has not been saved yet.
    assert first == [1, 2, 3, 3, 4, 5, 5, 6, 7]
    file = Path(ensemble.folder, "ensemble.safetensors")
    assert (killed / file).read_bytes() == (whole / file).read_bytes()


def test_an_ensemble_that_is_told_to_end_saves_the_step_that_it_was_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = pairs(TOGETHER)[0].parents["student"].parents["ensemble"]
    whole, told = tmp_path / "whole", tmp_path / "told"
    made([ensemble], whole)
    made(ensemble.parents.values(), told)
    reported = []

    def report(self, done, total):
        reported.append(done)
        if reported == [1, 2, 3, 4]:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Step, "progress", report)
    with pytest.raises(SystemExit):
        run_step(ensemble.canonical(), told)
    assert not (told / ensemble.folder).exists()
    run_step(ensemble.canonical(), told)
    assert reported == [1, 2, 3, 4, 5, 6, 7]
    file = Path(ensemble.folder, "ensemble.safetensors")
    assert (told / file).read_bytes() == (whole / file).read_bytes()


def test_every_seed_of_a_point_is_a_member_of_its_ensemble() -> None:
    found = students(TOGETHER, axes={"batch": {"8": {}, "16": {"student.batch": 16}}})
    assert [spec.members.seeds for spec in found] == [(4, 5, 6)] * 6
    assert [spec.seed for spec in found] == [4, 5, 6, 4, 5, 6]
    folders = {plan("member", spec).parents["ensemble"].folder for spec in found}
    assert len(folders) == 2
    ensemble = plan("member", found[1]).parents["ensemble"]
    assert [parent.spec.score.seed for parent in ensemble.parents.values()] == [4, 5, 6]


def test_with_one_teacher_for_all_an_ensemble_has_one() -> None:
    found = students(TOGETHER, {"score.seed": 4})
    assert len({step.folder for step in plan("member", found[2]).parents["ensemble"].parents.values()}) == 1
    assert found[0].members.one_teacher


@pytest.mark.parametrize(
    "layer",
    [
        {"student.recipe.name": "regression"},
        {"student.recipe.name": "dmd2-gan"},
        {"student.init.kind": "kd-rotated"},
        {"student.sampling_steps": 2},
        {"student.network": {"width": 4}, "student.init.kind": "random-head"},
        {"student.recipe.fake_lag": 2},
        {"student.recipe.score_noise": 0.5},
        {"student.init": {"kind": "other-teacher", "source": {"steps": 5}}},
    ],
    ids=str,
)
def test_what_an_ensemble_cannot_do_trains_alone(layer) -> None:
    alone = students(layer, ALONE)
    assert students(layer, TOGETHER) == alone and not any(spec.members for spec in alone)
    given = alone[0].model_dump() | {"members": {"seeds": [4, 5]}}
    with pytest.raises(UserError, match="members: "):
        parse(StudentSpec, given, "here")


@pytest.mark.parametrize("seeds", [[5, 6], [4, 4, 5]])
def test_members_are_named_once_with_the_student_among_them(seeds) -> None:
    given = students()[0].model_dump() | {"members": {"seeds": seeds}}
    with pytest.raises(UserError, match="must name each seed once, 4 among them"):
        parse(StudentSpec, given, "here")


def test_students_that_train_alone_keep_their_digests() -> None:
    """The field is not in the specs of those that were there before it."""
    assert "members" not in students()[0].model_dump()
