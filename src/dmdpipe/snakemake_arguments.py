"""What the words of a Snakemake command line ask for, as far as ``dmdpipe run`` must know it."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import redirect_stderr
from typing import Any

from dmdpipe.errors import UserError
from dmdpipe.specs.problems import parse_yaml

SHORT = {
    **{"n": "--dry-run", "l": "--list-rules", "S": "--summary", "D": "--detailed-summary", "t": "--touch"},
    **{"v": "--version", "h": "--help", "f": "--force", "F": "--forceall", "R": "--forcerun", "C": "--config"},
    **{"U": "--until", "O": "--omit-from", "p": "--printshellcmds", "k": "--keep-going", "a": "--allow-ambiguity"},
    **{"e": "--executor"},
}
# Letters of options without a value, after which more may follow in one word, as in -pn.
FLAGS = "nlSDtvhfFpka"
LOCAL = "local"
DRY = ("--dry-run", "--dryrun")
FORCING = ("--force", "--forceall", "--forcerun")
# Steps are planned, but some of them only.
PARTIAL = ("--until", "--omit-from", "--batch")
# Another executor than the local one can stand in these.
EXECUTING = ("--executor", "--profile", "--workflow-profile")
# Snakemake plans no steps of ours with these.
ELSE = (
    *("--help", "--version", "--unlock", "--lint", "--touch", "--print-compilation", "--containerize", "--export-cwl"),
    *(
        "--list-rules",
        "--list",
        "--list-target-rules",
        "--lt",
        "--list-changes",
        "--lc",
        "--list-input-changes",
        "--li",
    ),
    *("--list-params-changes", "--lp", "--list-untracked", "--lu", "--list-conda-envs", "--conda-create-envs-only"),
    *("--dag", "--rulegraph", "--filegraph", "--d3dag", "--summary", "--detailed-summary", "--report", "--archive"),
    *("--delete-all-output", "--delete-temp-output", "--cleanup-metadata", "--cm", "--cleanup-shadow"),
    *("--conda-cleanup-envs", "--conda-cleanup-pkgs", "--edit-notebook", "--draft-notebook", "--generate-unit-tests"),
)


def plans_steps(arguments: list[str]) -> bool:
    """Whether Snakemake, given these arguments, works out what to run."""
    return not _asks(arguments, ELSE)


def plans_all_steps(arguments: list[str]) -> bool:
    """Whether no option keeps Snakemake from running every step of its targets."""
    return not _asks(arguments, (*ELSE, *DRY, *PARTIAL))


def runs_nothing(arguments: list[str]) -> bool:
    """Whether the arguments ask for a look at what would run."""
    return _asks(arguments, DRY)


def forces(arguments: list[str]) -> bool:
    """Whether the arguments make Snakemake run what is up to date."""
    return _asks(arguments, FORCING)


def asks_for_all(arguments: list[str]) -> bool:
    """Whether the arguments hold nothing but configuration: no target, and no option of Snakemake."""
    options = ("--config", "-C")
    pairs = [word for word in arguments if word not in options]
    return not arguments or (arguments[0] in options and all(re.match(r"[^-=][^=]*=", pair) for pair in pairs))


def executor_of(arguments: list[str]) -> str:
    """Return the name of Snakemake's executor, which a profile can choose: ``local`` if nothing names another."""
    if not (_asks(arguments, EXECUTING) or "SNAKEMAKE_PROFILE" in os.environ):
        return LOCAL
    from snakemake.cli import parse_args  # takes a second, and most runs are local

    try:
        with redirect_stderr(io.StringIO()):
            _, options = parse_args(arguments)
    except (Exception, SystemExit):  # Snakemake says what is wrong with them when it is started
        return LOCAL
    return options.executor or LOCAL


def status_settings_of(arguments: list[str]) -> tuple[str, int]:
    """Return what Snakemake's executor for SLURM asks how jobs are, and after how many seconds first.

    Args:
        arguments: such that ``executor_of`` names this executor.

    Raises:
        UserError: if one of the executor's own options is not valid.
    """
    from snakemake.cli import parse_args
    from snakemake_interface_common.exceptions import WorkflowError
    from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

    with redirect_stderr(io.StringIO()):
        _, options = parse_args(arguments)
    try:
        settings = ExecutorPluginRegistry().get_plugin(options.executor).get_settings(options)
    except WorkflowError as error:
        raise UserError(f"{options.executor}: {error}") from None
    return settings.status_command, settings.init_seconds_before_status_checks


def with_forced(arguments: list[str], names: list[str]) -> list[str]:
    """Return arguments with which Snakemake runs what ``names`` say, and nothing because of times or its own records.

    What the user forces is forced, too: of an option that stands twice Snakemake would hear the last one only.
    """
    quiet = ["--rerun-triggers", "mtime"]
    for place, word in enumerate(arguments):
        long, _, value = word.partition("=")
        if long == "--forcerun" or (word.startswith("-R") and not word.startswith("--")):
            value = value if long == "--forcerun" else word[2:].removeprefix("=")
            forced = [value] if value else []
            return [*arguments[:place], "--forcerun", *names, *forced, *arguments[place + 1 :], *quiet]
    return [*arguments, *quiet, *(["--forcerun", *names] if names else [])]


def with_config(arguments: list[str], pair: str) -> list[str]:
    """Return arguments with one more ``key=value`` of configuration, which overrules an earlier one of that key."""
    for place in range(len(arguments) - 1, -1, -1):
        if _is_config(arguments[place]):
            end = place + 1
            while end < len(arguments) and not arguments[end].startswith("-"):
                end += 1
            return [*arguments[:end], pair, *arguments[end:]]
    return [*arguments, "--config", pair]


def config_overrides(arguments: list[str]) -> dict[str, Any]:
    """Return the ``key=value`` pairs after ``--config`` or ``-C``, values read as YAML as Snakemake does.

    Raises:
        UserError: for a word that is no pair.
    """
    overrides: dict[str, Any] = {}
    inside = False
    for word in arguments:
        if _is_config(word):
            inside, word = True, word.removeprefix("--config").removeprefix("-C").removeprefix("=")
        elif word.startswith("-"):
            inside = False
        if inside and word:
            key, equals, value = word.partition("=")
            if not equals:
                raise UserError(f"--config: '{word}' is no key=value pair, e.g. scale=smoke")
            overrides[key] = parse_yaml(value, f"--config {word}")
    return overrides


def _is_config(word: str) -> bool:
    """Whether a word is the option ``--config`` or ``-C``, perhaps with the first pair attached."""
    return word.partition("=")[0] == "--config" or (word.startswith("-C") and not word.startswith("--"))


def _asks(arguments: list[str], names: tuple[str, ...]) -> bool:
    """Whether one of these options is there, perhaps by a shortened name, as Snakemake allows."""
    return any(name.startswith(option) for option in _options(arguments) for name in names)


def _options(arguments: list[str]) -> Iterator[str]:
    """Yield every option by its long name, if one is known."""
    for word in arguments:
        if word.startswith("--"):
            if word != "--":
                yield word.partition("=")[0]
        elif word.startswith("-"):
            for letter in word[1:]:
                yield SHORT.get(letter, f"-{letter}")
                if letter not in FLAGS:
                    break
