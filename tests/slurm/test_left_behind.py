"""What tests that were killed left on the machine does not keep others from it; what is the machine's own does."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import FOLDERS, LOCK, PREFIX, taken_by


@pytest.fixture
def folder() -> Iterator[Path]:
    """The folder of a cluster of tests."""
    made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=FOLDERS))
    (made / "slurm.conf").touch()
    (made / LOCK).touch()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def config(tmp_path: Path, folder: Path) -> Path:
    """The machine's configuration: a link into that folder."""
    (tmp_path / "slurm.conf").symlink_to(folder / "slurm.conf")
    return tmp_path / "slurm.conf"


def test_a_link_of_killed_tests_is_nobodys(tmp_path: Path, config: Path, folder: Path) -> None:
    assert taken_by(tmp_path / "none") == ""
    assert taken_by(config) == ""
    (folder / LOCK).unlink()
    assert taken_by(config) == ""
    shutil.rmtree(folder)
    assert taken_by(config) == ""


def test_tests_that_still_run_keep_their_cluster(config: Path, folder: Path) -> None:
    with (folder / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "still running" in taken_by(config)


@pytest.mark.parametrize("kind", ["a file", "a link", "a link to what is away", "a link beside those of tests"])
def test_the_machines_own_is_left_alone(tmp_path: Path, kind: str) -> None:
    """Also where the disk is away that its link leads to."""
    own, config = tmp_path / "etc/slurm.conf", tmp_path / "slurm.conf"
    if kind == "a file":
        config.touch()
    elif kind == "a link beside those of tests":
        config.symlink_to(FOLDERS / "cluster/slurm.conf")
    else:
        config.symlink_to(own)
    if kind == "a link":
        own.parent.mkdir()
        own.touch()
    assert taken_by(config) == "a SLURM of its own"
