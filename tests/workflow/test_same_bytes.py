"""The default studies a second time, as differently as one machine allows: every file is the same to the byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

SMOKE = ("run", "--config", "scale=smoke")
STEPS_BEFORE_THE_KILL = 25


def published(results: Path) -> dict[str, bytes]:
    folders = [manifest.parent for manifest in results.rglob("manifest.json")]
    files = [path for folder in folders for path in folder.iterdir() if path.name != "run.json"]
    return {str(path.relative_to(results)): path.read_bytes() for path in files}


def test_another_folder_hash_seed_and_number_of_jobs_and_a_kill_between_give_the_same_bytes(
    whole_run: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory, new_checkout: Callable[[Path], Any]
) -> None:
    """The first run is cold, with as many jobs as cores; this one has one job at a time and is killed on its way."""
    first, done = whole_run
    assert done.returncode == 0, done.stdout + done.stderr
    second = new_checkout(tmp_path_factory.mktemp("a folder with another name") / "checkout two")
    command = [str(Path(sys.executable).with_name("dmdpipe")), *SMOKE, "--cores", "1"]
    variables = {**second.environment(), "PYTHONHASHSEED": "1"}
    with (second / "output").open("w") as output:
        running = subprocess.Popen(
            command, cwd=second.folder, env=variables, stdout=output, stderr=output, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 600
            while len(list((second / "results").rglob("manifest.json"))) < STEPS_BEFORE_THE_KILL:
                assert running.poll() is None and time.monotonic() < deadline, (second / "output").read_text()
                time.sleep(0.1)
        finally:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    again = second.dmdpipe(*SMOKE, "--cores", "1", timeout=1_800, PYTHONHASHSEED="1")
    assert again.returncode == 0, again.stdout + again.stderr
    one, other = published(first / "results"), published(second / "results")
    assert one.keys() == other.keys()
    assert {"manifest.json", ".png", ".pdf", ".ipynb", ".html", ".parquet", ".csv", ".safetensors"} <= {
        path.name if path.name == "manifest.json" else path.suffix for path in map(Path, one)
    }
    assert sorted(name for name in one if one[name] != other[name]) == []
    assert [line for line in again.stdout.splitlines() if ": no problems" in line]
