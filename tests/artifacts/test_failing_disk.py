"""Disks that are full, read-only, forbidden or broken: one line, what was there stays, and the next run goes on."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from dmdpipe.artifacts import atomic
from dmdpipe.artifacts.checkpoint import load_checkpoint, save_checkpoint
from dmdpipe.artifacts.disk import ADVICE, failures_told
from dmdpipe.artifacts.manifest import read_manifest, verify_payload
from dmdpipe.artifacts.plan import PlannedStep, plan
from dmdpipe.artifacts.step import Step, open_step, run_step
from dmdpipe.diffusion import state
from dmdpipe.errors import UserError
from dmdpipe.specs.data import Moons
from dmdpipe.specs.student import StudentSpec

DATA = plan("data", Moons(n_train=10))
MIB = 2**20


def make(results: Path, size: int = 10) -> None:
    with open_step(DATA.canonical(), results / DATA.folder / "manifest.json", results / "logs/data.log") as step:
        step.write_tensors("data.safetensors", {"train": np.zeros(size, np.uint8)})
        step.write_json("facts.json", {})


def contents(results: Path) -> dict[str, bytes]:
    """Every file below the results, but logs and times."""
    files = [path for path in results.rglob("*") if path.is_file() and path.name not in ("run.json", "data.log")]
    return {str(path.relative_to(results)): path.read_bytes() for path in files}


def assert_refused(results: Path, words: str, capsys: pytest.CaptureFixture[str], size: int = 10) -> None:
    """Making the step ends in one line, in its log or, where that cannot be written, on stderr; nothing is left."""
    before = contents(results)
    log = results / "logs/data.log"
    log.unlink(missing_ok=True)
    with pytest.raises(SystemExit) as ended:
        make(results, size)
    assert ended.value.code == 1
    said = (log.read_text() if log.is_file() else "") or capsys.readouterr().err
    *_, line = said.splitlines()
    assert words in line and line.isprintable() and "Traceback" not in said
    assert contents(results) == before
    assert not list(results.glob(".tmp/*"))


@pytest.fixture
def small_disk(new_disk: Callable[[int], Path]) -> Path:
    """A disk of one MiB of its own."""
    return new_disk(MIB)


@pytest.mark.parametrize("has_old", [False, True])
def test_a_payload_that_does_not_fit_on_the_disk(
    small_disk: Path, has_old: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    results = small_disk / "results"
    if has_old:
        make(results)
    assert_refused(results, "the disk is full: free space and run again", capsys, size=2 * MIB)
    make(results)
    assert verify_payload(results / DATA.folder, read_manifest(results / DATA.folder / "manifest.json")) == []


@pytest.mark.parametrize("has_old", [False, True])
def test_a_disk_without_any_room(small_disk: Path, has_old: bool, capsys: pytest.CaptureFixture[str]) -> None:
    results = small_disk / "results"
    if has_old:
        make(results)
    with filled(small_disk):
        assert_refused(results, "the disk is full", capsys)
    make(results)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leave no byte free on a disk while the block runs."""
    with pytest.raises(OSError, match="No space"), (disk / "fill").open("wb", buffering=0) as file:
        while True:
            assert file.write(b"\0" * 4096) == 4096
    yield
    (disk / "fill").unlink()


@pytest.mark.parametrize("has_old", [False, True])
def test_a_disk_that_is_read_only(small_disk: Path, has_old: bool, capsys: pytest.CaptureFixture[str]) -> None:
    results = small_disk / "results"
    if has_old:
        make(results)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    before = contents(results)
    with pytest.raises(SystemExit) as ended:
        make(results)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "the disk is read-only" in said and "Traceback" not in said
    assert contents(results) == before


TEACHER = {
    "data": {"family": "moons", "n_train": 20, "n_held_out": 5},
    "score": {
        "kind": "trained",
        "network": {"kind": "mlp", "width": 8, "depth": 1, "embedding": 4},
        "steps": 5,
        "batch": 8,
    },
}
STUDENT = plan(
    "student",
    StudentSpec.model_validate(
        {
            "teacher": TEACHER,
            "network": {"kind": "mlp", "width": 8, "depth": 1, "embedding": 4},
            "generator_steps": 24,
            "batch": 8,
            "snapshots": 3,
        }
    ),
)


def published(results: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(results).items() if not name.startswith(".")}


def test_a_student_goes_on_when_the_disk_has_room_again(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(state, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr("dmdpipe.distill.loop.rounds_together", lambda rounds: 1)
    steps: list[PlannedStep] = [STUDENT.parents["data"], STUDENT.parents["teacher"], STUDENT]
    for step in steps:
        run_step(step.canonical(), tmp_path / "whole")
    results = small_disk / "results"
    for step in steps[:-1]:
        run_step(step.canonical(), results)
    before = published(results)
    told: list[int] = []
    tell = Step.progress

    def fill_the_disk(step: Step, done: int, total: int) -> None:
        tell(step, done, total)
        told.append(done)
        if len(told) == 20:
            full.__enter__()

    full = filled(small_disk)
    with monkeypatch.context() as patched, pytest.raises(UserError) as error:
        patched.setattr(Step, "progress", fill_the_disk)
        run_step(STUDENT.canonical(), results)
    assert "checkpoint.safetensors: the disk is full: free space and run again" in str(error.value)
    assert len(told) == 20 and published(results) == before
    assert not list(results.glob(".tmp/*"))
    full.__exit__(None, None, None)
    told.clear()
    with monkeypatch.context() as patched:
        patched.setattr(Step, "progress", lambda step, done, total: told.append(done))
        run_step(STUDENT.canonical(), results)
    # It went on with the 20th step, the first whose checkpoint did not fit.
    assert told[0] > 1
    assert published(results) == published(tmp_path / "whole")
    assert capsys.readouterr().err == ""


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, number: int, call: int) -> Callable[[], int]:
    """Let the n-th call of a function of ``os`` fail; return a function that counts the calls."""
    true = getattr(os, name)
    calls: list[object] = []

    def function(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == call:
            raise OSError(number, os.strerror(number))
        return true(*arguments)

    monkeypatch.setattr(atomic.os, name, function)
    return lambda: len(calls)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO], ids=errno.errorcode.__getitem__)
@pytest.mark.parametrize("has_old", [False, True])
def test_every_call_that_publishes_may_fail(
    tmp_path: Path, number: int, has_old: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until the new folder is in its place, nothing has changed; the old one is put back."""
    if has_old:
        make(tmp_path)
    for name, calls in (("fsync", 5), ("rename", 2)):
        for call in range(1, calls + 1):
            with pytest.MonkeyPatch.context() as patched:
                counted = fail_at(patched, name, number, call)
                assert_refused(tmp_path, ADVICE[number], capsys)
            assert counted() >= call
    make(tmp_path)


def test_an_error_that_is_no_failing_disk_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), failures_told(tmp_path):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(UserError, match=f"^{tmp_path}: the disk is full"), failures_told(tmp_path):
        raise OSError(errno.ENOSPC, "full")


def test_a_step_that_needs_too_much_memory_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(SystemExit),
        open_step(DATA.canonical(), tmp_path / DATA.folder / "manifest.json", tmp_path / "log"),
    ):
        raise MemoryError
    assert "needs more memory" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    save_checkpoint(tmp_path, {"w": np.ones(2)}, {"step": 1})
    with monkeypatch.context() as patched, pytest.raises(UserError, match=ADVICE[number].split(":")[0]):
        fail_at(patched, "fsync", number, 1)
        save_checkpoint(tmp_path, {"w": np.ones(2)}, {"step": 2})
    found = load_checkpoint(tmp_path)
    assert found is not None and found[1] == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_progress_that_cannot_be_told_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_step(DATA.canonical(), tmp_path / DATA.folder / "manifest.json") as step:
        with monkeypatch.context() as patched:
            fail_at(patched, "replace", errno.ENOSPC, 1)
            step.progress(1, 2)
        assert not list((tmp_path / ".progress").iterdir())
        step.write_tensors("data.safetensors", {})
        step.write_json("facts.json", {})


# Runs the step in one folder after the other; before the last, root becomes a user whom permissions bind.
PROGRAM = """
import os
import sys
import numpy as np
from pathlib import Path
from dmdpipe.artifacts.plan import plan
from dmdpipe.artifacts.step import open_step
from dmdpipe.specs.data import Moons
planned = plan("data", Moons(n_train=10))
order = planned.canonical()
for results in sys.argv[1:]:
    if results == sys.argv[-1] and len(sys.argv) > 2 and os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    with open_step(order, Path(results, planned.folder, "manifest.json")) as step:
        step.write_tensors("data.safetensors", {"train": np.zeros(1000)})
        step.write_json("facts.json", {})
"""


def limit_files() -> None:
    """Let this process write no file beyond 1000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def test_a_file_beyond_the_limit_of_the_process(tmp_path: Path) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=limit_files)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "larger than may be written here" in done.stderr
    assert contents(tmp_path) == before and not list(tmp_path.glob(".tmp/*"))


def test_a_folder_without_permission(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results")
        make(results)
        (results / ".tmp").mkdir(exist_ok=True)
        before = contents(results)
        folders = [Path(folder), results, *(path for path in results.rglob("*") if path.is_dir())]
        for path in folders:
            path.chmod(0o555)
        try:
            command = [sys.executable, "-c", PROGRAM, str(tmp_path / "allowed"), str(results)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert contents(results) == before
        finally:
            for path in folders:
                path.chmod(0o755)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"{results}/." in done.stderr and "you may not do this here" in done.stderr
