"""Students that train together, through the real rules: one training, a folder each, mended like any other step."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from checkouts import Checkout
from toy_study import SECONDS, Tree, new_tree, published

pytestmark = pytest.mark.workflow


def test_an_ensemble_is_run_audited_and_mended(tmp_path: Path, new_checkout: Callable[[Path], Checkout]) -> None:
    tree = new_tree(new_checkout(tmp_path / "checkout"), cells=("digits", "regression"), pages=())
    tree.checkout.edit(SECONDS, "seeds: 1", "seeds: 2")
    tree.checkout.edit(SECONDS, "  student.snapshots: 3", "  student.snapshots: 3\n  student.together: true")
    tree.run()
    kinds = ("students", "ensembles", "members")
    assert [len(list((tree / "results" / kind).iterdir())) for kind in kinds] == [2, 1, 2]
    before = published(tree)
    assert tree.verify() == []

    member = tree.folder("members", "digits-2x2_teacher_dmd2_sigma80_seed1_of2")
    (member / "history.parquet").write_bytes(b"damaged")
    assert tree.verify() != []
    assert would_run(tree) == ["member"]
    tree.run()
    assert published(tree) == before

    tree.checkout.edit("src/dmdpipe/distill/ensemble.py", "1 - optimiser.beta1)", "2 - optimiser.beta1)")
    stages = would_run(tree)
    assert stages.count("ensemble") == 1 and stages.count("member") == 2 and "student" not in stages


def would_run(tree: Tree) -> list[str]:
    """The stage of every step that the next run would make, as Snakemake shows it."""
    shown = tree.checkout.dmdpipe("run", "-n")
    assert shown.returncode == 0, shown.stderr
    return re.findall(r"^(\w+) \S+  \(.*\)$", shown.stdout + shown.stderr, re.MULTILINE)
