"""A finished run of one small study, for every test that starts from one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from checkouts import add_tiny_scale

ARGUMENTS = ("--config", "scale=tiny", "--cores", "2")


@dataclass(frozen=True)
class SmallRun:
    """A checkout with a scale of seconds, and the study `dimension` at it."""

    checkout: Any

    def __truediv__(self, path: str) -> Path:
        return self.checkout.folder / path

    def run(self, *arguments: str, **environment: str) -> Any:
        """Run the study to its end."""
        done = self.checkout.dmdpipe("run", *ARGUMENTS, *(arguments or ("study_dimension",)), **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def started(self) -> subprocess.Popen[str]:
        """Start the study; what Snakemake says is on stderr."""
        command = [str(Path(sys.executable).with_name("dmdpipe")), "run", *ARGUMENTS, "study_dimension"]
        return subprocess.Popen(
            command,
            cwd=self.checkout.folder,
            env=self.checkout.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def would_run(self, *arguments: str) -> Counter[str]:
        """How many steps of each rule Snakemake would run now."""
        shown = self.checkout.dmdpipe("run", "-n", *ARGUMENTS, *arguments, "study_dimension")
        assert shown.returncode == 0, shown.stdout + shown.stderr
        counts = re.findall(r"^ +(\d+)  (\w+)$", shown.stdout + shown.stderr, re.MULTILINE)
        if not counts:
            assert "Nothing to be done" in shown.stdout + shown.stderr
        return Counter({rule: int(count) for count, rule in counts if rule != "study_dimension"})

    def published(self) -> dict[str, bytes]:
        """Every file of every step, by its path below the results; but run.json, which tells of one run."""
        results = self / "results"
        folders = [manifest.parent for manifest in results.rglob("manifest.json")]
        files = [path for folder in folders for path in folder.iterdir() if path.name != "run.json"]
        return {str(path.relative_to(results)): path.read_bytes() for path in files}

    def times(self) -> dict[str, int]:
        """When every file of every step was written."""
        return {str(path): path.stat().st_mtime_ns for path in (self / "results").rglob("*/*/*") if path.is_file()}


def new_small_run(checkout: Any) -> SmallRun:
    add_tiny_scale(checkout)
    return SmallRun(checkout)


@pytest.fixture
def unfinished(checkout: Any) -> SmallRun:
    """A checkout in which nothing has run yet."""
    return new_small_run(checkout)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory, new_checkout: Callable[[Path], Any]) -> SmallRun:
    """A checkout in which the study has run. Look, but change nothing."""
    small = new_small_run(new_checkout(tmp_path_factory.mktemp("finished") / "checkout"))
    small.run(PYTHONHASHSEED="0")
    return small


@pytest.fixture
def finished(finished_once: SmallRun, tmp_path: Path) -> SmallRun:
    """A copy of that checkout, times included, to do anything with."""
    shutil.copytree(finished_once.checkout.folder, tmp_path / "copy", symlinks=True)
    return SmallRun(type(finished_once.checkout)(tmp_path / "copy"))


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory, new_checkout: Callable[[Path], Any]) -> tuple[Any, Any]:
    """A checkout in which the default studies have run at smoke scale, and how that ended. Look, but change nothing."""
    checkout = new_checkout(tmp_path_factory.mktemp("whole") / "checkout")
    return checkout, checkout.dmdpipe("run", "--config", "scale=smoke", timeout=1_800, PYTHONHASHSEED="0")
