"""Bundles: one step rerun elsewhere, by the bundle's own sources, and refused when a byte of it was changed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Tree, plant

from dmdpipe.audit.bundle import bundle_name, write_bundle
from dmdpipe.audit.tree import Artifact
from dmdpipe.errors import UserError


def unpack(artifact: Artifact, checkout: Path, folder: Path, today: bool = False) -> Path:
    folder.mkdir()
    write_bundle(artifact, folder / "bundle.tar.gz", checkout, today)
    with tarfile.open(folder / "bundle.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / bundle_name(artifact)


def rerun(bundle: Path) -> subprocess.CompletedProcess[str]:
    """Run it as a reviewer would: from somewhere else, without our checkout on the path."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DMDPIPE", "OMP"))}
    command = [sys.executable, str(bundle / "rerun.py")]
    return subprocess.run(command, cwd="/", env=variables, capture_output=True, text=True, timeout=120, check=False)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_reproduces_its_step_with_its_own_sources(tree: Tree, tmp_path: Path) -> None:
    bundle = unpack(tree.artifact("metrics"), tree.checkout, tmp_path / "elsewhere")
    before = files_in(bundle)
    done = rerun(bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"code: {bundle / 'src/dmdpipe'}\n" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("reproduced bitwise")
    assert files_in(bundle) == before  # and is as it was, fit to be run again


@pytest.mark.slow
def test_the_sources_in_the_bundle_are_the_ones_that_run(tree: Tree, tmp_path: Path) -> None:
    bundle = unpack(tree.artifact("data"), tree.checkout, tmp_path / "elsewhere")
    contents = json.loads((bundle / "bundle.json").read_text())
    source = bundle / "src/dmdpipe/data/digits.py"
    source.write_text(source.read_text() + "\n\nBROKEN = undefined_name\n")
    contents["files"]["src/dmdpipe/data/digits.py"] = hashlib.sha256(source.read_bytes()).hexdigest()
    (bundle / "bundle.json").write_text(json.dumps(contents))
    done = rerun(bundle)
    assert done.returncode == 1
    assert "undefined_name" in done.stdout


def test_the_same_step_gives_the_same_archive(tree: Tree, tmp_path: Path) -> None:
    artifact = tree.artifact("students")
    for name in ("one.tar.gz", "two.tar.gz"):
        write_bundle(artifact, tmp_path / name, tree.checkout)
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "one.tar.gz") as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
        (0, 0, 0, "", 0o644)
    }
    assert not [member.name for member in members if "__pycache__" in member.name]


def test_it_holds_the_manifest_the_parents_and_the_locks_but_not_the_payload(tree: Tree, tmp_path: Path) -> None:
    artifact = tree.artifact("students")
    bundle = unpack(artifact, tree.checkout, tmp_path / "elsewhere")
    packed = files_in(bundle)
    parents = {f"results/{parent.folder}/manifest.json" for parent in artifact.manifest.result.parents.values()}
    assert {name for name in packed if name.endswith("manifest.json")} == {
        f"results/{artifact.folder}/manifest.json",
        *parents,
    }
    assert not [name for name in packed if name.startswith(f"results/{artifact.folder}/snapshots")]
    assert {"README.md", "rerun.py", "bundle.json", "envs/base.txt", "src/dmdpipe/__init__.py"} <= packed
    readme = (bundle / "README.md").read_text()
    assert artifact.folder in readme and "python rerun.py" in readme and "those that made it" in readme


@pytest.fixture
def bundle_of_a_teacher(tree: Tree, tmp_path: Path) -> Path:
    return unpack(tree.artifact("teachers"), tree.checkout, tmp_path / "elsewhere")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("file", ["results/data/*/data.safetensors", "src/dmdpipe/seeds.py", "envs/base.txt"])
def test_a_flipped_byte_is_named_and_nothing_is_run(bundle_of_a_teacher: Path, file: str) -> None:
    (path,) = bundle_of_a_teacher.glob(file)
    flip(path)
    done = rerun(bundle_of_a_teacher)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"{path.relative_to(bundle_of_a_teacher)}: was changed after it was packed" in done.stdout
    assert "rerunning" not in done.stdout


def test_missing_and_stray_files_are_named(bundle_of_a_teacher: Path) -> None:
    (bundle_of_a_teacher / "src/dmdpipe/seeds.py").unlink()
    (bundle_of_a_teacher / "src/numpy.py").write_text("raise SystemExit(0)\n")
    done = rerun(bundle_of_a_teacher)
    assert done.returncode == 1
    assert "src/dmdpipe/seeds.py: cannot be read" in done.stdout
    assert "src/numpy.py: is not part of the bundle" in done.stdout


@pytest.mark.slow
def test_a_forged_recording_is_not_reproduced(own_tree: Tree, tmp_path: Path) -> None:
    plant(own_tree.folder("data"), "facts.json", b"{}\n")
    done = rerun(unpack(own_tree.artifact("data"), own_tree.checkout, tmp_path / "elsewhere"))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("differs: file facts.json")


def test_another_code_than_the_steps_is_refused_unless_asked_for(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = tree.artifact("data")
    provenance = artifact.manifest.provenance.model_copy(update={"code": "0" * 16})
    older = Artifact(artifact.results, artifact.folder, artifact.manifest.model_copy(update={"provenance": provenance}))
    with pytest.raises(UserError, match="its code was edited since.*--today"):
        write_bundle(older, tmp_path / "bundle.tar.gz", tree.checkout)
    assert list(tmp_path.iterdir()) == []
    bundle = unpack(older, tree.checkout, tmp_path / "elsewhere", today=True)
    assert "NOT those that made it" in (bundle / "README.md").read_text()
    assert "--today" in rerun(bundle).stdout


def test_damage_and_unwritable_places_are_refused(own_tree: Tree, tmp_path: Path) -> None:
    student = own_tree.artifact("students")
    with pytest.raises(UserError, match="cannot be written"):
        write_bundle(student, tmp_path / "no" / "folder" / "bundle.tar.gz", own_tree.checkout)
    flip(own_tree.results / student.manifest.result.parents["teacher"].folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors: was changed"):
        write_bundle(student, tmp_path / "bundle.tar.gz", own_tree.checkout)
    assert not (tmp_path / "bundle.tar.gz").exists()


def test_the_command_says_what_to_do_next(dmdpipe: Callable[..., Any], tree: Tree, tmp_path: Path) -> None:
    archive = tmp_path / "bundle.tar.gz"
    ended = dmdpipe("bundle", str(tree.folder("data")), "--output", str(archive))
    assert (ended.status, ended.err) == (0, "") and "python rerun.py" in ended.out
    assert archive.stat().st_size < 2**20
    ended = dmdpipe("bundle", str(tree.checkout / "config"))
    assert (ended.status, ended.err.count("\n")) == (2, 1) and "is no artifact" in ended.err


def test_a_stray_module_beside_the_script_is_named_and_not_imported(bundle_of_a_teacher: Path) -> None:
    for module in ("hashlib.py", "pydantic.py"):
        (bundle_of_a_teacher / module).write_text("raise SystemExit(0)\n")
    done = rerun(bundle_of_a_teacher)
    assert done.returncode == 1 and done.stderr == ""
    assert "pydantic.py: is not part of the bundle" in done.stdout


@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff", b'{"files": 1, "step": "x", "today": false}'])
def test_damaged_contents_are_one_line(bundle_of_a_teacher: Path, content: bytes | None) -> None:
    contents = bundle_of_a_teacher / "bundle.json"
    contents.unlink() if content is None else contents.write_bytes(content)
    done = rerun(bundle_of_a_teacher)
    assert done.returncode == 1 and done.stderr == "" and "bundle.json: is missing, or not what" in done.stdout


def test_a_folder_as_the_archive_is_refused(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; name a file"):
        write_bundle(tree.artifact("data"), tmp_path, tree.checkout)
    with pytest.raises(UserError, match="is a folder; name a file"):
        write_bundle(tree.artifact("data"), Path(), tree.checkout)
