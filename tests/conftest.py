"""What several folders of tests share: a private copy of the checkout, and the command line run inside it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkouts import Checkout, copy_checkout


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let whole runs of the pipeline go first, so that none of the workers waits for another's in the end."""
    items.sort(key=lambda item: item.get_closest_marker("workflow") is None)


@pytest.fixture(scope="session")
def new_checkout() -> Callable[[Path], Checkout]:
    """Make a fresh copy of the checkout in a folder."""
    return copy_checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A fresh copy of the checkout."""
    return copy_checkout(tmp_path / "checkout")


@pytest.fixture
def new_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Make a disk of so many bytes, to fill or to forbid; the test is skipped where nothing may be mounted."""
    disk = tmp_path / "disk"

    def mount(size: int) -> Path:
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        try:
            mounted = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            pytest.skip(f"cannot mount a disk here: {error}")
        if mounted.returncode:
            pytest.skip(f"cannot mount a disk here: {mounted.stderr.strip()}")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture(scope="session")
def plant_artifact() -> Callable[[Path, str, Mapping[str, bytes]], Path]:
    """Make a folder with these files, and a manifest of this stage that vouches for them."""
    from dmdpipe.artifacts.checked import json_text
    from dmdpipe.artifacts.environment import current_environment
    from dmdpipe.artifacts.manifest import Manifest, sealed
    from dmdpipe.specs.base import digest

    def plant(folder: Path, stage: str, files: Mapping[str, bytes]) -> Path:
        result = {
            "stage": stage,
            "spec": {},
            "digest": digest({"stage": stage, "spec": {}}),
            "seeds": {},
            "payload": {
                name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()
            },
            "parents": {},
        }
        provenance = {
            "code": "0" * 16,
            "modules": {},
            "environment_lock": "unlocked",
            "environment": current_environment(["numpy"]).model_dump(),
            "equality": {"kind": "bitwise", "reason": "planted"},
            "parents": {},
        }
        manifest = Manifest.model_validate(
            {"result": sealed(result, "result_digest"), "provenance": sealed(provenance, "provenance_digest")}
        )
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        (folder / "manifest.json").write_text(json_text(manifest.model_dump(mode="json")))
        return folder

    return plant


@dataclass(frozen=True)
class Outcome:
    """How a command line ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def dmdpipe(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """The command line inside ``checkout``, in this process. It never starts Snakemake: that would end in 99."""
    from dmdpipe import cli, runner

    monkeypatch.chdir(checkout.folder)
    monkeypatch.setattr(runner, "_snakemake", lambda arguments: 99)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer puts its own there
    for name in ("DMDPIPE_RESULTS", *runner.ONE_THREAD):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # the runner sets them for its children

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["dmdpipe", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), out, err)

    return run
