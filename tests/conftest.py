"""What several folders of tests share: a private copy of the checkout, and the command line run inside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkouts import Checkout, copy_checkout


@pytest.fixture(scope="session")
def new_checkout() -> Callable[[Path], Checkout]:
    """Make a fresh copy of the checkout in a folder."""
    return copy_checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A fresh copy of the checkout."""
    return copy_checkout(tmp_path / "checkout")


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
