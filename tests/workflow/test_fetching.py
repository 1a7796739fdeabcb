"""Files that data are made from: fetched once, by a rule of their own, before the step that reads them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_mirror import CELL, mirror_for
from toy_study import CELLS_YAML, RUN, Tree, new_tree

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

NAMES = ["t10k-images-idx3-ubyte.gz", "train-images-idx3-ubyte.gz"]


@pytest.fixture
def tree(tmp_path: Path, new_checkout: Callable[[Path], Any]) -> Tree:
    tree = new_tree(new_checkout(tmp_path / "checkout"), cells=("digits",), pages=())
    tree.checkout.edit(CELLS_YAML, *CELL)
    return tree


def test_files_are_fetched_once_and_their_times_make_nothing_run_again(tree: Tree, tmp_path: Path) -> None:
    data = (*RUN, "--until", "data")
    with mirror_for(tree.checkout, tmp_path / "mirror") as asked:
        done = tree.checkout.dmdpipe(*data)
        assert done.returncode == 0, done.stdout + done.stderr
        assert sorted(asked) == [f"/{name}" for name in NAMES]
        assert sorted(path.name for path in (tree / "data/fashion-mnist").iterdir()) == NAMES
        made = tree.folder("data", "fashion") / "data.safetensors"
        before = made.stat().st_mtime_ns

        for path in (tree / "data/fashion-mnist").iterdir():
            path.touch()
        for again in (
            tree.checkout.dmdpipe(*data),
            tree.checkout.run([sys.executable, "-m", "snakemake", "--cores", "2", "--until", "data"], 100, {}),
        ):
            assert again.returncode == 0, again.stdout + again.stderr
        assert made.stat().st_mtime_ns == before and len(asked) == 2

        forced = tree.checkout.dmdpipe(*data, "--forceall")
        assert forced.returncode == 0, forced.stdout + forced.stderr
        assert made.stat().st_mtime_ns != before and len(asked) == 2


def test_a_file_that_no_mirror_has_is_one_line_on_the_terminal(tree: Tree, tmp_path: Path) -> None:
    with mirror_for(tree.checkout, tmp_path / "mirror"):
        (tmp_path / "mirror" / NAMES[0]).unlink()
        done = tree.checkout.dmdpipe(*RUN, "--until", "data")
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "cannot be fetched" in line]
    assert "404" in line and "DMDPIPE_FASHION_MNIST" in line
    assert not (tree / "results/data").exists()
