"""What a student costs against what it is worth: distribution, copying, novelty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FuncFormatter, NullLocator

from dmdpipe.figures import marks, style, tables
from dmdpipe.figures.gate import GATE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COST, DISTANCE = "inference_cost", "gate_ratio"
_AGAINST_COST = (
    (DISTANCE, "", "Distribution", "distance to the teacher, over its floor"),
    ("rho_resampled", "rho_resampling", "Copying, step by step", "0: copies each step;  1: unrelated"),
    ("novelty_teacher", "novelty_data", "Novelty", "1: as far as fresh samples are"),
)
_METRICS = (COST, *(metric for panel in _AGAINST_COST for metric in panel[:2] if metric), "rho")


@style.styled
def copying_against_cost(results: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw distribution distance, copying and novelty against inference cost, and copying against the distance.

    A curve joins the students of one start and one network, which differ in their number of steps. Copying is
    ρ(S, T'), with T' the teacher under the same noise between the steps; dotted ρ(T', T), what that noise alone does
    to ρ. Novelty is that to the teacher's samples; dotted that to the training data. The last panel's marks grow with
    the cost. Students of a teacher without a network have no cost, and are left out.

    Args:
        results: tidy results of one study.

    Returns:
        The figure, and the tidy rows that it shows.
    """
    at_readout = tables.at_readout(results, *_METRICS)
    costs = at_readout[at_readout["metric"] == COST].dropna(subset=["value"])
    shown = at_readout[at_readout["point"].isin(costs["point"])]
    means, seeds = (_by_metric(rows, costs) for rows in (tables.over_seeds(shown), tables.per_seed(shown)))
    look = marks.looks(means, means["curve"])

    figure = style.new_figure(13.2, 4.7)
    all_axes = figure.subplots(1, 4)
    for axes, (metric, dotted, title, reading) in zip(all_axes, _AGAINST_COST, strict=False):
        for name, one in look.items():
            mine = means[means["curve"] == name].sort_values("cost")
            dots = seeds[seeds["curve"] == name]
            axes.plot(mine["cost"], mine[metric], linestyle=one.line, color=one.colour)
            if dotted:
                axes.plot(mine["cost"], mine[dotted], ":", marker="_", color=one.colour, linewidth=1.4, alpha=0.8)
            marks.points(axes, dots["cost"], dots[metric], dots["converged"], one.colour, "o", 3, alpha=0.45)
            marks.points(axes, mine["cost"], mine[metric], mine["converged"], one.colour, one.marker, 7)
        marks.reference(axes, GATE if metric == DISTANCE else 1.0)
        axes.set(title=title, xlabel="cost of a sample, in calls of the teacher", ylabel=reading)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _cost_axis(axes, means["cost"])
    last = all_axes[-1]
    for name, one in look.items():
        for _, point in means[means["curve"] == name].iterrows():
            size = 6 + 2 * np.log2(1 + point["cost"])
            place = [point[DISTANCE]], [point["rho_resampled"]]
            marks.points(last, *place, [point["converged"]], one.colour, one.marker, size)
    marks.reference(last, 1.0)
    marks.reference(last, GATE, across=True)
    last.set(title="Distribution and copying", xlabel="distance, over its floor", ylabel="copying, step by step")
    last.set_ylim(bottom=min(0.0, last.get_ylim()[0]))
    keys = [
        *marks.look_keys(look),
        marks.key("dotted: noise between steps alone (copying), training data (novelty)", style.MUTED, ":"),
        marks.key("small: one seed", style.MUTED, marker="o", markersize=3, alpha=0.6),
        *marks.converged_keys(means["converged"]),
    ]
    marks.legend_below(figure, keys, columns=3)
    marks.headline(figure, "What does copying cost or buy?", f"{marks.study_of(shown)}; larger marks cost more")
    return figure, tables.drawn(shown)


def _by_metric(rows: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each point and seed, a column for each metric, the cost and the curve that it belongs to."""
    keys = ["point", "seed"]
    wide = rows.pivot(index=keys, columns="metric", values="value").reindex(columns=list(_METRICS))
    labels = rows.drop_duplicates(keys).set_index(keys)[["init", "network", "converged"]]
    found = labels.join(wide).reset_index()
    found["cost"] = found["point"].map(costs.drop_duplicates("point").set_index("point")["value"])
    found["curve"] = found["init"] + ", " + found["network"]
    return found


def _cost_axis(axes: Axes, costs: pd.Series) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(costs.min() / 1.4, costs.max() * 1.4)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
