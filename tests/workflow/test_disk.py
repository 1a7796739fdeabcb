"""Whole runs on disks that are read-only or full."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.workflow

DISK = 40 * 2**20


@pytest.fixture
def small_disk(new_disk: Callable[[int], Path]) -> Path:
    """A disk of its own."""
    return new_disk(DISK)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def assert_refused(checkout: Any, says: str) -> None:
    done = checkout.dmdpipe("run", "--config", "scale=smoke")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and says in done.stderr


def test_a_read_only_checkout_is_one_line_before_snakemake_starts(
    small_disk: Path, new_checkout: Callable[[Path], Any]
) -> None:
    checkout = new_checkout(small_disk / "checkout")
    remount(small_disk, "ro")
    assert_refused(checkout, ".snakemake: the disk is read-only")


def test_read_only_or_full_results_are_one_line_before_snakemake_starts(small_disk: Path, unfinished: Any) -> None:
    (unfinished / "results").symlink_to(small_disk)
    remount(small_disk, "ro")
    assert_refused(unfinished.checkout, "results/.lock: the disk is read-only")
    remount(small_disk, "rw")
    fill(small_disk)
    assert_refused(unfinished.checkout, "results: the disk is full")


def fill(disk: Path) -> None:
    with pytest.raises(OSError, match="No space"), (disk / "fill").open("wb", buffering=0) as file:
        while file.write(b"\0" * 65536):
            pass


def came_out(published: dict[str, bytes]) -> dict[str, Any]:
    """Every file, and of manifests what came out: the script that fills the disk is other code."""
    return {
        name: json.loads(content)["result"] if name.endswith("manifest.json") else content
        for name, content in published.items()
    }


def test_a_disk_that_fills_up_in_the_middle_of_a_run(small_disk: Path, finished_once: Any, unfinished: Any) -> None:
    """Teachers fit, students do not; with room again, the run ends in the bytes of one that nothing disturbed."""
    (unfinished / "results").symlink_to(small_disk)
    unfinished.checkout.edit(
        "workflow/scripts/student.py",
        "    distil_student(step)",
        "    import pathlib\n"
        "    with pathlib.Path('results/fill').open('wb', buffering=0) as fill:\n"
        "        try:\n"
        "            while pathlib.Path('fill').exists() and fill.write(bytes(65536)):\n"
        "                pass\n"
        "        except OSError:\n"
        "            pass\n"
        "    distil_student(step)",
    )
    (unfinished / "fill").touch()
    done = unfinished.checkout.dmdpipe("run", "--config", "scale=tiny", "--cores", "2", "study_dimension")
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "the disk is full: free space and run again" in said and "Traceback" not in said, said
    before = unfinished.published()
    assert any(name.startswith("teachers/") for name in before)
    assert not any(name.startswith("students/") for name in before)
    (unfinished / "fill").unlink()
    (small_disk / "fill").unlink()
    unfinished.run()
    after = unfinished.published()
    assert {name: after[name] for name in before} == before
    assert came_out(after) == came_out(finished_once.published())
    assert json.loads(next((unfinished / "results/students").glob("*/run.json")).read_text())["seconds"] > 0
