"""The figures step: one notebook of the report, run on the verdicts step's tables."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from dmdpipe.artifacts.tables import encode_table
from dmdpipe.errors import UserError
from dmdpipe.figures.notebooks import run_notebook
from dmdpipe.figures.training import training_table
from dmdpipe.specs.report import StudyFigureSpec

if TYPE_CHECKING:
    from dmdpipe.artifacts.step import Step
    from dmdpipe.specs.report import FigureSpec

TRAINING = "training.parquet"
TABLES = ("verdicts", "criteria", "sensitivity", "results", "gallery")


def draw_figures(step: Step) -> None:
    """The ``figures`` step: notebook.ipynb and .html, and every figure as PNG and PDF with its data as CSV.

    Raises:
        UserError: if the notebook was edited after the run was planned, or fails.
    """
    import papermill

    spec: FigureSpec = step.spec
    source = Path("reports", f"{spec.notebook}.ipynb")
    if hashlib.sha256(source.read_bytes()).hexdigest() != spec.source_sha256:
        raise UserError(f"{source}: was edited after the run was planned; run again")
    known = papermill.inspect_notebook(str(source))
    parameters: dict[str, object] = {
        table: step.parent_file("verdicts", f"{table}.parquet") for table in TABLES if table in known
    }
    if isinstance(spec, StudyFigureSpec):
        histories = training_table(spec.study.students, lambda student: step.read_table(student, "history.parquet"))
        (step.folder / TRAINING).write_bytes(encode_table(histories))
        parameters |= {"study": spec.study.model_dump(mode="json"), "training": step.folder / TRAINING}
    parameters |= {"scale": spec.scale, "output": "."}
    run_notebook(source, parameters, step.folder, title=spec.page.replace("_", " "))
    for suffix in (".ipynb", ".html"):
        (step.folder / f"{spec.notebook}{suffix}").rename(step.folder / f"notebook{suffix}")
