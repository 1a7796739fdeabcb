"""Training curves: losses and gradient norms of every student of a study, over generator steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dmdpipe.figures import marks, style, tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dmdpipe.specs.report import StudentRef

WINDOWS = 60
# What a student's history has, and what it says; the DM loss is half the mean square of its gradient at the samples.
CURVES = {
    "dm_loss": "DM loss: ½·mean g²",
    "fake_loss": "fake-score loss",
    "student_gradient": "student's gradient norm, unclipped",
    "adversarial_loss": "adversarial loss (student)",
    "discriminator_loss": "discriminator loss (1.39: cannot tell)",
    "regression_loss": "regression loss",
}


def training_table(students: Iterable[StudentRef], read: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
    """Return the thinned histories of a study's students, one below the other.

    Args:
        students: which, in the order of the grid.
        read: student's folder → its history.

    Returns:
        Columns point, seed, generator_step (the last of a window) and those of ``CURVES`` (the median over it).
    """
    parts = [thinned(read(student.student)).assign(point=student.point, seed=student.seed) for student in students]
    columns = ["point", "seed", "generator_step", *CURVES]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def thinned(history: pd.DataFrame) -> pd.DataFrame:
    """Return medians of a student's history over at most 60 windows of equally many generator steps."""
    table = history.assign(dm_loss=0.5 * history["dm_gradient"] ** 2).reindex(columns=["generator_step", *CURVES])
    window = np.arange(len(table)) * min(WINDOWS, len(table)) // max(len(table), 1)
    groups = table.groupby(window)
    return groups.median().assign(generator_step=groups["generator_step"].max()).reset_index(drop=True)


def with_gate(training: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Return the histories with a column ``converged``: whether a student was within the gate at its read-out.

    Args:
        training: as ``training_table`` returns it, of one study.
        results: the study's results table.
    """
    ends = results[(results["seed"] >= 0) & results["readout"].astype(bool)]
    ends = ends[["point", "seed", "converged"]].drop_duplicates(["point", "seed"])
    return training.merge(ends, on=["point", "seed"], how="left", validate="many_to_one")


@style.styled
def training_curves(training: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw each quantity of ``CURVES`` that some student has, a panel each: seeds thin, their median thick.

    The key says of every point how many of its students were within the gate in the end.

    Args:
        training: as ``with_gate`` returns it, of one study.

    Returns:
        The figure, and the rows that it shows.
    """
    drawn = [name for name in CURVES if np.isfinite(training[name].to_numpy(dtype=float)).any()]
    points = list(dict.fromkeys(training["point"]))
    names = tables.own_words(training["point"]) if len(points) > 1 else {points[0]: points[0]}
    within = training.drop_duplicates(["point", "seed"]).groupby("point")["converged"].agg(["sum", "size"])
    n_columns = min(3, max(len(drawn), 1))
    n_rows = math.ceil(max(len(drawn), 1) / n_columns)
    figure = style.new_figure(4.0 * n_columns, 2.9 * n_rows + 0.5 + 0.22 * math.ceil(len(points) / 4))
    all_axes: list[Any] = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for axes, name in zip(all_axes, drawn, strict=False):
        for i, point in enumerate(points):
            colour, line = style.PALETTE[i % len(style.PALETTE)], style.LINE_STYLES[i // len(style.PALETTE) % 5]
            mine = training[(training["point"] == point) & training[name].notna()]
            for _, run in mine.groupby("seed"):
                axes.plot(run["generator_step"], run[name], line, color=colour, linewidth=0.6, alpha=0.45)
            middle = mine.groupby("generator_step")[name].median()
            axes.plot(middle.index, middle, linestyle=line, color=colour, linewidth=2.0)
        if (training[name].dropna() > 0).all():
            axes.set_yscale("log")
        axes.set_title(CURVES[name])
        axes.set(xlabel="generator step", xscale="log")
    for axes in all_axes[len(drawn) :]:
        axes.set_axis_off()
    keys = [
        marks.key(
            f"{names[point] or point}: {within['sum'][point]:.0f} of {within['size'][point]}",
            style.PALETTE[i % len(style.PALETTE)],
            style.LINE_STYLES[i // len(style.PALETTE) % 5],
        )
        for i, point in enumerate(points)
    ]
    marks.legend_below(figure, keys)
    marks.headline(
        figure,
        "How did training go?",
        "losses and gradient norms, medians over windows; thin: one seed; in the key: how many end within the gate",
    )
    return figure, training
