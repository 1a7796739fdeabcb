"""Curves: copying against the dimension of the data, and over training time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dmdpipe.figures import marks, style, tables

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_WIDTH, _PANEL_HEIGHT = 3.7, 3.0


@style.styled
def rho_against_dimension(results: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw ρ against the dimension d at the read-out, and beside it ΔE (reconstruction) and retrieval@1.

    ρ stands with its 95 % interval over seeds, every seed as a small dot, and the best affine map's ρ dotted;
    ΔE and retrieval@1 stand with their dimension-matched null, dotted, since they move with d even at equal
    copying.

    Args:
        results: tidy results of one study and one data family.

    Returns:
        The figure, and the tidy rows that it shows.
    """
    panels = (
        ("rho", "rho_affine", "Relative pair error ρ", "0: same noise, same sample;  1: unrelated"),
        ("delta_e", "delta_e_null", "ΔE (reconstruction)", "0: as the best matching;  1: unrelated"),
        ("retrieval_at_1", "retrieval_null", "Retrieval@1", "share of z whose S(z) is nearest to T(z)"),
    )
    shown = tables.at_readout(results, *(metric for panel in panels for metric in panel[:2]))
    means = tables.over_seeds(shown)
    seeds = tables.per_seed(shown)
    columns = ("recipe", "sigma_max")
    mean_series, seed_series = tables.series_of(means, *columns), tables.series_of(seeds, *columns)
    look = marks.looks(means, mean_series)

    figure = style.new_figure(12.6, 4.6)
    grid = figure.add_gridspec(1, 3, width_ratios=(1.35, 1, 1))
    for i, (metric, baseline, title, reading) in enumerate(panels):
        axes = figure.add_subplot(grid[i])
        for j, (name, one) in enumerate(look.items()):
            dodge = 1.05 ** (j - (len(look) - 1) / 2)
            mine = means[(mean_series == name) & (means["metric"] == metric)].sort_values("d")
            dots = seeds[(seed_series == name) & (seeds["metric"] == metric)]
            null = means[(mean_series == name) & (means["metric"] == baseline)].sort_values("d")
            axes.plot(null["d"] * dodge, null["value"], ":", marker="_", color=one.colour, linewidth=1.4, alpha=0.8)
            axes.plot(mine["d"] * dodge, mine["value"], linestyle=one.line, color=one.colour)
            marks.points(axes, dots["d"] * dodge, dots["value"], dots["converged"], one.colour, "o", 3, alpha=0.45)
            marks.intervals(axes, mine["d"] * dodge, mine, one.colour)
            marks.points(axes, mine["d"] * dodge, mine["value"], mine["converged"], one.colour, one.marker, 7)
        if metric != "retrieval_at_1":
            marks.reference(axes, 1.0)
        axes.set(title=title, xlabel="dimension d of the data (log scale)", ylabel=reading)
        _dimension_axis(axes, sorted(means["d"].unique()))
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.0, low), max(1.05, high))
    keys = [
        *marks.look_keys(look),
        marks.key("dotted: best affine map (ρ), dimension-matched null (ΔE, retrieval@1)", style.MUTED, ":"),
        marks.key("small: one seed", style.MUTED, marker="o", markersize=3, alpha=0.6),
        *marks.converged_keys(shown["converged"]),
    ]
    marks.legend_below(figure, keys)
    family = ", ".join(sorted(shown["family"].unique()))
    marks.headline(figure, "Does a student copy more as the dimension grows?", f"{family}, {marks.study_of(shown)}")
    return figure, tables.drawn(shown)


@style.styled
def rho_over_time(results: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw ρ(S, T) against the generator step, from the start to the read-out: a panel per data and σ_max.

    Seeds are thin, their mean is thick; dashed the floor ρ(T, T at twice the sampler's steps), dotted the
    best affine map's ρ. Each snapshot of the mean is marked, hollow where the distribution has not converged.

    Args:
        results: tidy results of one study.

    Returns:
        The figure, and the tidy rows that it shows.
    """
    shown = results[results["metric"].isin(["rho", "rho_floor", "rho_affine"])]
    means = tables.over_seeds(shown)
    seeds = tables.per_seed(shown)
    mean_series, seed_series = (tables.series_of(rows, "recipe", apart=["sigma_max"]) for rows in (means, seeds))
    look = marks.looks(means, mean_series)
    panels = marks.panels(means)
    n_columns = min(3, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)

    figure = style.new_figure(max(7.0, _PANEL_WIDTH * n_columns), _PANEL_HEIGHT * n_rows + 1.3)
    all_axes = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    for axes in all_axes.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(all_axes.flat, panels, strict=False):
        here, there = panel.rows(means), panel.rows(seeds)
        for name, one in look.items():
            runs = seeds[there & (seed_series == name) & (seeds["metric"] == "rho")]
            for _, run in runs.sort_values("generator_step").groupby(["point", "seed"], sort=True):
                axes.plot(run["generator_step"], run["value"], linestyle=one.line, color=one.colour, lw=0.7, alpha=0.5)
            mean = means[here & (mean_series == name) & (means["metric"] == "rho")].sort_values("generator_step")
            axes.plot(mean["generator_step"], mean["value"], linestyle=one.line, color=one.colour, linewidth=2.4)
            marks.points(axes, mean["generator_step"], mean["value"], mean["converged"], one.colour, one.marker, 5)
        for metric, line in (("rho_floor", "--"), ("rho_affine", ":")):
            level = means[here & (means["metric"] == metric)].groupby("generator_step")["value"].mean()
            axes.plot(level.index, level, linestyle=line, color=style.INK, linewidth=1.2)
        marks.reference(axes, 1.0)
        axes.set_title(panel.title)
        step_axis(axes, np.sort(means.loc[here, "generator_step"].unique()))
    for axes in all_axes[:, 0]:
        axes.set_ylabel("ρ between S(z) and T(z)")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    for i in range(len(panels)):
        if i + n_columns >= len(panels):
            all_axes.flat[i].set_xlabel("generator step")
    keys = [
        *marks.look_keys(look),
        marks.key("thin: one seed", style.MUTED, "-", linewidth=0.7),
        marks.key("floor: T against T at twice the steps", style.INK, "--", linewidth=1.2),
        marks.key("best affine map of z", style.INK, ":", linewidth=1.2),
        *marks.converged_keys(means.loc[means["metric"] == "rho", "converged"]),
    ]
    marks.legend_below(figure, keys, columns=2 if n_columns < 2 else 3)
    marks.headline(figure, "When is the pairing decided?", f"ρ over training, {marks.study_of(shown)}")
    return figure, tables.drawn(shown)


def _dimension_axis(axes: Axes, dimensions: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(dimensions[0] / 1.4, dimensions[-1] * 1.4)
    axes.xaxis.set_major_locator(FixedLocator([float(d) for d in dimensions]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def step_axis(axes: Axes, steps: np.ndarray) -> None:
    """Show step 0 and the log-spaced steps after it on one axis."""
    later = steps[steps > 0]
    if later.size == 0:
        return
    first, last = float(later[0]), float(later[-1])
    axes.set_xscale("symlog", linthresh=first, linscale=0.6)
    axes.set_xlim(-0.15 * first, last * 1.25)
    decades = [10.0**k for k in range(math.ceil(math.log10(first)), math.floor(math.log10(last)) + 1)]
    ticks = [0.0, *decades] if decades else [0.0, last]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e4 else f"{value / 1e3:g}k"))
    axes.xaxis.set_minor_locator(NullLocator())
