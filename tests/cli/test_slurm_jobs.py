"""Jobs that an earlier run left in SLURM, with programs in SLURM's place; tests/slurm has the real ones."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from dmdpipe import runner, slurm
from dmdpipe.artifacts.ticket import Ticket
from dmdpipe.errors import UserError
from dmdpipe.slurm import cancel_left_jobs, job_prefix, jobs_of
from dmdpipe.snakemake_arguments import executor_of

PROFILE = ("--profile", "profiles/slurm")


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of lines `id name` that squeue prints and from which scancel takes the jobs it is told.

    Unless it is asked for this user's own, squeue prints those of a file `others`, too; unless for the ids of whole
    arrays (%A), all are parts of one.
    """
    programs, queue = tmp_path / "programs", tmp_path / "queue"
    programs.mkdir()
    queue.touch()
    (tmp_path / "others").touch()
    scripts = {
        "squeue": f"""
            case " $* " in *" --me "*) listed={queue};; *) listed="{queue} {tmp_path}/others";; esac
            case "$*" in *%A*) cat $listed;; *) sed 's/^ *[0-9]*/&_1/' $listed;; esac""",
        "scancel": f'for job; do sed -i "/^ *$job /d" {queue}; done',
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return queue


def test_only_jobs_that_write_to_the_same_results_are_cancelled(queue: Path, tmp_path: Path) -> None:
    mine, other = job_prefix(tmp_path / "results"), job_prefix(tmp_path / "elsewhere/results")
    queue.write_text(f"  7 {mine}_3a1c\n 12 {other}_77aa\n123 {mine}_b2\n124 a name with spaces\n125 \n")
    # Another user's, with the same name by chance.
    (tmp_path / "others").write_text(f"200 {mine}_3a1c\n")
    assert jobs_of(tmp_path / "results") == ["7", "123"]
    assert cancel_left_jobs(tmp_path / "results") == ["7", "123"]
    assert queue.read_text().split()[0::2][0] == "12" and "124 a name" in queue.read_text()
    assert cancel_left_jobs(tmp_path / "results") == []


def test_the_prefix_is_the_folders_own_and_as_the_plugin_wants_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    prefix = job_prefix(Path("results"))
    assert prefix == job_prefix(tmp_path / "results")
    assert len(prefix) <= 50 and prefix.replace("-", "").isalnum()
    assert len({job_prefix(tmp_path / str(number)) for number in range(1_000)}) == 1_000


def test_jobs_that_do_not_end_are_named(queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.write_text(f"7 {job_prefix(tmp_path)}_1\n")
    (queue.parent / "programs/scancel").write_text("#!/bin/sh\n")
    monkeypatch.setattr(slurm, "SECONDS_TO_END", 0)
    with pytest.raises(UserError, match="do not end.* 7$"):
        cancel_left_jobs(tmp_path)


def test_a_slurm_that_does_not_answer_is_told_in_one_line(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (queue.parent / "programs/squeue").write_text("#!/bin/sh\necho 'squeue: no controller' >&2\nexit 1\n")
    with pytest.raises(UserError, match="squeue: no controller; is this machine part of"):
        jobs_of(Path("results"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="squeue: No such file or directory"):
        jobs_of(Path("results"))


def test_the_executor_is_found_in_words_and_profiles(checkout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout.folder)
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    assert executor_of([*PROFILE, "--config", "scale=smoke"]) == "slurm"
    assert executor_of(["--config", "scale=smoke"]) == "local"
    assert executor_of(["-e", "slurm"]) == executor_of(["--executor=slurm"]) == "slurm"
    assert executor_of(["--profile", "profiles/nonsense"]) == "local"
    monkeypatch.setenv("SNAKEMAKE_PROFILE", "profiles/slurm")
    assert executor_of([]) == "slurm"


@pytest.mark.parametrize(("words", "ends"), [(PROFILE, True), ((*PROFILE, "-n"), False), (("--cores", "1"), False)])
def test_a_run_on_slurm_ends_what_was_left_first_and_a_look_ends_nothing(
    words: tuple[str, ...],
    ends: bool,
    dmdpipe: Callable[..., Any],
    queue: Path,
    checkout: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = checkout.folder / "results"
    queue.write_text(f"7 {job_prefix(results)}_1\n")
    ticket = Ticket(results, "step")
    seen: list[tuple[list[str], bool, bool]] = []

    def start(arguments: list[str]) -> int:
        seen.append((arguments, bool(queue.read_text()), ticket.is_valid))
        return 1

    def refused() -> Any:
        assert words == ("--cores", "1"), "a server of this machine, for steps that run elsewhere"
        return nullcontext()

    monkeypatch.setattr(runner, "_snakemake", start)
    monkeypatch.setattr(runner, "fork_server", refused)
    outcome = dmdpipe("run", *words, "--config", "scale=smoke")
    ((arguments, is_left, is_valid),) = seen
    assert is_left is not ends
    assert is_valid is ("-n" in words)
    said = "dmdpipe: cancelled 1 job that an earlier run left in SLURM: 7\n"
    assert (said in outcome.err) is ends
    assert (job_prefix(results) in arguments) is ("--profile" in words)
