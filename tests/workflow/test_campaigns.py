"""Short forms of the campaigns, which are scripts beside this file: run them for as long as you like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

HERE = Path(__file__).parent


def test_damage_of_every_kind_is_noticed_and_read_by_no_step(finished_once: Any) -> None:
    command = [sys.executable, str(HERE / "flip_campaign.py"), "results", "--flips", "60", "--seed", "1"]
    done = finished_once.checkout.run(command, 600, {})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "60 of 60 were noticed" in done.stdout


def test_runs_that_are_killed_are_finished_by_the_next() -> None:
    command = [sys.executable, str(HERE / "kill_campaign.py"), "--kills", "2", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1_200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 runs ended in the same bytes" in done.stdout
