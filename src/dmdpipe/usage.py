"""What finished steps used of what a cluster is asked for, from the run.json beside their manifests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dmdpipe.artifacts.manifest import RUN_FILE_NAME
from dmdpipe.cost import megabytes_to_ask_for, minutes_to_ask_for

if TYPE_CHECKING:
    from dmdpipe.artifacts.plan import PlannedStep

COLUMNS = ["rule", "steps", "minutes", "share_of_time", "mib", "share_of_memory"]


def usage_by_rule(steps: Iterable[PlannedStep], results: Path) -> pd.DataFrame:
    """Return a row for each rule of which steps have finished: how many, and the most that one of them used.

    Returns:
        rule, steps; minutes and share_of_time, the longest step and the largest share of the time limit of its first
        attempt; mib and share_of_memory, the same of the peak memory. The Snakemakes around a step are not in it.
    """
    rows = [row for step in steps if (row := _usage(step, results / step.folder / RUN_FILE_NAME))]
    if not rows:
        return pd.DataFrame(columns=COLUMNS)
    most = {name: (name, "max") for name in COLUMNS[2:]}
    return pd.DataFrame(rows).groupby("rule", sort=False).agg(steps=("rule", "size"), **most).reset_index()


def _usage(step: PlannedStep, run: Path) -> dict[str, str | float] | None:
    """What one step used; None if it has not finished or its run.json says nothing."""
    try:
        facts = json.loads(run.read_bytes())
        minutes, mebibytes = float(facts["seconds"]) / 60, float(facts["peak_memory_mib"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {
        "rule": step.stage,
        "minutes": minutes,
        "share_of_time": minutes / minutes_to_ask_for(step, 1),
        "mib": mebibytes,
        "share_of_memory": mebibytes / megabytes_to_ask_for(step, 1),
    }
