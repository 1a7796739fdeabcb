"""What the student starts from: controls of the initialisation, and the quality of the start."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from dmdpipe.figures import marks, style, tables

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_QUALITIES = (
    ("rho", "ρ(S₀, T): 0 = the start already copies"),
    ("jacobian_alignment", "cosine of the mean Jacobians of S₀ and T"),
    ("delta_e", "ΔE (reconstruction) of S₀"),
    ("scale_ratio", "spread of S₀ over the spread of T"),
)


def comparable(results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of students whose ρ can follow their start: distilled networks of one step."""
    resampling = results["value"].where(results["metric"] == "rho_resampling")
    of_several_steps = resampling.groupby([results["study"], results["point"]]).transform("max") > 0
    others = results["network"].str.startswith(("linear", "particles"))
    return results[~of_several_steps & ~others & (results["recipe"] != "regression")]


@style.styled
def initialisation_controls(results: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw, for every start, ρ of the trained student to the teacher T and to the rotated teacher T∘Q.

    Which map the student ends at says where its pairing comes from: a student that started at T∘Q and stays
    there inherited it. Intervals are 95 % over seeds, small dots single seeds; a panel per data and σ_max.

    Args:
        results: tidy results of one study.

    Returns:
        The figure, and the tidy rows that it shows.
    """
    targets = (
        ("rho", "to the teacher T", "o", -0.16),
        ("rho_rotated", "to the rotated teacher T∘Q", "D", 0.16),
    )
    shown = tables.at_readout(results, *(metric for metric, *_ in targets))
    means = tables.over_seeds(shown)
    seeds = tables.per_seed(shown)
    mean_series, seed_series = (tables.series_of(rows, "recipe", apart=["sigma_max"]) for rows in (means, seeds))
    look = marks.looks(means, mean_series)
    row_of = {name: row for row, name in enumerate(look)}
    panels = marks.panels(means)
    n_columns = min(3, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)

    width = 2.0 + 3.5 * n_columns
    figure = style.new_figure(max(7.5, width), (0.5 * len(look) + 0.9) * n_rows + 1.2)
    all_axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    for axes in all_axes.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(all_axes.flat, panels, strict=False):
        for metric, _, marker, offset in targets:
            for name, one in look.items():
                mine, dots = (
                    rows[panel.rows(rows) & (series == name) & (rows["metric"] == metric)]
                    for rows, series in ((means, mean_series), (seeds, seed_series))
                )
                y = row_of[name] + offset
                marks.points(
                    axes,
                    dots["value"],
                    np.full(len(dots), y),
                    dots["converged"],
                    one.colour,
                    marker,
                    3,
                    alpha=0.45,
                )
                marks.intervals(axes, np.full(len(mine), y), mine, one.colour, across=True)
                marks.points(axes, mine["value"], np.full(len(mine), y), mine["converged"], one.colour, marker, 7)
        marks.reference(axes, 0.0, across=True)
        marks.reference(axes, 1.0, across=True)
        axes.grid(axis="y", visible=False)
        axes.set_title(panel.title)
    for i in range(len(panels)):
        if i + n_columns >= len(panels):
            all_axes.flat[i].set_xlabel("ρ at the read-out (0: same map;  1: unrelated)")
            all_axes.flat[i].tick_params(labelbottom=True)
    all_axes.flat[0].set_yticks(list(row_of.values()), labels=list(row_of))
    all_axes.flat[0].set_ylim(len(look) - 0.5, -0.5)
    for axes in all_axes[:, 0]:
        axes.set_ylabel("start of the student")
    keys = [
        *(marks.key(f"ρ {label}", style.MUTED, marker=marker) for _, label, marker, _ in targets),
        marks.key("small: one seed; line: 95 % interval", style.MUTED, "-", "o", markersize=3),
        *marks.converged_keys(shown["converged"]),
    ]
    marks.legend_below(figure, keys, columns=2 if n_columns < 2 else 4)
    marks.headline(figure, "Where does the pairing come from?", f"starts as controls, {marks.study_of(shown)}")
    return figure, tables.drawn(shown)


def start_table(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run: ρ at the read-out beside the quality of its start (generator step 0).

    A run that several studies share stands once, under the first.
    Columns: study, point, data, d, init, recipe, sigma_max, seed, converged (at the read-out), rho, and
    start_rho, start_jacobian_alignment, start_delta_e, start_scale_ratio.
    """
    runs = ["study", "point", "data", "d", "init", "recipe", "sigma_max", "seed"]
    seeds = tables.per_seed(results)
    end = tables.at_readout(seeds, "rho")[[*runs, "converged", "value"]].rename(columns={"value": "rho"})
    metrics = [metric for metric, _ in _QUALITIES]
    start = seeds[(seeds["generator_step"] == 0) & seeds["metric"].isin(metrics)]
    wide = start.pivot(index=runs, columns="metric", values="value").reindex(columns=metrics).add_prefix("start_")
    table = end.merge(wide.reset_index(), on=runs).sort_values(runs)
    return table.drop_duplicates([*runs[2:], "rho", *wide.columns]).reset_index(drop=True)


@style.styled
def start_quality(results: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw ρ at the read-out against four measures of the untrained student S₀'s quality; one mark per run.

    The measures are ρ(S₀, T), the alignment of the mean Jacobians, ΔE (reconstruction) and the scale of S₀.
    Colour is the dimension, shape the start, size σ_max. On the diagonal of the first panel training changed
    nothing.

    Args:
        results: tidy results of one or more studies, generator step 0 included.

    Returns:
        The figure, and ``start_table`` of the results.
    """
    table = start_table(results)
    dimensions = sorted(table["d"].unique())
    spread = np.linspace(0.0, 0.88, len(dimensions)) if len(dimensions) > 1 else [0.4]
    colours = {d: to_hex(colormaps["viridis"](x)) for d, x in zip(dimensions, spread, strict=True)}
    sigmas = sorted(table["sigma_max"].unique())
    sizes = dict(zip(sigmas, np.linspace(5.0, 10.0, len(sigmas)) if len(sigmas) > 1 else [7.0], strict=True))
    inits = sorted(table["init"].unique(), key=lambda init: (style.init_rank(init), init))

    figure = style.new_figure(10.6, 8.6)
    all_axes = figure.subplots(2, 2, sharey=True)
    for axes, (metric, label) in zip(all_axes.flat, _QUALITIES, strict=True):
        for (d, init, sigma_max), rows in table.groupby(["d", "init", "sigma_max"], sort=True):
            marks.points(
                axes, rows[f"start_{metric}"], rows["rho"], rows["converged"], colours[d],
                style.init_marker(str(init)), sizes[sigma_max], alpha=0.85,
            )  # fmt: skip
        marks.reference(axes, 1.0)
        axes.set_xlabel(label)
        if metric == "rho":
            ends = [0.0, max(1.0, *table[["rho", "start_rho"]].fillna(0.0).to_numpy().ravel())]
            axes.plot(ends, ends, color=style.MUTED, linewidth=0.9, linestyle="--", zorder=0.9)
            axes.text(
                0.2, 0.21, "training changed nothing", rotation=45, rotation_mode="anchor",
                transform_rotates_text=True, va="bottom", fontsize=8.5, color=style.MUTED,
            )  # fmt: skip
    for axes in all_axes[:, 0]:
        axes.set_ylabel("ρ at the read-out")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    keys = [
        *(marks.key(f"start: {init}", style.MUTED, marker=style.init_marker(init)) for init in inits),
        *(marks.key(f"d = {d}", colours[d], marker="o") for d in dimensions),
        *(marks.key(f"σ_max = {s:g}", style.MUTED, marker="o", markersize=sizes[s]) for s in sigmas),
        *marks.converged_keys(table["converged"]),
    ]
    marks.legend_below(figure, keys, columns=5)
    marks.headline(figure, "Does the end depend on the start?", "ρ against the quality of the untrained student S₀")
    return figure, table
