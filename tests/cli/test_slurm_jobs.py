"""What is done about jobs beside Snakemake's executor, with stand-ins for SLURM; tests/slurm has the real one."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from dmdpipe import runner, slurm
from dmdpipe.artifacts.ticket import Ticket
from dmdpipe.errors import UserError
from dmdpipe.slurm import cancel_left_jobs, job_prefix, jobs_of, preempted_jobs_put_back, status_command
from dmdpipe.snakemake_arguments import executor_of, status_settings_of

PROFILE = ("--profile", "profiles/slurm")
CONFIG = """Configuration data as of 2026-11-28T12:00:00
AccountingStorageHost   = localhost
AccountingStorageType   = accounting_storage/{accounts}
MessageTimeout          = 10 sec
MinJobAge               = {age}
SLURM_VERSION           = 22.05.8
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of lines `id name` that squeue prints and from which scancel takes the jobs it is told.

    Unless it is asked for this user's own, squeue prints those of a file `others`, too; unless for the ids of whole
    arrays (%A), all are parts of one. For what was preempted it looks into the file `preempted`, from which `scontrol
    requeue` takes jobs; `scontrol show config` prints the file `config`.
    """
    programs, queue = tmp_path / "programs", tmp_path / "queue"
    programs.mkdir()
    queue.touch()
    (tmp_path / "others").touch()
    (tmp_path / "preempted").touch()
    (tmp_path / "config").write_text(CONFIG.format(age="300 sec", accounts="none"))
    scripts = {
        "squeue": f"""
            case " $* " in
                *" --states=PREEMPTED "*) listed={tmp_path}/preempted;;
                *" --me "*) listed={queue};;
                *) listed="{queue} {tmp_path}/others";;
            esac
            case "$*" in *%A*) cat $listed;; *) sed 's/^ *[0-9]*/&_1/' $listed;; esac""",
        "scancel": f'for job; do sed -i "/^ *$job /d" {queue}; done',
        "scontrol": f"""
            if [ "$*" = "show config" ]; then exec cat {tmp_path}/config; fi
            if [ "$1 $2" = "requeue 9" ]; then echo "not this one" >&2; exit 1; fi
            sed -i "/^$2 /d" {tmp_path}/preempted
            echo "$*" >>{tmp_path}/asked""",
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


@pytest.mark.parametrize(
    ("asked", "first", "age", "accounts", "chosen"),
    [
        ("squeue", 10, "300 sec", "none", "squeue"),
        ("squeue", 10, "300 sec", "slurmdbd", "squeue"),
        ("sacct", 10, "2 sec", "slurmdbd", "sacct"),
        ("sacct", 10, "300 sec", "slurmdbd", "sacct"),
        ("sacct", 10, "300 sec", "none", "squeue"),
        # The executor asks every three minutes only, when nothing ends for long.
        ("squeue", 10, "180 sec", "slurmdbd", "sacct"),
        ("squeue", 10, "180 sec", "none", ""),
        # It never asks squeue where that forgets within three times the seconds before its first question.
        ("squeue", 120, "300 sec", "slurmdbd", "sacct"),
        ("squeue", 120, "300 sec", "none", ""),
        ("sacct", 10, "2 sec", "none", ""),
        # Nothing is ever forgotten, but the executor does not know.
        ("squeue", 10, "0 sec", "none", ""),
        ("squeue", 10, "(null)", "none", ""),
    ],
)
def test_jobs_are_asked_for_where_their_end_is_known_for_long_enough(
    queue: Path, capsys: Any, asked: str, first: int, age: str, accounts: str, chosen: str
) -> None:
    (queue.parent / "programs/sacct").write_text("#!/bin/sh\n")
    (queue.parent / "programs/sacct").chmod(0o755)
    (queue.parent / "config").write_text(CONFIG.format(age=age, accounts=accounts))
    if not chosen:
        needed = max(200, 3 * first)
        with pytest.raises(UserError, match=rf"MinJobAge \({re.escape(age)}\).* at least {needed} seconds"):
            status_command(asked, first)
        return
    assert status_command(asked, first) == chosen
    assert capsys.readouterr().err.count(f"{chosen} is asked\n") == (chosen != asked)


def test_accounts_that_no_program_asks_for_are_none(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.format(age="60 sec", accounts="slurmdbd")
    (queue.parent / "programs/scontrol").write_text(f"#!/bin/sh\necho '{config}'\n")
    monkeypatch.setenv("PATH", str(queue.parent / "programs"))
    with pytest.raises(UserError, match="keeps no accounts"):
        status_command("squeue", 10)


def test_what_the_executor_is_told_to_ask_is_read_as_it_reads_it(
    checkout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout.folder)
    assert status_settings_of([*PROFILE]) == ("squeue", 10)
    words = ("--slurm-status-command", "sacct", "--slurm-init-seconds-before-status-checks", "7")
    assert status_settings_of([*PROFILE, *words]) == ("sacct", 7)
    with pytest.raises(UserError, match="slurm: .*'sacct' or 'squeue'"):
        status_settings_of([*PROFILE, "--slurm-status-command", "ps"])


@pytest.mark.parametrize("look", [(), ("-n",)])
def test_where_a_run_could_wait_for_ever_it_ends_in_one_line_before_it_starts(
    look: tuple[str, ...], dmdpipe: Callable[..., Any], queue: Path, checkout: Any
) -> None:
    (queue.parent / "config").write_text(CONFIG.format(age="120 sec", accounts="none"))
    left = f"7 {job_prefix(checkout.folder / 'results')}_1\n"
    queue.write_text(left)
    outcome = dmdpipe("run", *PROFILE, "--config", "scale=smoke", *look)
    assert queue.read_text() == left
    assert outcome.status == (99 if look else 2)  # 99: Snakemake was started
    assert ("MinJobAge (120 sec)" in outcome.err) is not look
    if not look:
        assert outcome.err.count("\n") == 1 and not (checkout.folder / "results").exists()


class Heard(io.StringIO):
    """A stderr that keeps all: what a thread prints while pytest empties its own capture would be lost."""

    def wait_for(self, words: str, times: int) -> str:
        """Return all that was said, once these words have been so many times."""
        deadline = time.monotonic() + 30
        while self.getvalue().count(words) < times:
            assert time.monotonic() < deadline, self.getvalue()
        return self.getvalue()


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    """What is said by a run that looks for preempted jobs all the time."""
    monkeypatch.setattr(slurm, "SECONDS_BETWEEN_QUESTIONS", 0.01)
    return Heard()


def test_preempted_jobs_of_this_run_are_put_back_and_no_others(queue: Path, tmp_path: Path, heard: Heard) -> None:
    mine, other = job_prefix(tmp_path / "results"), job_prefix(tmp_path / "elsewhere")
    preempted = tmp_path / "preempted"
    preempted.write_text(f"3 {mine}_of_an_earlier_run\n")
    others = f"3 {mine}_of_an_earlier_run\n9 {mine}_b\n8 {other}_b\n"
    with redirect_stderr(heard), preempted_jobs_put_back(tmp_path / "results"):
        for times in (1, 2):  # a job can be preempted again
            (tmp_path / "new").write_text(f"{others}7 {mine}_a\n")
            (tmp_path / "new").replace(preempted)
            heard.wait_for("job 7 was preempted, and is back in SLURM's queue\n", times)
    words = "job 9 was preempted, and nothing puts it back: stop this run and start it again (scontrol: not this one)\n"
    assert heard.wait_for(words, 1).count("job 9") == 1
    assert (tmp_path / "asked").read_text() == "requeue 7\nrequeue 7\n"
    assert preempted.read_text() == others


def test_a_controller_that_is_busy_is_asked_again(queue: Path, tmp_path: Path, heard: Heard) -> None:
    squeue, answering = tmp_path / "programs/squeue", tmp_path / "answering"
    squeue.rename(answering)
    squeue.write_text(
        f'#!/bin/sh\n[ -e {tmp_path}/refused ] && exec {answering} "$@"\ntouch {tmp_path}/refused\nexit 1\n'
    )
    squeue.chmod(0o755)
    (tmp_path / "refused").touch()
    with redirect_stderr(heard), preempted_jobs_put_back(tmp_path):
        (tmp_path / "preempted").write_text(f"7 {job_prefix(tmp_path)}_a\n")
        (tmp_path / "refused").unlink(missing_ok=True)
        heard.wait_for("job 7 was preempted, and is back", 1)
    assert (tmp_path / "refused").exists()
