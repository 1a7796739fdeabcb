"""What `dmdpipe run` understands of Snakemake's words, and how often it starts Snakemake."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from dmdpipe import runner
from dmdpipe.errors import UserError
from dmdpipe.snakemake_arguments import (
    asks_for_all,
    config_overrides,
    forces,
    plans_all_steps,
    plans_steps,
    runs_nothing,
    with_config,
    with_forced,
)


@pytest.mark.parametrize(
    ("words", "plans", "plans_all", "is_look"),
    [
        ("", True, True, False),
        ("-p --cores 2", True, True, False),
        ("--printshellcmds", True, True, False),
        ("--notemp -k --nolock", True, True, False),
        ("-j2 -qrules", True, True, False),
        ("-n", True, False, True),
        ("--dry-run", True, False, True),
        ("--dryrun", True, False, True),
        ("--dry", True, False, True),
        ("-pn", True, False, True),
        ("-kpn", True, False, True),
        ("--until student", True, False, False),
        ("--until=student", True, False, False),
        ("-U student", True, False, False),
        ("--batch student=1/2", True, False, False),
        ("-l", False, False, False),
        ("--list", False, False, False),
        ("--print-compilation", False, False, False),
        ("--dag", False, False, False),
        ("--export-cwl x.cwl", False, False, False),
        ("--generate-unit-tests", False, False, False),
        ("--report=x.html", False, False, False),
        ("--touch", False, False, False),
    ],
)
def test_options_that_keep_snakemake_from_running_everything_are_known(
    words: str, plans: bool, plans_all: bool, is_look: bool
) -> None:
    arguments = words.split()
    assert (plans_steps(arguments), plans_all_steps(arguments), runs_nothing(arguments)) == (plans, plans_all, is_look)


@pytest.mark.parametrize(
    ("words", "forced"),
    [
        ("-R student", "--forcerun m student"),
        ("-Rstudent", "--forcerun m student"),
        ("--forcerun student", "--forcerun m student"),
        ("--forcerun=student", "--forcerun m student"),
        ("-R=student teacher --cores 2", "--forcerun m student teacher --cores 2"),
    ],
)
def test_what_the_user_forces_is_forced_beside_ours(words: str, forced: str) -> None:
    assert with_forced(words.split(), ["m"]) == [*forced.split(), "--rerun-triggers", "mtime"]
    assert forces(words.split())


def test_without_forced_words_ours_come_last() -> None:
    assert with_forced(["--cores", "2"], ["m"])[-2:] == ["--forcerun", "m"]
    assert "--forcerun" not in with_forced(["--cores", "2"], [])
    assert not forces(["--printshellcmds", "-p", "--cores", "2"])


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("study_a", "study_a --config studies=[b]"),
        ("study_a --config scale=smoke", "study_a --config scale=smoke studies=[b]"),
        ("study_a -C studies=[a] scale=smoke -n", "study_a -C studies=[a] scale=smoke studies=[b] -n"),
        ("study_a -Cscale=smoke", "study_a -Cscale=smoke studies=[b]"),
        ("--config=scale=smoke --cores 2 study_a", "--config=scale=smoke studies=[b] --cores 2 study_a"),
    ],
)
def test_one_more_pair_of_configuration_overrules_what_stands_before(words: str, more: str) -> None:
    assert with_config(words.split(), "studies=[b]") == more.split()
    assert config_overrides(more.split())["studies"] == ["b"]


@pytest.mark.parametrize(
    ("words", "is_plain"),
    [
        ("", True),
        ("--config scale=smoke", True),
        ("-C scale=smoke results=there --config studies=[validity]", True),
        ("--config", True),
        ("scale=smoke", False),
        ("nonsense", False),
        ("--config scale=smoke --until student", False),
        ("--config scale=smoke --forceall", False),
        ("--nonsense --config scale=smoke", False),
        ("-n", False),
        ("--config scale=smoke -n", False),
        ("--config --nonsense=1", False),
        ("--config scale=smoke student", False),
    ],
)
def test_words_beside_the_configuration_are_left_to_snakemake(words: str, is_plain: bool) -> None:
    assert asks_for_all(words.split()) == is_plain


@pytest.mark.parametrize(("words", "starts"), [("", 0), ("--forceall", 1), ("-n", 1), ("nonsense", 1)])
def test_snakemake_is_not_started_for_nothing(
    words: str, starts: int, dmdpipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(runner, "_snakemake", lambda arguments: started.append(arguments) or 0)
    monkeypatch.setattr(runner, "fork_server", nullcontext)
    monkeypatch.setattr(runner, "are_current", lambda statuses: True)
    monkeypatch.setattr(runner, "_report", lambda *given: None)
    outcome = dmdpipe("run", *words.split(), "--config", "scale=smoke")
    assert (outcome.status, len(started)) == (0, starts)
    assert ("Nothing to be done" in outcome.err) == (starts == 0)


@pytest.mark.parametrize("words", ["--until data", "--forceall --until data", "--cores 2"])
def test_steps_that_stay_absent_are_not_tried_again(
    words: str, dmdpipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(runner, "_snakemake", lambda arguments: started.append(arguments) or 0)
    monkeypatch.setattr(runner, "fork_server", nullcontext)
    monkeypatch.setattr(runner, "_report", lambda *given: None)
    assert dmdpipe("run", *words.split(), "--config", "scale=smoke").status == 0
    assert len(started) == 1


def test_a_file_in_the_place_of_snakemakes_folder_is_named(dmdpipe: Callable[..., Any]) -> None:
    Path(".snakemake").touch()
    outcome = dmdpipe("run", "--config", "scale=smoke")
    assert (outcome.status, outcome.out) == (2, "") and outcome.err.count("\n") == 1
    assert ".snakemake: is a file" in outcome.err


def test_a_word_after_config_that_is_no_pair_is_refused() -> None:
    with pytest.raises(UserError, match="'scale' is no key=value pair"):
        runner.config_overrides(["--config", "scale"])


def test_a_study_that_is_not_configured_runs_when_it_is_named(
    dmdpipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(runner, "_snakemake", lambda arguments: started.append(arguments) or 0)
    monkeypatch.setattr(runner, "fork_server", nullcontext)
    words = ("study_auxiliary", "--config", "scale=smoke", "studies=[validity]")
    assert dmdpipe("run", *words).status == 0
    assert started[0][: len(words) + 1] == [*words, "studies=[validity, auxiliary]"]
    refused = dmdpipe("run", "study_auxilary")
    assert refused.status == 2 and "did you mean 'study_auxiliary'?" in refused.err
