"""The plugin in real runs of Snakemake on a toy workflow."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.workflow

STEP = "digits_seed0-1f3a9c02d47e5b10"
OTHER = "digits_seed1-0123456789abcdef"
SNAKEFILE = f"""
rule all:
    input: expand("results/teachers/{{step}}/manifest.json", step=["{STEP}", "{OTHER}"])
rule teacher:
    output: "results/teachers/{{step}}/manifest.json"
    log: "results/logs/{{step}}.log"
    shell: "sh step.sh {{wildcards.step}} >{{log}} && touch {{output}}"
"""
FAILING = f"""
test "$1" = {OTHER} && exit 0
for i in $(seq 1 40); do echo log line $i; done
exit 1
"""
WAITING = f"""
test "$1" = {OTHER} && exit 0
mkdir -p results/.progress
echo '{{"stage":"teacher","label":"digits_seed0","done":3200,"total":4000,"started":1}}' >.report
mv .report results/.progress/1f3a9c02d47e5b10.json
read word <gate
echo from the job >&2
"""


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "step.sh").write_text("")
    return tmp_path


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--logger", "dmdpipe", "--cores", "2", *options]


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*options), cwd=folder, capture_output=True, text=True, timeout=60)


def test_success_then_nothing_to_do(workflow: Path) -> None:
    done = run(workflow)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    jobs = [line for line in lines if line.startswith("[")]
    assert len(jobs) == 3
    assert re.fullmatch(r"\[1/3\] teacher digits_seed[01] done in \d+ s · about \d+ s left", jobs[0])
    assert re.fullmatch(r"\[3/3\] all done in \d+ s", jobs[2])
    assert re.fullmatch(r"3/3 steps done in \d+ s", lines[-1])

    again = run(workflow)
    assert again.returncode == 0
    assert [line for line in again.stderr.splitlines() if "Nothing to be done" in line]
    assert "steps" not in again.stderr


def test_failing_job_shows_the_end_of_its_log(workflow: Path) -> None:
    (workflow / "step.sh").write_text(FAILING)
    failed = run(workflow, "--keep-going")
    assert failed.returncode == 1
    lines = failed.stderr.splitlines()
    at = lines.index("✗ teacher digits_seed0 failed")
    assert lines[at + 1] == f"    folder  results/teachers/{STEP}"
    log = lines.index(f"    log     results/logs/{STEP}.log", at)
    assert lines[log + 1 : log + 16] == [f"    │ log line {i}" for i in range(26, 41)]
    assert not lines[log + 16].startswith("    │")
    assert re.fullmatch(r"1/3 steps done in \d+ s · 1 failed", lines[-1])


def test_dry_run_lists_jobs_and_counts(workflow: Path) -> None:
    dry = run(workflow, "-n")
    assert dry.returncode == 0, dry.stderr
    lines = dry.stdout.splitlines()
    assert "teacher digits_seed0  (missing output files)" in lines
    assert lines[-3:] == ["     2  teacher", "     1  all", "     3  steps to do"]
    assert not (workflow / "results").exists()


def test_a_dry_run_shows_the_reasons_of_its_own_plan(workflow: Path) -> None:
    progress = workflow / "results/.progress"
    progress.mkdir(parents=True)
    for name in ("plan", "look"):
        reasons = {f"results/teachers/{STEP}/manifest.json": f"of {name}"}
        (progress / f"{name}.json").write_text(json.dumps({"reasons": reasons}))
    assert "teacher digits_seed0  (of look)" in run(workflow, "-n").stdout


def test_terminal_shows_running_jobs(workflow: Path) -> None:
    (workflow / "step.sh").write_text(WAITING)
    os.mkfifo(workflow / "gate")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command(),
        cwd=workflow,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    ) as process:
        os.close(theirs)
        seen = read_until(ours, "3,200/4,000")
        (workflow / "gate").write_text("go\n")
        seen += read_until(ours, None)
    os.close(ours)
    assert process.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert re.search(r"[01]/3 steps · 00:0\d elapsed · about (…|\d\d:\d\d) left", plain)
    assert re.search(r"teacher +digits_seed0 +3,200/4,000 .*… left", plain)
    assert re.search(r"(\n|\x1b\[2K)from the job\r\n", seen), "on a line of its own, not behind the status area"
    assert not re.search(r"\[\d/3\]", plain), "no line per finished job on a terminal"
    assert re.search(r"3/3 steps done in \d+ s\s*$", plain)


def read_until(descriptor: int, text: str | None) -> str:
    """Read a terminal until it shows `text`, or to its end."""
    seen = b""
    while text is None or text.encode() not in seen:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # what Linux says when the other end is closed
            chunk = b""
        if not chunk:
            break
        seen += chunk
    return seen.decode(errors="replace")
