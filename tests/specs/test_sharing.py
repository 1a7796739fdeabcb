"""Whose files are whose: equal cells share folders, and a change moves only what it concerns."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from dmdpipe.artifacts.dag import plan_run, plan_study, steps_below
from dmdpipe.artifacts.plan import plan
from dmdpipe.errors import UserError
from dmdpipe.specs.config import members_of, scale_names, study_names

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the configuration in the working directory."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    shutil.copytree(ROOT / "reports", tmp_path / "reports")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config"


def change(path: Path, **keys: object) -> None:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **keys}))


def folders(scale: str) -> set[str]:
    """Everything below the verdicts that is named by a digest, of every study at a scale."""
    steps = (step for name in study_names() for step in steps_below(plan_study(name, scale).evidence))
    return {step.folder for step in steps if step.stage != "evidence"}


def folders_of(study: str, scale: str) -> set[str]:
    return {step.folder for step in steps_below(plan_study(study, scale).evidence) if step.stage != "evidence"}


def test_two_studies_share_the_folders_of_the_cells_that_they_have_in_common(config: Path) -> None:
    shutil.copy(config / "studies" / "dimension.yaml", config / "studies" / "twin.yaml")
    change(config / "studies" / "twin.yaml", number=99, title="another", question="another", prediction="another")
    assert folders_of("twin", "smoke") == folders_of("dimension", "smoke")


def test_the_default_studies_share_their_common_cell(config: Path) -> None:
    ladder, images = folders_of("dimension", "laptop"), folders_of("high_dimension", "laptop")
    common = {step for step in ladder & images if step.startswith("metrics/")}
    assert common == {plan("metrics", m.spec).folder for m in members_of("dimension", "laptop") if "64" in m.point}


def test_of_a_shared_point_every_study_reads_the_same_first_seeds(config: Path) -> None:
    """Whatever their numbers of seeds: the larger study adds to the smaller one's."""
    found = {}
    for name in ("dimension", "sigma_max"):
        members = [m for m in members_of(name, "laptop") if m.labels()["d"] == 4 and m.labels()["sigma_max"] == 80]
        found[name] = {member.seed: plan("metrics", member.spec).folder for member in members}
    assert (list(found["dimension"]), list(found["sigma_max"])) == ([*range(5, 10)], [*range(5, 15)])
    assert found["dimension"].items() < found["sigma_max"].items()


def test_distances_to_named_maps_are_an_addition_to_students_that_other_studies_have(config: Path) -> None:
    geometry, dimension = plan_study("geometry", "laptop"), plan_study("dimension", "laptop")
    students = {folder for folder in folders_of("geometry", "laptop") if folder.startswith("students/digits-8x8")}
    assert len(students) == 5 and students < folders_of("dimension", "laptop")
    assert {cell.maps for cell in geometry.evidence.spec.cells} == {
        folder for folder in geometry.evidence.parents if folder.startswith("maps/")
    }
    assert len({cell.maps for cell in geometry.evidence.spec.cells}) == len(geometry.members)
    # As before there were any: the text of a study without them says nothing of maps.
    assert "maps" not in dimension.evidence.canonical()


def test_a_step_that_studies_share_runs_once(config: Path) -> None:
    run = plan_run({"scale": "laptop"})
    one_by_one = [step for study in run.studies.values() for step in steps_below(study.evidence)]
    assert len({step.folder for step in one_by_one}) < len(one_by_one)
    assert len(run.steps) == len({step.folder for step in one_by_one}) + 1 + len(run.notebooks)
    names = [step.folder for step in run.steps.values()]
    for step in run.steps.values():
        assert all(names.index(parent.folder) < names.index(step.folder) for parent in step.parents.values())


def test_adding_a_seed_keeps_all_other_folders(config: Path) -> None:
    before = folders("smoke")
    scale = config / "scales" / "smoke.yaml"
    change(scale, seeds=yaml.safe_load(scale.read_text())["seeds"] + 1)
    assert before < folders("smoke")


def test_fresh_seeds_share_data_and_noise_and_nothing_that_was_trained(config: Path) -> None:
    # The one study that holds a teacher while its students' seeds change.
    (config / "studies" / "seed_seed.yaml").unlink()
    before = folders("smoke")
    change(config / "scales" / "smoke.yaml", first_seed=2)
    after = folders("smoke")
    kinds = {"data", "noise"}
    # An exact teacher has no seed.
    shared = {folder for folder in before & after if "_exact" not in folder}
    assert {folder.partition("/")[0] for folder in shared} == kinds
    assert len(after) == len(before)


def test_adding_a_study_an_axis_label_or_a_claim_keeps_all_other_folders(config: Path) -> None:
    before = folders("laptop")
    sigma = config / "studies" / "sigma_max.yaml"
    axes = yaml.safe_load(sigma.read_text())["axes"]
    change(sigma, axes={**axes, "sigma_max": {**axes["sigma_max"], "20": {"noise_range.sigma_max": 20.0}}})
    shutil.copy(sigma, config / "studies" / "new.yaml")
    after = folders("laptop")
    assert before < after


def test_a_label_a_title_or_a_question_is_in_no_digest(config: Path) -> None:
    before = folders("smoke")
    dimension = config / "studies" / "dimension.yaml"
    change(
        dimension,
        title="x",
        question="y",
        axes={"size": {"small": {"data.side": 2}, "large": {"data.side": 8}}},
        scales={},
        number=77,
    )
    assert folders("smoke") == before


@pytest.mark.parametrize(("changed", "other"), [("smoke", "laptop"), ("laptop", "smoke")])
def test_changing_one_scale_moves_no_folder_of_another(config: Path, changed: str, other: str) -> None:
    before, others_before = folders(changed), folders(other)
    scale = config / "scales" / f"{changed}.yaml"
    change(scale, set={**yaml.safe_load(scale.read_text())["set"], "student.generator_steps": 3, "score.steps": 3})
    assert folders(other) == others_before
    assert folders(changed) != before


def test_scales_do_not_write_into_each_others_folders(config: Path) -> None:
    runs = {scale: plan_run({"scale": scale}) for scale in scale_names()}
    opened = {
        scale: {step.folder for step in run.steps.values() if step.stage in ("evidence", "verdicts", "figures")}
        for scale, run in runs.items()
    }
    assert not opened["smoke"] & opened["laptop"]


def test_a_longer_student_keeps_teacher_data_and_noise(config: Path) -> None:
    before = folders_of("dimension", "smoke")
    scale = config / "scales" / "smoke.yaml"
    change(scale, set={**yaml.safe_load(scale.read_text())["set"], "student.generator_steps": 61})
    after = folders_of("dimension", "smoke")
    assert {folder.partition("/")[0] for folder in before & after} == {"data", "noise", "teachers", "teacher_samples"}
    assert {folder.partition("/")[0] for folder in after - before} == {"students", "pairs", "metrics"}


def test_no_two_steps_have_one_folder(config: Path) -> None:
    for scale in scale_names():
        steps = [step for name in study_names() for step in steps_below(plan_study(name, scale).evidence)]
        texts = {}
        for step in steps:
            assert texts.setdefault(step.folder, step.canonical()) == step.canonical()


def test_devices_share_the_trainings_that_have_shards_and_must_be_able_to(config: Path) -> None:
    study = config / "studies" / "fashion.yaml"
    study.write_text(
        study.read_text().replace("      score.batch: 256\n", "      score.batch: 256\n      score.shards: 4\n")
    )
    asked = {"scale": "gpu", "studies": ["fashion"]}
    alone, shared = (plan_run({**asked, "devices": devices}) for devices in (1, 2))
    assert list(shared.steps) == list(alone.steps)
    assert not [step.folder for step in alone.steps.values() if alone.devices_of(step) != 1]
    of_stages = {(step.stage, shared.devices_of(step)) for step in shared.steps.values()}
    assert {stage for stage, devices in of_stages if devices == 2} == {"teacher"}
    assert {devices for stage, devices in of_stages if stage != "teacher"} == {1}
    with pytest.raises(UserError, match=r"config\.yaml or --config: devices: 3 can't share the 4 shards of teachers/"):
        plan_run({**asked, "devices": 3})
    with pytest.raises(UserError, match=r"devices: 2: no training of this run has shards to share"):
        plan_run({"scale": "smoke", "devices": 2})
