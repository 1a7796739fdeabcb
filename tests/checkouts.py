"""A private copy of the checkout, and the command line run inside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("config", "envs", "profiles", "reports", "rules", "src", "workflow", "Snakefile")
TINY = """
title: Seconds, for tests
seeds: 1
set:
  data.n_train: 500
  data.n_held_out: 100
  score.steps: 20
  sampler.steps: 8
  student.generator_steps: 5
  student.snapshots: 3
  bank.n_paired: 64
  bank.n_held_out: 256
  bank.n_reference_sets: 2
"""
TINY_GRID = """
  tiny:
    axes: {d: ["4", "16"]}
"""


@dataclass(frozen=True)
class Checkout:
    """A copy of everything that a run reads. Its own ``src`` is what runs in it."""

    folder: Path

    def __truediv__(self, path: str) -> Path:
        return self.folder / path

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace ``old``, which must be there, in a file."""
        text = (self.folder / path).read_text()
        assert old in text, f"{path} has no {old!r}"
        (self.folder / path).write_text(text.replace(old, new))

    def files(self) -> set[str]:
        """Return every file that a run may have made or changed, by its path."""
        made = (path for path in self.folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {str(path.relative_to(self.folder)) for path in made}

    def dmdpipe(self, *arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command ``dmdpipe`` here, as a user does."""
        command = [str(Path(sys.executable).with_name("dmdpipe")), *arguments]
        return self.run(command, timeout, environment)

    def python(self, program: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a Python program here."""
        return self.run([sys.executable, "-c", program], timeout, environment)

    def run(self, command: list[str], timeout: float, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a command with this copy's library before any other."""
        variables = {**self.environment(), **environment}
        return subprocess.run(
            command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=timeout, check=False
        )

    def environment(self) -> dict[str, str]:
        """Return the variables with which a process finds this copy's library before any other."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DMDPIPE_", "PYTEST"))}
        return {**inherited, "PYTHONPATH": str(self.folder / "src"), "OMP_NUM_THREADS": "1"}


def copy_checkout(target: Path) -> Checkout:
    """Copy the checkout's sources, without anything that a run has made."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / part)
    return Checkout(target)


def add_tiny_scale(checkout: Checkout) -> None:
    """Give the study `dimension` a scale of seconds, `tiny`: two points, one student for each."""
    (checkout / "config/scales/tiny.yaml").write_text(TINY)
    with (checkout / "config/studies/dimension.yaml").open("a") as study:
        study.write(TINY_GRID)
