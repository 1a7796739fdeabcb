"""A finished study of seconds, made without Snakemake, for every test that starts from one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from checkouts import add_tiny_scale

from dmdpipe.artifacts.checked import json_text
from dmdpipe.artifacts.manifest import sealed
from dmdpipe.audit.tree import Artifact, read_artifact
from dmdpipe.specs.base import digest

ROOT = Path(__file__).parents[2]
MAKE = """
from dmdpipe.artifacts.dag import plan_study, steps_below
from dmdpipe.artifacts.step import run_step
for step in steps_below(plan_study("dimension", "tiny").evidence):
    run_step(step.canonical(), "results")
"""
STAGES_OF_A_STUDY = {"data", "noise", "teachers", "teacher_samples", "students", "pairs", "metrics", "studies"}


@dataclass(frozen=True)
class Tree:
    """A checkout with a results folder: the study `dimension` at scale `tiny`, one student for each of two points."""

    checkout: Path

    @property
    def results(self) -> Path:
        return self.checkout / "results"

    def folder(self, stage: str) -> Path:
        """The first folder of a stage."""
        return sorted(self.results.glob(f"{stage}/**/manifest.json"))[0].parent

    def artifact(self, stage: str) -> Artifact:
        return read_artifact(self.folder(stage))


def plant(folder: Path, name: str, content: bytes) -> None:
    """Replace a payload file and seal the manifest again, as a forger would."""
    (folder / name).write_bytes(content)
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    manifest["result"]["payload"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    manifest["result"] = sealed(manifest["result"], "result_digest")
    (folder / "manifest.json").write_text(json_text(manifest))


def pretend_older_code(folder: Path) -> None:
    """As if the step had been made before dm_gradient was edited; its children are told nothing."""
    manifest = json.loads((folder / "manifest.json").read_text())
    modules = manifest["provenance"]["modules"]
    modules["dmdpipe.distill.dmd"]["dm_gradient"] = "0" * 16
    manifest["provenance"]["code"] = digest(modules)
    manifest["provenance"] = sealed(manifest["provenance"], "provenance_digest")
    (folder / "manifest.json").write_text(json_text(manifest))


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory, new_checkout: Callable[[Path], Any]) -> Tree:
    """Look, but change nothing."""
    checkout = new_checkout(tmp_path_factory.mktemp("audited") / "checkout")
    add_tiny_scale(checkout)
    shutil.copy(ROOT / "LICENSE", checkout / "LICENSE")
    done = checkout.python(MAKE)
    assert done.returncode == 0, done.stderr
    return Tree(checkout.folder)


@pytest.fixture
def own_tree(tree: Tree, tmp_path: Path) -> Tree:
    """A copy of it, to do anything with."""
    shutil.copytree(tree.checkout, tmp_path / "own", ignore=shutil.ignore_patterns("__pycache__"))
    return Tree(tmp_path / "own")
