"""Links that a stranger planted in a tree of results: nothing is written or deleted through them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmdpipe.artifacts.links import refuse_links
from dmdpipe.artifacts.plan import plan
from dmdpipe.artifacts.step import open_step
from dmdpipe.errors import UserError
from dmdpipe.specs.data import Moons

DATA = plan("data", Moons(n_train=10))


def make(results: Path, log: Path | None = None) -> None:
    with open_step(DATA.canonical(), results / DATA.folder / "manifest.json", log) as step:
        step.write_tensors("data.safetensors", {"train": np.arange(3)})
        step.write_json("facts.json", {})
        step.progress(1, 2)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that no run may touch: it holds whatever a link may lead to."""
    folder = tmp_path / "outside"
    for name in ("file", "plan.json", "manifest.json", "checkpoint.safetensors"):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    return folder


def untouched(outside: Path) -> bool:
    files = {path.name: path.read_text() for path in outside.rglob("*")}
    return files == dict.fromkeys(("file", "plan.json", "manifest.json", "checkpoint.safetensors"), "mine")


PLACES = [".lock", ".progress", ".progress/plan.json", ".tmp", ".resume", "logs", "logs/data", "data", DATA.folder]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target", [".", "file", "absent"])
def test_a_run_refuses_a_link_before_it_opens_anything(
    dmdpipe: Callable[..., Any], checkout: Any, outside: Path, place: str, target: str
) -> None:
    link = checkout / "results" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / target)
    before = checkout.files()
    done = dmdpipe("run", "--config", "scale=smoke")
    assert (done.status, done.out) == (2, "")
    assert done.err == f"dmdpipe: results/{place}: is a link, which no run of ours makes; remove it and run again\n"
    assert untouched(outside) and checkout.files() == before


def test_the_root_of_the_results_may_be_a_link(dmdpipe: Callable[..., Any], checkout: Any, tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (checkout / "results").symlink_to(tmp_path / "large disk")
    assert dmdpipe("run", "--config", "scale=smoke").status == 99
    assert (tmp_path / "large disk/.progress/plan.json").is_file()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").touch()
    refuse_links(tmp_path)
    monkeypatch.chdir(tmp_path)
    if kind == "pipe":
        os.mkfifo("a/\n\x1b[31m")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("a/\n\x1b[31m")
    with pytest.raises(UserError, match="neither a folder nor an ordinary file") as error:
        refuse_links(tmp_path)
    assert str(error.value).isprintable()


def test_no_results_yet_hold_no_links(tmp_path: Path) -> None:
    refuse_links(tmp_path / "absent")


@pytest.mark.parametrize("place", [".tmp", ".progress", ".resume", "data", DATA.folder])
def test_a_step_refuses_to_write_through_a_link(
    tmp_path: Path, outside: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that leads to another folder of the same results."""
    results = tmp_path / "results"
    for target in (outside, results / "elsewhere"):
        target.mkdir(parents=True, exist_ok=True)
        link = results / place
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
        with pytest.raises(SystemExit):
            make(results)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and ("is a link" in said or "outside" in said)
        assert untouched(outside) and not list((results / "elsewhere").glob("*"))
        link.unlink()
    make(results)


def test_links_under_temporary_names_and_logs_are_replaced_not_followed(tmp_path: Path, outside: Path) -> None:
    results = tmp_path / "results"
    for place in (f".progress/{DATA.digest}.{os.getpid()}", f".progress/{DATA.digest}.json", "log"):
        (results / place).parent.mkdir(parents=True, exist_ok=True)
        if not place.endswith("json"):
            (results / place).symlink_to(outside / "file")
    make(results)
    with (
        pytest.raises(ZeroDivisionError),
        open_step(DATA.canonical(), results / DATA.folder / "manifest.json", results / "log"),
    ):
        print(1 / 0)
    assert untouched(outside) and "ZeroDivisionError" in (results / "log").read_text()
