"""The gate: is the student's distribution the teacher's, before any word about copying?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dmdpipe.figures import marks, style, tables

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

GATE = 2.0

_DISTANCES = (
    ("sliced_w2_over_floor", "sliced Wasserstein-2 distance", "o", style.BLUE, -0.17),
    ("energy_over_floor", "energy distance", "s", style.ORANGE, 0.17),
)


@style.styled
def gate(results: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw how far each run's distribution is from the teacher's at the read-out, in units of the floor.

    The floor is the distance between two independent sets of teacher samples. A run with either distance over
    twice its floor is not converged: hollow, named so at its right, and counted for no claim.

    Args:
        results: tidy results of one study.

    Returns:
        The figure, and the tidy rows that it shows.
    """
    shown = tables.per_seed(tables.at_readout(results, *(metric for metric, *_ in _DISTANCES)))
    order = shown.sort_values(["family", "d", "init", "sigma_max", "recipe", "point"])
    row_of = {point: row for row, point in enumerate(order["point"].unique())}

    figure = style.new_figure(9.6, 0.32 * len(row_of) + 2.0)
    axes = figure.subplots()
    for metric, _, marker, colour, offset in _DISTANCES:
        rows = shown[shown["metric"] == metric]
        at = rows["point"].map(row_of) + offset
        marks.points(axes, rows["value"], at, rows["converged"], colour, marker, 5, alpha=0.8)
    axes.set_xscale("log", base=2)
    # A student that diverged has no distance.
    finite = shown["value"].to_numpy(dtype=float)[np.isfinite(shown["value"])]
    highest = max(4.0, 1.2 * float(finite.max(initial=0.0)))
    axes.set_xlim(min(0.5, float(finite.min(initial=1.0)) / 1.2), highest)
    axes.axvline(GATE, color=style.VERMILLION, linewidth=1.4, zorder=0.95)
    axes.axvspan(GATE, highest, color=style.VERMILLION, alpha=0.06, linewidth=0, zorder=0.5)
    marks.reference(axes, 1.0, across=True)
    for point, runs in shown.drop_duplicates(["point", "seed"]).groupby("point"):
        over = int((~runs["converged"].astype(bool)).sum())
        if over:
            note = "not converged" if over == len(runs) else f"not converged: {over} of {len(runs)} seeds"
            axes.annotate(
                note, (1.01, row_of[point]), xycoords=("axes fraction", "data"), va="center",
                fontsize=8.5, color=style.VERMILLION, annotation_clip=False,
            )  # fmt: skip
    names = tables.own_words(shown["point"]) if len(row_of) > 1 else {point: point for point in row_of}
    axes.set_yticks(list(row_of.values()), labels=[names[point] for point in row_of])
    axes.set_ylim(len(row_of) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(LogLocator(base=2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("distance of S(z) to the teacher's samples, over its floor (1 = as near as a second teacher set)")
    keys = [
        *(marks.key(label, colour, marker=marker) for _, label, marker, colour, _ in _DISTANCES),
        marks.key(f"gate: {GATE:g} × floor", style.VERMILLION, "-"),
        *marks.converged_keys(shown["converged"]),
    ]
    marks.legend_below(figure, keys)
    marks.headline(figure, "Has the student learned the distribution at all?", marks.study_of(shown))
    return figure, tables.drawn(shown)
