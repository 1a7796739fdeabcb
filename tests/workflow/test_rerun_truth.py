"""Rerun truth: for each of many edits, exactly the steps that it concerns would run, by name. No more and no fewer."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_study import (
    CELLS_YAML,
    EVERYTHING,
    FIGURES,
    REPORT,
    RUN,
    SCALE,
    SECONDS,
    Tree,
    below,
    new_tree,
    published,
    steps,
)

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory, new_checkout: Callable[[Path], Any]) -> Tree:
    tree = new_tree(new_checkout(tmp_path_factory.mktemp("truth") / "checkout"))
    assert tree.would_run() == EVERYTHING
    tree.run()
    return tree


@pytest.fixture
def finished(finished_once: Tree, tmp_path: Path) -> Tree:
    """A copy of the finished checkout, times included, to do anything with."""
    shutil.copytree(finished_once.checkout.folder, tmp_path / "copy", symlinks=True)
    return Tree(type(finished_once.checkout)(tmp_path / "copy"))


# Edits of files


def replace(path: str, old: str, new: str) -> Callable[[Tree], None]:
    """Replace text in a file and keep the file's time, as after rsync or tar."""

    def edit(tree: Tree) -> None:
        times = (tree / path).stat()
        tree.checkout.edit(path, old, new)
        os.utime(tree / path, ns=(times.st_atime_ns, times.st_mtime_ns))

    return edit


def add(path: str, text: str) -> Callable[[Tree], None]:
    """Append to a file and keep its time."""

    def edit(tree: Tree) -> None:
        times = (tree / path).stat()
        (tree / path).write_text((tree / path).read_text().rstrip("\n") + f"\n\n\n{text}\n")
        os.utime(tree / path, ns=(times.st_atime_ns, times.st_mtime_ns))

    return edit


def code(module: str, text: str = "NEW = 1") -> Callable[[Tree], None]:
    return add(f"src/dmdpipe/{module}", text)


def rename_study(tree: Tree) -> None:
    (tree / CELLS_YAML).rename(tree / "config/studies/cellar.yaml")
    tree.checkout.edit("config/config.yaml", "[cells]", "[cellar]")


def reformat(tree: Tree) -> None:
    """Every file of the library on other lines, with other quotes, without comments."""
    import ast

    for path in (tree / "src/dmdpipe").rglob("*.py"):
        path.write_text(ast.unparse(ast.parse(path.read_text())))


EDITS: dict[str, tuple[Callable[[Tree], None], set[str]]] = {
    "a comment": (code("distill/loop.py", "# a word"), set()),
    "a docstring": (replace("src/dmdpipe/distill/loop.py", '"""The distillation loop', '"""The loop'), set()),
    "other formatting, everywhere": (reformat, set()),
    "the command line": (code("cli.py"), set()),
    "the runner": (code("runner.py"), set()),
    "the audit": (code("audit/verify.py"), set()),
    "a spec's unused definition": (code("specs/student.py"), set()),
    "a dataset of no cell": (code("data/moons.py"), set()),
    "a plot": (code("figures/curves.py"), FIGURES),
    "a verdict's rule": (code("evidence/verdicts.py"), REPORT - {"evidence"}),
    "the tables of a study": (code("evidence/results.py"), REPORT),
    "a metric": (code("copying/pairing_metrics.py"), below("metrics")),
    "the sampler": (
        code("diffusion/sampler.py"),
        steps("teacher_samples", "pairs", "metrics") | steps("student", cells=("regression",)) | REPORT,
    ),
    "a dataset": (code("data/ring.py"), below("data", cells=("ring",)) - {"noise ring"}),
    "a network": (code("networks/linear.py"), below("student", cells=("linear",))),
    "exact teachers": (code("diffusion/exact.py"), below("teacher", cells=("linear",))),
    "the DM loss": (code("distill/dmd.py"), below("student", cells=("digits", "ring", "linear"))),
    "the regression loss": (code("distill/regression.py"), below("student", cells=("regression",))),
    "the adversarial loss, of no cell": (code("distill/adversarial.py"), set()),
    "the oracle": (code("distill/oracle.py"), below("student", cells=("linear",))),
    "the loop": (code("distill/loop.py"), below("student")),
    "the noise": (code("pairing/bank.py"), below("noise")),
    "a script": (code("../../workflow/scripts/metrics.py", "print(1)"), below("metrics")),
    "a script's comment": (code("../../workflow/scripts/metrics.py", "# a word"), set()),
    "a notebook": (replace("reports/gate.ipynb", '"metadata"', ' "metadata"'), {"figures gate"}),
    "two values swapped": (
        replace(CELLS_YAML, "{data.family: ring}", "{data.family: ring, data.n_train: 60, data.n_held_out: 300}"),
        below("data", cells=("ring",)) - {"noise ring"},
    ),
    "a learning rate": (
        replace(CELLS_YAML, "{data.family: ring}", "{data.family: ring, student.recipe.generator.learning_rate: 0.5}"),
        below("student", cells=("ring",)),
    ),
    "the sampler's steps": (
        replace(SECONDS, "sampler.steps: 4", "sampler.steps: 5"),
        steps("teacher_samples", "pairs", "metrics") | REPORT,
    ),
    "threads of the students": (add(SECONDS, "  student.threads: 2"), below("student")),
    "threads of the teachers": (
        replace(CELLS_YAML, "{data.family: ring}", "{data.family: ring, score.threads: 2}"),
        below("teacher", cells=("ring",)),
    ),
    "an option of the metrics": (add(SECONDS, "  metrics.projections: 8"), below("metrics")),
    "a label": (replace(CELLS_YAML, "    ring: {", "    circle: {"), REPORT),
    "a study's words": (replace(CELLS_YAML, "What runs again?", "What does not?"), {"figures study_cells"}),
    "a study's name": (rename_study, REPORT - {"figures study_cells"} | {"figures study_cellar"}),
    "a cell taken away": (replace(CELLS_YAML, "    ring: {data.family: ring}\n", ""), REPORT),
    "a threshold": (replace("config/claims.yaml", "threshold: 0.5", "threshold: 0.45"), REPORT - {"evidence"}),
    "a default written out": (
        replace(CELLS_YAML, "{data.family: ring}", "{data.family: ring, student.batch: 256}"),
        set(),
    ),
    "the order of keys": (
        replace(CELLS_YAML, "data.family: digits, data.side: 2}", "data.side: 2, data.family: digits}"),
        set(),
    ),
    "the profile": (replace("profiles/default/config.yaml", "keep-going: true", "keep-going: false"), set()),
}


# Those for which Snakemake is asked, too. What it shows is what must run, whatever that is.
SHOWN = ("a comment", "a metric", "the regression loss", "a notebook", "a learning rate", "a study's name")


@pytest.mark.parametrize("case", EDITS)
def test_an_edit_reruns_exactly_what_it_concerns(finished: Tree, case: str) -> None:
    edit, expected = EDITS[case]
    edit(finished)
    assert finished.must_run() == expected
    if case in SHOWN:
        assert finished.would_run() == expected


def test_a_seed_more_makes_its_members_alone(finished: Tree) -> None:
    finished.checkout.edit(SECONDS, "seeds: 1", "seeds: 2")
    linear_teacher = {"teacher linear", "teacher_samples linear"}
    new = steps("teacher", "teacher_samples", "student", "pairs", "metrics") - linear_teacher
    assert finished.must_run() == new | REPORT


def test_another_scale_makes_its_own_and_loses_nothing(finished: Tree) -> None:
    before = {path: path.read_bytes() for path in (finished / "results").rglob("manifest.json")}
    (finished / "config/scales/minutes.yaml").write_text(SCALE.replace("generator_steps: 4", "generator_steps: 5"))
    assert finished.would_run("--config", "scale=minutes") == below("student")
    finished.checkout.edit("config/config.yaml", "scale: seconds", "scale: minutes")
    done = finished.checkout.dmdpipe("run", "--cores", "2", "study_cells")
    assert done.returncode == 0, done.stdout + done.stderr
    # Verdicts and figures are not what was asked for.
    assert finished.must_run() == REPORT - {"evidence"}
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_edit_taken_back_leaves_nothing_to_do(finished: Tree) -> None:
    code("seeds.py")(finished)
    assert finished.must_run() == EVERYTHING
    finished.checkout.edit("src/dmdpipe/seeds.py", "NEW = 1\n", "")
    assert finished.must_run() == set()


def test_another_lock_reruns_nothing_and_is_reported(finished: Tree) -> None:
    assert finished.verify() == []
    with (finished / "envs/base.txt").open("a") as lock:
        lock.write("# another\n")
    assert finished.must_run() == set()
    assert set(finished.verify()) == {"foreign environment"}


def test_everything_runs_again_if_that_is_forced(finished: Tree) -> None:
    shown = finished.checkout.dmdpipe(*RUN, "-n", "--forceall")
    assert f" {len(EVERYTHING) + 1}  steps to do" in shown.stdout + shown.stderr  # and the target


def make(tree: Tree, stage: str) -> None:
    """Make the steps of one stage that must run, and nothing that is made from them."""
    manifests = [
        str(path.relative_to(tree.checkout.folder)) for path in (tree / "results" / stage).glob("*/manifest.json")
    ]
    done = tree.checkout.dmdpipe(*RUN, *manifests)
    assert done.returncode == 0, done.stdout + done.stderr


def test_parents_made_again_with_the_same_bytes_rerun_nothing_once_that_is_accepted(finished: Tree) -> None:
    """From teachers down to pages; what is made again itself names other parents from then on."""
    for module, stage, children in (
        ("diffusion/training.py", "teachers", below("teacher") - steps("teacher")),
        ("copying/pairing_metrics.py", "metrics", REPORT),
    ):
        code(module)(finished)
        make(finished, stage)
        assert finished.must_run() == children
        accepted = finished.checkout.dmdpipe("audit", "accept", "results", "--reason", "equal bytes")
        assert accepted.returncode == 0, accepted.stdout + accepted.stderr
        assert finished.must_run() == finished.would_run() == set()
        assert finished.verify() == []


# Results that were copied, moved, touched


def touch(tree: Tree) -> Tree:
    for path in tree.checkout.folder.rglob("*"):
        os.utime(path)
    return tree


def copy_without_times(tree: Tree) -> Tree:
    target = tree.checkout.folder.with_name("moved")
    shutil.copytree(tree.checkout.folder, target, copy_function=shutil.copyfile)
    return Tree(type(tree.checkout)(target))


def through_tar(tree: Tree) -> Tree:
    target = tree.checkout.folder.with_name("unpacked")
    with tarfile.open(target.with_suffix(".tar"), "w") as archive:
        archive.add(tree.checkout.folder, ".")
    with tarfile.open(target.with_suffix(".tar")) as archive:
        archive.extractall(target, filter="data")
    return Tree(type(tree.checkout)(target))


def through_rsync(tree: Tree) -> Tree:
    """As rsync -a without the program: children before parents, times kept."""
    target = tree.checkout.folder.with_name("synced")
    subprocess.run(["cp", "-a", str(tree.checkout.folder), str(target)], check=True)
    return Tree(type(tree.checkout)(target))


def without_snakemakes_records(tree: Tree) -> Tree:
    shutil.rmtree(tree / ".snakemake")
    return touch(tree)


def in_another_folder(tree: Tree) -> Tree:
    shutil.rmtree(tree / ".snakemake")
    (tree / "results").rename(tree / "elsewhere")
    tree.checkout.edit("config/config.yaml", "results: results", "results: elsewhere")
    return touch(tree)


@pytest.mark.parametrize(
    "move",
    [touch, copy_without_times, through_tar, through_rsync, without_snakemakes_records, in_another_folder],
    ids=lambda move: move.__name__,
)
def test_results_are_adopted_wherever_they_lie(finished: Tree, move: Callable[[Tree], Tree]) -> None:
    moved = move(finished)
    assert moved.would_run() == set()
    code("copying/pairing_metrics.py")(moved)
    assert moved.must_run() == below("metrics")


# Results that were changed


def flip(path: Path) -> None:
    """Change one byte and keep the file's time."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, 0))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, tuple[str, Callable[[Path], None], set[str], set[str]]] = {
    "a final table is changed": ("verdicts/seconds/verdicts.csv", flip, {"verdicts"}, {"tampered"}),
    "a figure's page is cut": ("report/seconds/gate/notebook.html", truncate, {"figures gate"}, {"truncated"}),
    "a final file is deleted": ("studies/cells/seconds/results.csv", Path.unlink, {"evidence"}, {"missing"}),
    "a teacher is changed": ("teachers/ring*/model.safetensors", flip, {"teacher ring"}, {"tampered"}),
    "a teacher is deleted": ("teachers/ring*", shutil.rmtree, {"teacher ring"}, {"missing"}),
    "a table between is cut": ("metrics/ring*/metrics.parquet", truncate, {"metrics ring"}, {"truncated"}),
    "a manifest is changed": ("students/ring*/manifest.json", flip, {"student ring"}, {"tampered"}),
    "a manifest is deleted": ("students/ring*/manifest.json", Path.unlink, {"student ring"}, {"missing", "orphan"}),
    "what a run says of itself is deleted": ("students/ring*/run.json", Path.unlink, set(), set()),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_and_mended_and_touches_nothing_else(finished_once: Tree, finished: Tree, case: str) -> None:
    pattern, damage, expected, kinds = DAMAGE[case]
    (path,) = (finished / "results").glob(pattern)
    damage(path)
    assert set(finished.verify()) == kinds
    assert finished.must_run() == expected
    if expected:
        assert finished.would_run() == expected
        finished.run()
        assert finished.verify() == []
        assert published(finished) == published(finished_once)


def test_payloads_swapped_between_two_steps_are_made_again(finished: Tree) -> None:
    one, other = (finished.folder("students", name) / "snapshots.safetensors" for name in ("ring", "gaussian"))
    one.rename(one.with_name("kept"))
    other.rename(one)
    one.with_name("kept").rename(other)
    assert finished.must_run() == {"student ring", "student linear"}
    assert set(finished.verify()) & {"tampered", "truncated"}
