"""A study's own figure, whatever it varies: what its criteria read, at every point of its grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dmdpipe.figures import marks, style, tables

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Drawn in the panel of ρ: where a student would read that had the teacher's map, or the best affine one.
LEVELS = (("rho_floor", "floor: T against T at twice the steps", "|"), ("rho_affine", "best affine map of z", "x"))
LABELS = {
    "rho": "ρ(S, T):  0 a copy, 1 unrelated",
    "rho_rotated": "ρ(S, T∘Q):  0 the rotated pairing",
    "rho_within_class": "ρ within the class:  0 a copy, 1 the class alone",
    "rho_same_class": "what ρ reads of the class alone",
    "delta_e": "ΔE (reconstruction)",
    "gate_ratio": "distance over its floor; gate at 2",
    "memorized": "share of memorized teacher samples",
}
MOST_PANELS = 4
FAR = 5.0


@style.styled
def read_out(
    results: pd.DataFrame, metrics: Sequence[str] = (), thresholds: Sequence[tuple[str, float, str]] = ()
) -> tuple[Figure, pd.DataFrame]:
    """Draw ρ at the read-out for every point of a study, beside it other metrics that its criteria read.

    A row is a point, in the order of the study's grid. Intervals are 95 % over seeds, small marks single seeds; hollow
    marks have not converged. Beside ρ stand its floor and that of the best affine map of the noise.

    Args:
        results: tidy results of one study.
        metrics: what else to draw, a panel each, as far as the table has it and there is room (4 panels).
        thresholds: (metric, value, whose): where criteria about a metric as such put their thresholds.

    Returns:
        The figure, and the tidy rows that it shows.
    """
    known = set(results["metric"])
    levels = [name for name, *_ in LEVELS]
    drawn = [
        "rho",
        *(metric for metric in dict.fromkeys(metrics) if metric in known and metric not in ("rho", *levels)),
    ]
    drawn = drawn[:MOST_PANELS]
    shown = tables.at_readout(results, *drawn, *levels)
    means, seeds = tables.over_seeds(shown), tables.per_seed(shown)
    points = list(dict.fromkeys(results["point"]))
    names = tables.own_words(results["point"]) if len(points) > 1 else {points[0]: points[0]}
    starts = means.drop_duplicates("point").set_index("point")["init"]

    figure = style.new_figure(3.2 + 3.4 * len(drawn), 0.36 * len(points) + 1.9)
    all_axes: Any = figure.subplots(1, len(drawn), squeeze=False, sharey=True)[0]
    for axes, metric in zip(all_axes, drawn, strict=True):
        for row, point in enumerate(points):
            colour = style.init_colour(str(starts.get(point)))
            mine, dots = (table[(table["point"] == point) & (table["metric"] == metric)] for table in (means, seeds))
            below = np.full(len(dots), row + 0.2)
            marks.points(axes, dots["value"], below, dots["converged"], colour, "o", 3, alpha=0.5)
            marks.intervals(axes, np.full(len(mine), row), mine, colour, across=True)
            marks.points(axes, mine["value"], np.full(len(mine), row), mine["converged"], colour, "o", 7)
            if metric == "rho":
                for level, _, marker in LEVELS:
                    value = means[(means["point"] == point) & (means["metric"] == level)]["value"]
                    axes.plot(value, np.full(len(value), row), marker, color=style.INK, markersize=9, zorder=1.5)
        for value, claims in _thresholds(thresholds, metric).items():
            axes.axvline(value, color=style.VERMILLION, linestyle="--", linewidth=1.2, zorder=0.95)
            where = (value, 1.0)
            axes.annotate(
                claims, where, (2, -1), xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
                fontsize=8, color=style.VERMILLION,
            )  # fmt: skip
        for value in (0.0, 1.0) if metric.startswith("rho") else ():
            marks.reference(axes, value, across=True)
        if axes.get_xlim()[1] > FAR:  # a student that diverged would press all others together
            axes.set_xscale("symlog", linthresh=1.0)
        axes.set_title(metric)
        axes.set_xlabel(LABELS.get(metric, metric))
        axes.grid(axis="y", visible=False)
    all_axes[0].set_yticks(range(len(points)), labels=[names[point] or point for point in points])
    all_axes[0].set_ylim(len(points) - 0.5, -0.5)
    keys = [
        *(marks.key(f"start: {init}", style.init_colour(init), marker="o") for init in dict.fromkeys(starts)),
        *(marks.key(label, style.INK, marker=marker) for level, label, marker in LEVELS if level in known),
        marks.key("small: one seed; line: 95 % interval", style.MUTED, "-", "o", markersize=3),
        *([marks.key("a claim's threshold", style.VERMILLION, "--")] if thresholds else []),
        *marks.converged_keys(shown["converged"]),
    ]
    marks.legend_below(figure, keys, columns=2 if len(drawn) < 2 else 4)
    marks.headline(figure, "What came out, point by point", f"at the read-out, {marks.study_of(shown)}")
    return figure, tables.drawn(shown)


def _thresholds(thresholds: Sequence[tuple[str, float, str]], metric: str) -> dict[float, str]:
    claims: dict[float, list[str]] = {}
    for name, value, claim in thresholds:
        if name == metric and claim not in claims.setdefault(value, []):
            claims[value].append(claim)
    return {value: ", ".join(named) for value, named in claims.items()}
