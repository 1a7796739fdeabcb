"""What a measurement leaves: a folder with tables, a figure and what was measured, and a few lines to read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmdpipe.artifacts.checked import json_text
from dmdpipe.artifacts.tables import encode_table
from dmdpipe.artifacts.tensors import encode_tensors
from dmdpipe.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Pictures = tuple[NDArray[Any], NDArray[Any]]

SHOWN = (
    *("rho", "rho_floor", "rho_affine", "rho_shuffled", "rho_within_class", "rho_same_class"),
    *("delta_e", "delta_e_null", "retrieval_at_1", "retrieval_null"),
    *("cosine", "normalised_rank", "gate_ratio", "converged"),
)
DRAWN_POINTS = 500


def check_target(out: Path) -> None:
    """Refuse a folder that is there already, or that cannot be made.

    Raises:
        UserError: so that nothing is sampled in vain, and nothing overwritten.
    """
    if os.path.lexists(out):
        raise UserError(f"--out: {out} is there already; name a new folder, or remove it")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise UserError(f"--out: {parent} is no folder; make it first")
    try:
        os.rmdir(_private_folder(out))
    except OSError as error:
        raise UserError(f"--out: {parent} cannot be written to ({error.strerror}); name a folder elsewhere") from None


def write_report(
    out: Path,
    table: pd.DataFrame,
    pairs: Pictures,
    about: Mapping[str, Any],
    *,
    images: bool,
    samples: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Make the folder at once: metrics.parquet, metrics.csv, pairs.png, pairs.pdf, pairs.csv, about.json.

    Args:
        out: the folder.
        table: as ``measure_pairs`` returns it.
        pairs: T(z) and S(z) [N, d], to be drawn.
        about: plain JSON: what was measured, and how.
        images: whether they are drawn as images.
        samples: arrays to keep in samples.safetensors; none: no such file.

    Raises:
        UserError: if there is something else by now; it names the folder beside it that holds the measurement.
    """
    from dmdpipe.figures.grids import grid_of_pairs
    from dmdpipe.figures.style import save_figure

    rho = table.set_index("metric")["value"]["rho"]
    # A cloud is drawn in a plane: of one coordinate, along a line.
    plane = max(0, 2 - pairs[0].shape[1])
    teacher, student = (np.pad(points[:DRAWN_POINTS], ((0, 0), (0, plane))) for points in pairs)
    figure, data = grid_of_pairs(teacher, student, f"ρ = {rho:.3g}", str(about["title"]), images=images)
    # In a folder of its own, which is renamed in the end: a crash leaves none with half of the files.
    private = _private_folder(out)
    try:
        (private / "metrics.parquet").write_bytes(encode_table(table))
        table.to_csv(private / "metrics.csv", index=False, lineterminator="\n")
        (private / "about.json").write_text(json_text(about), encoding="utf-8")
        if samples is not None:
            (private / "samples.safetensors").write_bytes(encode_tensors(samples))
        save_figure(figure, private, "pairs", data)
        private.chmod(0o777 & ~_umask())
    except BaseException:
        shutil.rmtree(private, ignore_errors=True)
        raise
    if os.path.lexists(out):
        raise UserError(f"--out: {out} was made by another program meanwhile; what was measured lies in {private}")
    os.rename(private, out)


def _private_folder(out: Path) -> Path:
    """Make a new folder beside ``out``, which nobody else can read."""
    return Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))


def _umask() -> int:
    """mkdtemp makes folders that only their owner can read, whatever others are made like."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def summary(table: pd.DataFrame, n: int, dim: int, notes: list[str]) -> str:
    """Return the main numbers, how to read each, and what could not be computed."""
    rows = table.set_index("metric")
    lines = [f"{n} pairs of {dim} numbers", ""]
    for name in [name for name in SHOWN if name in rows.index]:
        value = rows["value"][name]
        if not rows["lacks"][name]:
            lines.append(f"  {name:16} {value:9.4g}   {rows['reads'][name]}")
    missing = rows[rows["lacks"] != ""]
    if len(missing):
        lines += ["", "not computed:"]
        for lacks, names in missing.groupby("lacks", sort=False):
            lines.append(f"  {', '.join(names.index)}: needs {lacks}")
    lines.append("")
    lines += [f"note: {note}" for note in notes]
    lines.append("not measured here: novelty and memorization, which need the training data")
    return "\n".join(lines)
