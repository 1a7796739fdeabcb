"""Reruns of single steps: equal bytes are said to be equal, and whatever differs is named."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import STAGES_OF_A_STUDY, Tree, plant

from dmdpipe.artifacts.checked import json_text
from dmdpipe.artifacts.manifest import sealed
from dmdpipe.artifacts.plan import read_order
from dmdpipe.audit.reproduce import compare, reproduce, sample_steps
from dmdpipe.audit.rerun import check_intact, order_of, rerun
from dmdpipe.audit.tree import read_artifact
from dmdpipe.errors import UserError
from dmdpipe.specs.base import digest


def test_a_step_is_reproduced_from_its_manifest_and_its_parents(tree: Tree, tmp_path: Path) -> None:
    found = reproduce(tree.artifact("studies"), tmp_path)
    assert found.reproduced and found.outcome.startswith("reproduced bitwise"), found


@pytest.mark.slow
@pytest.mark.parametrize("stage", sorted(STAGES_OF_A_STUDY - {"studies"}))
def test_a_step_of_every_other_stage_is_reproduced_too(tree: Tree, tmp_path: Path, stage: str) -> None:
    assert reproduce(tree.artifact(stage), tmp_path).reproduced


def test_a_rerun_needs_nothing_but_the_manifest_and_the_parents(own_tree: Tree, tmp_path: Path) -> None:
    metrics = own_tree.artifact("metrics")
    parents = [own_tree.results / parent.folder for parent in metrics.manifest.result.parents.values()]
    payload = {name: (metrics.path / name).read_bytes() for name in metrics.manifest.result.payload}
    for name in payload:
        (metrics.path / name).unlink()
    for manifest in own_tree.results.rglob("manifest.json"):
        if manifest.parent not in (metrics.path, *parents):
            manifest.unlink()
    folder = rerun(metrics, tmp_path / "scratch")
    assert {name: (folder / name).read_bytes() for name in payload} == payload
    assert not [path for path in (tmp_path / "scratch").rglob("*") if path.is_symlink()]


def test_an_order_names_todays_code_and_the_parents_that_are_there(tree: Tree) -> None:
    student = tree.artifact("students")
    order = read_order(order_of(student))
    assert order.spec == student.manifest.result.spec
    assert order.code == student.manifest.provenance.code  # the code is as it was
    assert {role: parent.folder for role, parent in order.parents.items()} == {
        role: parent.folder for role, parent in student.manifest.result.parents.items()
    }
    data = read_artifact(tree.results / order.parents["data"].folder)
    assert order.parents["data"].digest == data.manifest.result.digest


def test_a_forged_payload_under_a_good_seal_is_found_by_its_name(own_tree: Tree, tmp_path: Path) -> None:
    plant(own_tree.folder("data"), "facts.json", b"{}\n")
    found = reproduce(own_tree.artifact("data"), tmp_path)
    assert not found.reproduced and found.files == ("facts.json",)
    assert found.outcome.startswith("differs: file facts.json")


def test_a_parent_that_is_not_the_recorded_one_is_found_by_its_role(own_tree: Tree, tmp_path: Path) -> None:
    metrics = own_tree.artifact("metrics")
    data = own_tree.results / metrics.manifest.result.parents["data"].folder
    plant(data, "facts.json", (data / "facts.json").read_bytes() + b"\n")
    found = reproduce(metrics, tmp_path)
    assert (found.reproduced, found.files, found.parents) == (False, (), ("data",))
    assert "parent not the recorded one: data" in found.outcome


def test_a_rerun_that_fails_is_an_outcome_of_one_line(own_tree: Tree, tmp_path: Path) -> None:
    metrics = own_tree.artifact("metrics")
    plant(own_tree.results / metrics.manifest.result.parents["data"].folder, "data.safetensors", b"junk")
    found = reproduce(metrics, tmp_path)
    assert not found.reproduced and "the rerun failed" in found.outcome and "\n" not in found.outcome


@pytest.mark.parametrize("where", ["own", "parent"])
def test_damage_is_refused_before_anything_runs(own_tree: Tree, tmp_path: Path, where: str) -> None:
    metrics = own_tree.artifact("metrics")
    parent = own_tree.results / metrics.manifest.result.parents["data"].folder
    damaged = parent / "data.safetensors" if where == "parent" else metrics.path / "metrics.parquet"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(bytes(content))
    with pytest.raises(UserError, match=f"{damaged.name}: was changed"):
        reproduce(metrics, tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()


def test_what_changed_since_is_named(tree: Tree) -> None:
    recorded = tree.artifact("students").manifest
    assert compare("students/x", recorded, recorded).outcome == "reproduced bitwise"
    provenance = recorded.provenance
    modules = {**provenance.modules, "dmdpipe.seeds": {"derive_seed": "0" * 16}, "dmdpipe.new": {"f": "1" * 16}}
    libraries = {**provenance.environment.libraries, "torch": "1.0"}
    environment = provenance.environment.model_copy(update={"instruction_set": "NONE", "libraries": libraries})
    update = {"modules": modules, "environment": environment, "environment_lock": "f" * 64}
    now = recorded.model_copy(update={"provenance": provenance.model_copy(update=update)})
    found = compare("students/x", recorded, now)
    assert (
        found.reproduced
        and found.code[0] == "code: new.py is now used"
        and "code: seeds.py::derive_seed changed" in found.code
    )
    assert [said.partition(":")[0] for said in found.environment] == ["libraries.torch", "instruction_set", "locks"]
    assert f"{provenance.environment.instruction_set} → NONE" in found.environment[1]


def test_files_that_only_one_of_the_two_has_are_differences(tree: Tree) -> None:
    recorded = tree.artifact("students").manifest
    file = recorded.result.payload["history.parquet"]
    result = recorded.result.model_copy(update={"payload": {"history.parquet": file, "more.csv": file}})
    found = compare("students/x", recorded, recorded.model_copy(update={"result": result}))
    assert found.files == ("more.csv", "snapshots.safetensors")


@pytest.mark.parametrize("seed", range(4))
def test_a_sample_has_every_stage_before_any_again(tree: Tree, seed: int) -> None:
    everything = [step.folder for step in sample_steps(tree.results, 100, seed)]
    assert sorted(everything) == sorted(
        path.parent.relative_to(tree.results).as_posix() for path in tree.results.rglob("manifest.json")
    )
    stages = [folder.partition("/")[0] for folder in everything]
    assert set(stages[: len(STAGES_OF_A_STUDY)]) == STAGES_OF_A_STUDY
    assert [step.folder for step in sample_steps(tree.results, 3, seed)] == everything[:3]


def test_another_seed_gives_another_sample_and_an_empty_tree_none(tree: Tree, tmp_path: Path) -> None:
    samples = {tuple(step.folder for step in sample_steps(tree.results, 5, seed)) for seed in range(8)}
    assert len(samples) > 4
    with pytest.raises(UserError, match="holds no artifact"):
        sample_steps(tmp_path, 5, 0)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where scratch folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_command_exits_with_0_and_leaves_nothing(dmdpipe: Callable[..., Any], tree: Tree, scratch: Path) -> None:
    ended = dmdpipe("audit", "reproduce", str(tree.folder("data") / "facts.json"))
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == "1 of 1 steps reproduced bitwise"
    assert os.listdir(scratch) == []


def test_the_command_exits_with_1_on_a_difference(dmdpipe: Callable[..., Any], own_tree: Tree, scratch: Path) -> None:
    plant(own_tree.folder("data"), "facts.json", b"{}\n")
    ended = dmdpipe("audit", "reproduce", str(own_tree.folder("data")), "--format", "json", "--keep")
    assert ended.status == 1
    (row,) = json.loads(ended.out)
    assert row["reproduced"] is False and row["files"] == ["facts.json"]
    (kept,) = scratch.iterdir()
    assert f"scratch folder: {kept}" in ended.err and list(kept.rglob("facts.json"))


@pytest.mark.slow
def test_the_command_samples_by_a_seed_that_it_prints(dmdpipe: Callable[..., Any], tree: Tree, scratch: Path) -> None:
    ended = dmdpipe("audit", "reproduce", "--sample", "1", "--results", str(tree.results))
    assert ended.status == 0, ended.err
    seed = ended.out.splitlines()[0].removeprefix("seed ")
    (step,) = sample_steps(tree.results, 1, int(seed))
    assert f"1/1 {step.folder}: reproduced bitwise" in ended.out


def test_bad_usage_and_damage_exit_with_2(dmdpipe: Callable[..., Any], own_tree: Tree, scratch: Path) -> None:
    data = own_tree.folder("data")
    (data / "facts.json").write_text("{}")
    with pytest.raises(UserError, match="facts.json"):
        check_intact(own_tree.artifact("data"))
    for arguments in ([], ["--sample", "1", str(data)], [str(data)], [str(own_tree.checkout / "Snakefile")]):
        ended = dmdpipe("audit", "reproduce", *arguments)
        assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1), ended
    assert os.listdir(scratch) == []


def test_a_spec_that_lacks_a_key_of_today_is_an_outcome(own_tree: Tree, tmp_path: Path) -> None:
    path = own_tree.folder("noise") / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["result"]["spec"]["n_held_out"]
    manifest["result"]["digest"] = digest({"stage": "noise", "spec": manifest["result"]["spec"]})
    manifest["result"] = sealed(manifest["result"], "result_digest")
    path.write_text(json_text(manifest))
    found = reproduce(own_tree.artifact("noise"), tmp_path)
    assert found.failure and "lacks keys that specs have today" in found.failure
