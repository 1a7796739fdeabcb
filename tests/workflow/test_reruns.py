"""What makes Snakemake run a step again, and what must not: on one small study."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.workflow

ALL_STEPS = Counter(
    {**dict.fromkeys(("data", "noise", "teacher", "teacher_samples", "student", "pairs", "metrics"), 2), "evidence": 1}
)
MEASURING = Counter({"metrics": 2, "evidence": 1})
STUDY = "config/studies/dimension.yaml"


def test_a_fresh_checkout_runs_every_step(unfinished: Any) -> None:
    assert unfinished.would_run() == ALL_STEPS


def test_a_finished_run_has_nothing_to_do(finished: Any) -> None:
    before = finished.published(), finished.times()
    started = time.monotonic()
    done = finished.run()
    assert "Nothing to be done" in done.stdout + done.stderr
    assert time.monotonic() - started < 30  # about 3 on an idle machine
    assert (finished.published(), finished.times()) == before


def test_what_was_made_is_whole_and_nothing_else_is_left(finished: Any) -> None:
    folders = [manifest.parent for manifest in (finished / "results").rglob("manifest.json")]
    assert len(folders) == sum(ALL_STEPS.values())
    for folder in folders:
        payload = json.loads((folder / "manifest.json").read_text())["result"]["payload"]
        assert {path.name for path in folder.iterdir()} == {*payload, "manifest.json", "run.json"}
    for temporary in (".tmp", ".resume"):
        assert not [path for path in (finished / "results" / temporary).rglob("*") if path.is_file()]
    assert {path.name for path in (finished / "results/.progress").iterdir()} <= {"plan.json"}


def test_another_hash_seed_another_folder_and_no_fork_server_give_the_same_bytes(
    finished_once: Any, unfinished: Any
) -> None:
    unfinished.run(PYTHONHASHSEED="1", DMDPIPE_FORK_SERVER="nowhere")
    first, second = finished_once.published(), unfinished.published()
    assert first.keys() == second.keys()
    assert sum(name.endswith("manifest.json") for name in first) == sum(ALL_STEPS.values())
    assert [name for name in first if first[name] != second[name]] == []


def test_a_terminated_run_stops_its_steps_and_is_finished_by_the_next(finished_once: Any, unfinished: Any) -> None:
    with unfinished.started() as run:
        assert any("done in" in line for line in run.stderr)
        run.terminate()
        run.stderr.read()
    assert run.returncode != 0
    # Every step holds the lock's owner up; and none of them has left a half-written folder.
    with (unfinished / "results/.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not list((unfinished / "results/.tmp").iterdir())
    assert sum(unfinished.would_run().values()) < sum(ALL_STEPS.values())
    unfinished.run()
    assert unfinished.published() == finished_once.published()


def test_touched_files_rerun_nothing(finished: Any) -> None:
    for path in finished.checkout.folder.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path)
    assert finished.would_run() == Counter()


def test_a_copy_with_new_times_reruns_nothing(finished: Any, tmp_path: Path) -> None:
    for path in sorted(finished.checkout.folder.iterdir(), reverse=True):
        if path.is_dir():
            shutil.copytree(path, tmp_path / "moved" / path.name, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(path, tmp_path / "moved" / path.name)
    moved = type(finished)(type(finished.checkout)(tmp_path / "moved"))
    assert moved.would_run() == Counter()


@pytest.mark.parametrize("name", ["results.csv", "results.parquet", "gallery.parquet", "manifest.json"])
def test_a_deleted_final_file_is_made_again_and_nothing_else(finished: Any, name: str) -> None:
    (finished / f"results/studies/dimension/tiny/{name}").unlink()
    assert finished.would_run() == Counter({"evidence": 1})


def test_deleted_steps_are_made_again_with_what_was_made_from_them_left_alone(finished: Any) -> None:
    before = finished.published()
    for stage in ("pairs", "students", "noise"):
        (folder,) = (finished / f"results/{stage}").glob("d*4_seed0-*" if stage == "noise" else "digits-2x2*")
        shutil.rmtree(folder)
    assert finished.would_run() == Counter({"pairs": 1, "student": 1, "noise": 1})
    finished.run()
    assert finished.published() == before


def test_a_changed_value_reruns_what_it_concerns_and_keeps_the_old_results(finished: Any) -> None:
    before, times = finished.published(), finished.times()
    finished.checkout.edit(STUDY, "{data.side: 4}", "{data.side: 4, student.generator_steps: 6}")
    concerned = Counter({"student": 1, "pairs": 1, "metrics": 1, "evidence": 1})
    assert finished.would_run() == concerned
    finished.run()
    after = finished.published()
    keyed = {name for name in before if not name.startswith("studies/")}
    assert {name: after[name] for name in keyed} == {name: before[name] for name in keyed}
    now = finished.times()
    assert {path for path, at in times.items() if now[path] != at and "/logs/" not in path} == {
        str(path) for path in (finished / "results/studies/dimension/tiny").iterdir()
    }
    new = {name.partition("/")[0] for name in after.keys() - before.keys()}
    assert new == {"students", "pairs", "metrics"}
    finished.checkout.edit(STUDY, "{data.side: 4, student.generator_steps: 6}", "{data.side: 4}")
    assert finished.would_run() == Counter({"evidence": 1})
    finished.run()
    back = finished.published()
    assert {name: back[name] for name in before} == before


def test_a_new_label_runs_the_new_cell_only(finished: Any) -> None:
    finished.checkout.edit(STUDY, '["4", "16"]', '["4", "16", "64"]')
    assert finished.would_run() == Counter(dict.fromkeys(ALL_STEPS, 1))


def test_a_new_seed_runs_the_new_seed_only(finished: Any) -> None:
    finished.checkout.edit("config/scales/tiny.yaml", "seeds: 1", "seeds: 2")
    new = dict.fromkeys(("teacher", "teacher_samples", "student", "pairs", "metrics"), 2)
    assert finished.would_run() == Counter({**new, "evidence": 1})


def test_a_renamed_study_or_label_measures_nothing_anew(finished: Any) -> None:
    finished.checkout.edit(STUDY, '"16": {data.side: 4}', '"4x4": {data.side: 4}')
    finished.checkout.edit(STUDY, '["4", "16"]', '["4", "4x4"]')
    finished.checkout.edit(STUDY, "title: Dimension", "title: Another")
    assert finished.would_run() == Counter({"evidence": 1})


CODE = "\n\n\nNEW = 1\n"
WORDS = '\n\n\n"""A word."""\n# another\n'
EDITS: dict[str, tuple[dict[str, str], Counter[str]]] = {
    "what cannot matter": (
        {
            # Comments, docstrings and formatting of code that every step or some of them reach.
            **dict.fromkeys(("copying/nulls.py", "seeds.py", "diffusion/sampler.py"), WORDS),
            # Code that no step of this study reaches: other data, other networks, figures, verdicts, commands.
            **dict.fromkeys(("data/moons.py", "diffusion/exact.py", "networks/linear.py", "figures/curves.py"), CODE),
            **dict.fromkeys(("evidence/verdicts.py", "cli.py", "runner.py", "specs/study.py"), CODE),
        },
        Counter(),
    ),
    "a metric": ({"copying/nulls.py": CODE}, MEASURING),
    "the evidence": ({"evidence/results.py": CODE}, Counter({"evidence": 1})),
    "the distillation": ({"distill/dmd.py": CODE}, Counter({"student": 2, "pairs": 2}) + MEASURING),
    "the data": ({"data/digits.py": CODE}, ALL_STEPS - Counter({"noise": 2})),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edit_of_code_reruns_the_steps_that_can_reach_it(finished: Any, case: str) -> None:
    edits, rerun = EDITS[case]
    for path, addition in edits.items():
        source = finished / f"src/dmdpipe/{path}"
        times = source.stat()
        source.write_text(source.read_text().rstrip() + addition)
        # As after rsync or tar: the content is new, the time is not.
        os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert finished.would_run() == rerun


@pytest.mark.parametrize("option", ["-np", "--list-rules", "--version", "--unlock"])
def test_options_that_only_look_end_well_and_run_nothing(unfinished: Any, option: str) -> None:
    done = unfinished.checkout.dmdpipe("run", "--config", "scale=tiny", "studies=[dimension]", "--cores", "1", option)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not list((unfinished / "results").rglob("manifest.json"))


def test_data_that_are_missing_are_one_line_on_the_terminal(unfinished: Any) -> None:
    unfinished.checkout.edit(STUDY, "data.family: digits", "data.family: fashion")
    done = unfinished.checkout.dmdpipe(
        "run", "--config", "scale=tiny", "--cores", "1", "study_dimension", DMDPIPE_FASHION_MNIST="/nowhere"
    )
    assert done.returncode != 0
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "/nowhere" in line]
    assert lines and all("DMDPIPE_FASHION_MNIST names /nowhere, which is not a folder" in line for line in lines)
    assert "Traceback" not in done.stdout + done.stderr
    assert not list((unfinished / "results/data").rglob("*.*"))
