"""How fast the pairing drifts within the gate, against what a study varies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dmdpipe.evidence.drift import drift_speed, power_law
from dmdpipe.evidence.intervals import Interval, student_t_interval
from dmdpipe.figures import marks, style, tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dmdpipe.evidence.drift import Array

# What the name of a point may say, as quantity=value.
QUANTITIES = {
    "d": "dimension d",
    "lr": "student's learning rate",
    "batch": "batch",
    "updates": "fake-score updates a generator step",
    "fake": "fake score",
}
OF_TRAINING = ("lr", "batch", "updates")
PER_STEPS = 1_000


@dataclass(frozen=True)
class Curve:
    """Points of a study that differ in one quantity only.

    Attributes:
        name: what tells it from the other curves of its quantity.
        quantity: of ``QUANTITIES``.
        points: the quantity's value, as the names have it → point; ascending if all are numbers.
    """

    name: str
    quantity: str
    points: dict[str, str]

    @property
    def numbers(self) -> Array | None:
        """The values [P], or None if not all of them are positive numbers."""
        return _positive(self.points)


def curves_of(points: Iterable[str]) -> list[Curve]:
    """Return every set of two points or more that differ in one quantity only, by quantity, then in their order."""
    found: dict[str, dict[tuple[str, ...], dict[str, str]]] = {quantity: {} for quantity in QUANTITIES}
    for point in points:
        words = point.split(", ")
        for i, (quantity, _, value) in enumerate(word.partition("=") for word in words):
            if quantity in found:
                found[quantity].setdefault((*words[:i], *words[i + 1 :]), {})[value] = point
    curves = []
    for quantity, of_quantity in found.items():
        several = {rest: at for rest, at in of_quantity.items() if len(at) > 1}
        for name, at in zip(_names(list(several)), several.values(), strict=True):
            ascending = sorted(at, key=float) if _positive(at) is not None else list(at)
            curves.append(Curve(name, quantity, {value: at[value] for value in ascending}))
    return curves


def varies_training(results: pd.DataFrame) -> bool:
    """Whether a study's points differ in the student's learning rate, in the batch or in the fake score's updates."""
    return any(curve.quantity in OF_TRAINING for curve in curves_of(results["point"].unique()))


def speeds(results: pd.DataFrame) -> pd.DataFrame:
    """Return the drift speed of every student: columns point, d, seed, speed (of ρ, per 1,000 generator steps).

    NaN where fewer than three snapshots are after the gate (``dmdpipe.evidence.drift``).
    """
    runs = tables.per_seed(results[results["metric"] == "rho"]).sort_values("generator_step")
    rows = [
        {
            "point": point,
            "d": run["d"].iloc[0],
            "seed": seed,
            "speed": PER_STEPS * drift_speed(run["generator_step"], run["value"], run["converged"]),
        }
        for (point, seed), run in runs.groupby(["point", "seed"], sort=True)
    ]
    return pd.DataFrame(rows)


@style.styled
def drift_speeds(results: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw the drift speed against every quantity that the study varies one at a time, with its power law.

    A panel a quantity; a curve joins students that differ in nothing else. Marks: the mean over the seeds that have a
    speed, with its 95 % Student-t interval; hollow if some seeds have none. Small dots: single seeds. Dashed: the law.

    Args:
        results: tidy results of one study.

    Returns:
        The figure, and what it shows: a row per curve, value and seed (−1: the mean, with the curve's exponent).
    """
    curves = curves_of(results["point"].unique())
    of_student = speeds(results)
    names = list(dict.fromkeys(curve.name for curve in curves))
    colours = {name: style.PALETTE[i % len(style.PALETTE)] for i, name in enumerate(names)}
    quantities = list(dict.fromkeys(curve.quantity for curve in curves))
    n_columns = min(3, len(quantities))
    n_rows = math.ceil(len(quantities) / n_columns)
    figure = style.new_figure(max(7.0, 4.4 * n_columns), 3.6 * n_rows + 1.1)
    all_axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes in all_axes.flat[len(quantities) :]:
        axes.set_axis_off()
    tables_of = []
    for axes, quantity in zip(all_axes.flat, quantities, strict=False):
        mine = [curve for curve in curves if curve.quantity == quantity]
        places = _places(axes, mine)
        title = [QUANTITIES[quantity]]
        for curve in mine:
            table, law = _draw_curve(axes, curve, places, of_student, colours[curve.name])
            tables_of.append(table)
            title += [f"{curve.name}: {law}"] if law else []
        shown = pd.concat(tables_of[-len(mine) :])["speed"].dropna()
        if len(shown) and (shown > 0).all():
            axes.set_yscale("log")
        else:
            marks.reference(axes, 0.0)
        axes.set_title("\n".join(title), fontsize=8.5)
        axes.set_xlabel(QUANTITIES[quantity])
    for axes in all_axes[:, 0]:
        axes.set_ylabel(f"drift of ρ per {PER_STEPS:,} generator steps")
    data = pd.concat(tables_of, ignore_index=True)
    keys = [marks.key(name, colour, "none", "o") for name, colour in colours.items()]
    keys.append(marks.key("power law: speed ∝ xᵖ", style.INK, "--", linewidth=1.2))
    if not data["all_seeds"].all():
        keys.append(marks.key("hollow: not all seeds have a speed", style.MUTED, marker="o", hollow=True))
    marks.legend_below(figure, keys)
    marks.headline(figure, "How fast does the pairing drift?", marks.study_of(results))
    return figure, data


def law_words(law: Interval, found: Array) -> str:
    """Return a power law in words, with its interval; or why it is not determined, from the speeds [S, P]."""
    if np.isfinite(law.low):
        return f"p = {law.mean:.2f} [{law.low:.2f}, {law.high:.2f}]"
    if (found <= 0).any():
        return "p not determined: a speed is not positive"
    return "p not determined: too few seeds with a speed"


def _draw_curve(
    axes: Axes, curve: Curve, places: dict[str, float], of_student: pd.DataFrame, colour: str
) -> tuple[pd.DataFrame, str]:
    """Draw one curve; return its data, and in words its law, where the quantity is a number."""
    values, points = list(curve.points), list(curve.points.values())
    runs = of_student.merge(pd.DataFrame({"value": values, "point": points}), on="point")
    found = runs.pivot(index="seed", columns="point", values="speed")[points].to_numpy(dtype=float)
    law, x = Interval(np.nan, np.nan, np.nan), curve.numbers
    words = "" if np.isfinite(found).any() else "no seed has a speed"
    if x is not None:
        law = power_law(x, found, runs.groupby("point")["d"].first()[points])
        words = law_words(law, found)
        if np.isfinite(law.low):
            height, centre = np.nanmean(np.log(found), axis=0).mean(), np.log(x).mean()
            axes.plot(x, np.exp(height + law.mean * (np.log(x) - centre)), "--", color=colour, linewidth=1.2)
    counted = np.isfinite(found).sum(axis=0)
    means = pd.DataFrame([student_t_interval(speed[np.isfinite(speed)]) for speed in found.T])
    means = means.rename(columns={"mean": "speed"}).assign(
        value=values, point=points, seed=tables.AGGREGATE, n_seeds=counted,
        all_seeds=counted == runs.groupby("point").size()[points].to_numpy(),
        exponent=law.mean, exponent_low=law.low, exponent_high=law.high,
    )  # fmt: skip
    runs = runs.dropna(subset=["speed"]).assign(n_seeds=1, all_seeds=True)
    marks.points(axes, runs["value"].map(places), runs["speed"], runs["all_seeds"], colour, "o", 3, alpha=0.45)
    marks.intervals(axes, means["value"].map(places), means, colour)
    marks.points(axes, means["value"].map(places), means["speed"], means["all_seeds"], colour, "o", 7)
    data = pd.concat([means, runs[["value", "point", "seed", "speed", "n_seeds", "all_seeds"]]], ignore_index=True)
    return data.assign(quantity=curve.quantity, curve=curve.name)[list(_DATA)], words


_DATA = (
    *("quantity", "curve", "value", "point", "seed", "speed", "low", "high", "n_seeds", "all_seeds"),
    *("exponent", "exponent_low", "exponent_high"),
)


def _places(axes: Axes, curves: list[Curve]) -> dict[str, float]:
    """Return where each value stands on a panel's horizontal axis, and make it: logarithmic, if all are numbers."""
    values = dict.fromkeys(value for curve in curves for value in curve.points)
    if _positive(values) is None:
        axes.set_xticks(range(len(values)), labels=list(values))
        axes.set_xlim(-0.5, len(values) - 0.5)
        return {value: float(i) for i, value in enumerate(values)}
    at = sorted(float(value) for value in values)
    axes.set_xscale("log")
    axes.set_xlim(at[0] / 1.4, at[-1] * 1.4)
    axes.xaxis.set_major_locator(FixedLocator(at))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    return {value: float(value) for value in values}


def _names(rests: list[tuple[str, ...]]) -> list[str]:
    """Return a name for each curve of a quantity from what its points share: without quantities, if that will do."""
    names = [
        ", ".join(value for key, _, value in (w.partition("=") for w in r) if key not in QUANTITIES) for r in rests
    ]
    if len(set(names)) == len(names) and all(names):
        return names
    whole = [", ".join(rest) for rest in rests]
    own = tables.own_words(pd.Series(whole, dtype=object)) if len(whole) > 1 else {}
    return [own.get(name) or name or "all students" for name in whole]


def _positive(values: Iterable[str]) -> Array | None:
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        return None
    return numbers if (numbers > 0).all() else None
