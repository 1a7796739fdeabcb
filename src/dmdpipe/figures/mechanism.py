"""Which map a student approaches: its distance to every named map, over training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.figures import marks, style, tables
from dmdpipe.figures.curves import step_axis

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MAPS = (
    ("rho", "the teacher T", style.BLUE, "-"),
    ("rho_rotated", "the rotated teacher T∘Q", style.PURPLE, "-"),
    ("rho_transport", "optimal transport, by assignment", style.VERMILLION, "-"),
    ("rho_gaussian_transport", "transport between Gaussians of these moments", style.VERMILLION, "--"),
    ("rho_flow", "the particle flow of the start Φ∘S₀", style.GREEN, "-"),
    ("rho_linear", "the best affine map of the noise", style.ORANGE, "-"),
    ("rho_initial", "the start S₀", style.MUTED, "-"),
)
ASYMMETRY = ("jacobian_asymmetry", "jacobian_asymmetry_teacher")
_PANEL_WIDTH, _PANEL_HEIGHT = 4.1, 3.0


@style.styled
def maps_over_time(results: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw ρ(S, M) for every named map M against the generator step, and the Jacobians' asymmetry: a panel per point.

    Above, the mean over seeds with its 95 % interval, and which map is nearest at the end. Hollow marks have not
    converged. Below, ‖J − Jᵀ‖/‖J‖ of the student, dashed that of the teacher.

    Args:
        results: tidy results of one study; points whose distances to named maps were not taken are left out.

    Returns:
        The figure, and the tidy rows that it shows.
    """
    shown = _with_maps(results)
    shown = shown[shown["metric"].isin([*(metric for metric, *_ in MAPS), *ASYMMETRY])]
    means = tables.over_seeds(shown)
    names = list(dict.fromkeys(means.loc[means["metric"] == "jacobian_asymmetry", "point"]))
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = style.new_figure(max(7.0, _PANEL_WIDTH * columns), (_PANEL_HEIGHT + 1.5) * rows + 1.7)
    axes_of = figure.subplots(2 * rows, columns, squeeze=False, sharex="col", height_ratios=[2.2, 1] * rows)
    for axes in axes_of.flat:
        axes.set_axis_off()
    for i, name in enumerate(names):
        above, below = axes_of[2 * (i // columns), i % columns], axes_of[2 * (i // columns) + 1, i % columns]
        here = means[means["point"] == name]
        for axes in (above, below):
            axes.set_axis_on()
        for metric, _, colour, line in MAPS:
            curve = here[(here["metric"] == metric) & np.isfinite(here["value"])].sort_values("generator_step")
            above.plot(curve["generator_step"], curve["value"], linestyle=line, color=colour)
            marks.intervals(above, curve["generator_step"], curve, colour)
            marks.points(above, curve["generator_step"], curve["value"], curve["converged"], colour, "o", 4)
        marks.reference(above, 1.0)
        for metric, line in zip(ASYMMETRY, ("-", "--"), strict=True):
            curve = here[here["metric"] == metric].sort_values("generator_step")
            below.plot(curve["generator_step"], curve["value"], linestyle=line, color=style.INK)
        title = f"{name.partition('=')[2] if name.count('=') == 1 else name}  (d = {here['d'].iloc[0]})"
        above.set_title(f"{title}\n{nearest_map(shown[shown['point'] == name])}", fontsize=8.5)
        above.set_ylim(bottom=min(0.0, above.get_ylim()[0]))
        below.set_ylim(bottom=0.0)
        step_axis(below, np.sort(here["generator_step"].unique()))
        below.set_xlabel("generator step")
        if i % columns == 0:
            above.set_ylabel("ρ between S(z) and the map")
            below.set_ylabel("‖J − Jᵀ‖ / ‖J‖")
    keys = [marks.key(label, colour, line) for _, label, colour, line in MAPS]
    keys += [
        marks.key("Jacobian of the student", style.INK, "-"),
        marks.key("Jacobian of the teacher's map", style.INK, "--"),
        *marks.converged_keys(means.loc[means["metric"] == "rho", "converged"]),
    ]
    marks.legend_below(figure, keys, columns=2)
    marks.headline(figure, "Which map does the student approach?", marks.study_of(shown))
    return figure, tables.drawn(shown)


def nearest_map(point: pd.DataFrame) -> str:
    """Return in words which named map is nearest at the read-out of one point: the one with the smallest mean ρ.

    Counted are the converged seeds, in brackets those in which it is the nearest; a map that is not available in all
    of them (a flow over the gate) is left out.
    """
    runs = tables.per_seed(tables.at_readout(point, *(metric for metric, *_ in MAPS)))
    counted = runs[runs["converged"].astype(bool)].pivot(index=["study", "seed"], columns="metric", values="value")
    if counted.empty:
        return "no seed has converged"
    known = counted.dropna(axis=1)
    best = known.mean().idxmin()
    label = next(label for metric, label, *_ in MAPS if metric == best)
    return f"nearest: {label} ({(known.idxmin(axis=1) == best).sum()} of {len(known)})"


def _with_maps(results: pd.DataFrame) -> pd.DataFrame:
    points = results.loc[results["metric"] == "jacobian_asymmetry", ["study", "point"]].drop_duplicates()
    return results.merge(points, on=["study", "point"])
