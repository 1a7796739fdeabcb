"""Time to the gate: how long a student trains until its distribution is the teacher's, which is what a user waits for.

Read off finished results: each student's metrics say at which snapshot its distances first lay within the gate
(``dmdpipe.copying.distribution``), and its run.json says how long it trained. Snapshots are log-spaced, so the time is
an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmdpipe.audit.tree import read_artifact, read_table, step_folders
from dmdpipe.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

LABELS = ["data", "start", "recipe", "sigma_max", "generator_steps"]


def time_to_the_gate(results: Path) -> pd.DataFrame:
    """Return one row for every kind of student in a folder of results.

    Columns: ``LABELS``; ``students``; ``reached``, how many were within the gate at some snapshot; ``steps``, the
    median generator steps to the first such one, and ``seconds`` of training until then, over those that reached it;
    ``whole``, the median seconds of a whole training.

    Raises:
        UserError: if there is no such folder, or no measured student in it.
    """
    import pandas as pd

    if not results.is_dir():
        raise UserError(f"{results}: is no folder; name one with results, or make some with ./run")
    rows = [student_row(results / folder) for folder in step_folders(results) if folder.startswith("metrics/")]
    if not rows:
        raise UserError(f"{results}: holds no metrics of students; make some with ./run")
    table = pd.DataFrame(rows)
    groups = table.groupby(LABELS, sort=True)
    return pd.DataFrame(
        {
            "students": groups.size(),
            "reached": groups["steps"].count(),
            "steps": groups["steps"].median(),
            "seconds": groups["seconds"].median(),
            "whole": groups["whole"].median(),
        }
    ).reset_index()


def student_row(folder: Path) -> dict[str, Any]:
    """Return one student's labels, its steps and seconds to the gate (NaN if never), and those of its training."""
    spec = read_artifact(folder).manifest.result.spec["pairs"]["student"]
    table = read_table(folder / "metrics.parquet", ("generator_step", "metric", "value"))
    gate = table[table["metric"] == "converged"].set_index("generator_step")["value"]
    steps = first_within(gate.to_dict())
    whole = training_seconds(folder)
    return {
        "data": data_label(spec["teacher"]["data"]),
        "start": spec["init"]["kind"],
        "recipe": spec["recipe"]["name"],
        "sigma_max": spec["noise_range"]["sigma_max"],
        "generator_steps": spec["generator_steps"],
        "steps": steps,
        "seconds": whole * steps / spec["generator_steps"],
        "whole": whole,
    }


def first_within(converged: Mapping[Any, float]) -> float:
    """Return the first generator step at which a student counts as converged (1); NaN if at none."""
    return float(min((step for step, value in converged.items() if value == 1), default=math.nan))


def training_seconds(metrics: Path) -> float:
    """Return how long the student of these metrics trained; NaN if nobody wrote it down."""
    results = metrics.parent.parent
    pairs = results / read_artifact(metrics).manifest.result.parents["pairs"].folder
    student = results / read_artifact(pairs).manifest.result.parents["student"].folder
    seconds = read_artifact(student).run_facts().get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else math.nan


def data_label(data: Mapping[str, Any]) -> str:
    """Return a short name of the data: its family, and the side or dimension where it has one."""
    if side := data.get("side"):
        return f"{data['family']}-{side}x{side}"
    return f"{data['family']}-{data['dim']}" if "dim" in data else str(data["family"])
