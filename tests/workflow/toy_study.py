"""A toy study with a cell of every kind, run by the real rules in seconds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCALE = """
title: Seconds, for tests
seeds: 1
set:
  data.n_train: 300
  data.n_held_out: 60
  score.steps: 10
  score.network: {width: 8, depth: 1}
  sampler.steps: 4
  student.generator_steps: 4
  student.snapshots: 3
  bank.n_paired: 40
  bank.n_held_out: 64
  bank.n_reference_sets: 2
"""
STUDY = """
number: 90
title: Cells of every kind
question: What runs again?
prediction: What must.
axes:
  cell:
    digits: {data.family: digits, data.side: 2}
    ring: {data.family: ring}
    regression: {data.family: digits, data.side: 2, student.recipe: regression}
    linear:
      data.family: gaussian
      data.dim: 3
      score.kind: exact
      student.network.kind: linear
      student.recipe.fake: oracle
"""
CELLS_YAML = "config/studies/cells.yaml"
SECONDS = "config/scales/seconds.yaml"
RUN = ("run", "--cores", "2")
MUST_RUN = """
from pathlib import Path
from dmdpipe.artifacts.dag import plan_run
from dmdpipe.audit.accepted import read_acceptances
from dmdpipe.audit.status import State, assess
run_plan = plan_run()
results = Path(run_plan.config.results)
for status in assess(run_plan.steps.values(), results, read_acceptances(results)).values():
    if status.state is not State.current:
        print(status.step.stage, status.step.label)
"""
CELLS = ("digits", "ring", "regression", "linear")
# Which cells' steps there are of each stage: digits and regression share what they are made from.
SHARED = {"data": "digits", "noise": "digits", "teacher": "digits", "teacher_samples": "digits"}
CELL_STAGES = ("data", "noise", "teacher", "teacher_samples", "student", "pairs", "metrics")
PAGES = ("gate",)
FIGURES = {"figures study_cells", *(f"figures {page}" for page in PAGES)}
REPORT = {"evidence", "verdicts", *FIGURES}


def steps(*stages: str, cells: tuple[str, ...] = CELLS) -> set[str]:
    """Steps of these stages for these cells."""
    return {
        f"{stage} {SHARED.get(stage, cell) if cell == 'regression' else cell}" for stage in stages for cell in cells
    }


def below(stage: str, cells: tuple[str, ...] = CELLS) -> set[str]:
    """The steps of one stage, and everything that is made from them."""
    above = {
        "data": {"noise"},
        "noise": {"data", "teacher", "student"},
        "teacher": set(),
        "student": {"teacher_samples"},
    }
    after = CELL_STAGES[CELL_STAGES.index(stage) :]
    return steps(*(later for later in after if later not in above.get(stage, set())), cells=cells) | REPORT


EVERYTHING = steps(*CELL_STAGES) | REPORT


@dataclass(frozen=True)
class Tree:
    """A checkout, perhaps with results, in which files can be edited."""

    checkout: Any

    def __truediv__(self, path: str) -> Path:
        return self.checkout.folder / path

    def must_run(self) -> set[str]:
        """The steps that the next run must make, by stage and cell or page, without asking Snakemake."""
        shown = self.checkout.python(MUST_RUN)
        assert shown.returncode == 0, shown.stdout + shown.stderr
        found = [name_of(*line.split()) for line in shown.stdout.splitlines()]
        assert len(found) == len(set(found))
        return set(found)

    def would_run(self, *arguments: str) -> set[str]:
        """The same as Snakemake shows it, which takes some seconds."""
        shown = self.checkout.dmdpipe(*RUN, "-n", *arguments)
        assert shown.returncode == 0, shown.stdout + shown.stderr
        lines = re.findall(r"^(\w+) (\S+)  \((.*)\)$", shown.stdout + shown.stderr, re.MULTILINE)
        assert lines or "Nothing to be done" in shown.stdout + shown.stderr
        assert not [
            reason for _, _, reason in lines if reason in ("forced", "params have changed", "updated input files")
        ]
        found = [name_of(stage, label) for stage, label, _ in lines]
        assert len(found) == len(set(found))
        return set(found)

    def run(self) -> None:
        done = self.checkout.dmdpipe(*RUN)
        assert done.returncode == 0, done.stdout + done.stderr

    def verify(self) -> list[str]:
        """The kinds of problem that an audit finds."""
        done = self.checkout.dmdpipe("audit", "verify", "--format", "json")
        assert done.returncode in (0, 1), done.stderr
        (audit,) = json.loads(done.stdout)
        assert bool(audit["problems"]) == bool(done.returncode)
        return [problem["kind"] for problem in audit["problems"]]

    def folder(self, stage: str, label: str) -> Path:
        (found,) = (self / "results" / stage).glob(f"{label}*")
        return found


def name_of(stage: str, label: str) -> str:
    """The stage and the cell, or the page, that a step's label names."""
    if stage in ("evidence", "verdicts"):
        return stage
    if stage == "figures":
        return f"figures {label.split('/')[-1]}"
    if stage == "noise":
        return f"noise {({'d4': 'digits', 'd2': 'ring', 'd3': 'linear'})[label.partition('_')[0]]}"
    if stage in ("student", "pairs", "metrics") and "_regression_" in label:
        return f"{stage} regression"
    data = re.split(r"_|-[0-9a-f]{16}", label)[0]
    return f"{stage} {({'digits-2x2': 'digits', 'ring': 'ring', 'gaussian-3': 'linear'})[data]}"


def new_tree(checkout: Any, cells: tuple[str, ...] = CELLS, pages: tuple[str, ...] = PAGES) -> Tree:
    """Put the toy study into a checkout, as all that it runs, with a report of few pages: a page takes seconds."""
    (checkout / "config/scales/seconds.yaml").write_text(SCALE)
    overlay = "" if cells == CELLS else f"scales:\n  seconds:\n    axes: {{cell: {list(cells)}}}\n"
    (checkout / "config/studies/cells.yaml").write_text(STUDY + overlay)
    checkout.edit("config/config.yaml", "scale: laptop", "scale: seconds")
    config = (checkout / "config/config.yaml").read_text()
    (checkout / "config/config.yaml").write_text(re.sub(r"studies: .*", "studies: [cells]", config))
    dag = (checkout / "src/dmdpipe/artifacts/dag.py").read_text()
    (checkout / "src/dmdpipe/artifacts/dag.py").write_text(re.sub(r"NOTEBOOKS = \(.*\)", f"NOTEBOOKS = {pages}", dag))
    return Tree(checkout)


def published(tree: Tree) -> dict[str, bytes]:
    folders = [manifest.parent for manifest in (tree / "results").rglob("manifest.json")]
    files = [path for folder in folders for path in folder.iterdir() if path.name != "run.json"]
    return {str(path.relative_to(tree / "results")): path.read_bytes() for path in files}
