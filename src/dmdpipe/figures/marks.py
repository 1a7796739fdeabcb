"""The marks that all plots share: hollow points, intervals, reference lines, legends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D

from dmdpipe.figures import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Look:
    """How one curve looks."""

    colour: str
    line: Any
    marker: str


def looks(table: pd.DataFrame, series: pd.Series) -> dict[str, Look]:
    """Return a look for every curve: its start's where starts differ, else one per curve."""
    starts = table["init"].groupby(series).first().sort_index()
    names = sorted(starts.index, key=lambda name: (style.init_rank(starts[name]), name))
    if starts.nunique() == 1:
        return {
            name: Look(
                style.PALETTE[i % len(style.PALETTE)],
                style.LINE_STYLES[i // len(style.PALETTE) % len(style.LINE_STYLES)],
                style.MARKERS[i % len(style.MARKERS)],
            )
            for i, name in enumerate(names)
        }
    result: dict[str, Look] = {}
    seen: dict[str, int] = {}
    for name in names:
        start = starts[name]
        i = seen.get(start, 0)
        seen[start] = i + 1
        line = style.LINE_STYLES[i % len(style.LINE_STYLES)]
        result[name] = Look(style.init_colour(start), line, style.init_marker(start))
    return result


@dataclass(frozen=True)
class Panel:
    """What one panel of a figure shows: one data set at one σ_max."""

    data: str
    sigma_max: float
    title: str

    def rows(self, table: pd.DataFrame) -> pd.Series:
        """Return which rows of a table belong here."""
        return (table["data"] == self.data) & (table["sigma_max"] == self.sigma_max)


def panels(table: pd.DataFrame) -> list[Panel]:
    """Return a panel per data set and σ_max of the table, ordered by family, dimension, name and σ_max."""
    keys = ["family", "d", "data", "sigma_max"]
    cells = table[keys].drop_duplicates().sort_values(keys).to_dict("records")
    return [
        Panel(
            cell["data"],
            cell["sigma_max"],
            f"{cell['data']}  (d = {cell['d']}, σ_max = {cell['sigma_max']:g})",
        )
        for cell in cells
    ]


def points(
    axes: Axes, x: ArrayLike, y: ArrayLike, converged: ArrayLike, colour: str, marker: str = "o",
    size: float = 6, **kwargs: Any,
) -> None:  # fmt: skip
    """Draw markers: filled where converged, hollow where not; x and y in data units, size in points."""
    full = np.asarray(converged, dtype=bool)
    for chosen, face in ((full, colour), (~full, "white")):
        if chosen.any():
            axes.plot(
                np.asarray(x, dtype=float)[chosen], np.asarray(y, dtype=float)[chosen], linestyle="none",
                marker=marker, markersize=size, markeredgecolor=colour, markerfacecolor=face,
                markeredgewidth=1.2, **kwargs,
            )  # fmt: skip


def intervals(axes: Axes, at: ArrayLike, rows: pd.DataFrame, colour: str, across: bool = False) -> None:
    """Draw the 95 % intervals of aggregate rows, where they have one; ``across``: horizontally."""
    bars = axes.hlines if across else axes.vlines
    known = np.isfinite(rows["low"].to_numpy(dtype=float)) & np.isfinite(rows["high"].to_numpy(dtype=float))
    if known.any():
        where = np.asarray(at, dtype=float)[known]
        bars(where, rows["low"].to_numpy()[known], rows["high"].to_numpy()[known], color=colour, linewidth=1.6)


def reference(axes: Axes, value: float, across: bool = False) -> None:
    """Draw a thin reference line behind the data; ``across``: values run along the horizontal axis."""
    line = axes.axvline if across else axes.axhline
    line(value, color=style.MUTED, linewidth=0.9, zorder=0.9)


def key(label: str, colour: str, line: Any = "none", marker: str = "", hollow: bool = False, **kwargs: Any) -> Line2D:
    """Return a legend entry."""
    face = "white" if hollow else colour
    return Line2D([], [], color=colour, linestyle=line, marker=marker, markerfacecolor=face, label=label, **kwargs)


def look_keys(table: dict[str, Look]) -> list[Line2D]:
    """Return a legend entry for every curve."""
    return [key(f"start: {name}", look.colour, look.line, look.marker) for name, look in table.items()]


def converged_keys(converged: Iterable[bool]) -> list[Line2D]:
    """Return the legend entry that explains hollow marks, if the figure has any."""
    return [] if all(converged) else [key(style.NOT_CONVERGED, style.MUTED, marker="o", hollow=True)]


def legend_below(figure: Figure, keys: Sequence[Line2D], columns: int = 4) -> None:
    """Put the legend under the axes, where it covers no data."""
    figure.legend(handles=list(keys), loc="outside lower left", ncols=min(columns, len(keys)))


def headline(figure: Figure, question: str, about: str) -> None:
    """Write the question that the figure answers above it, and what it is about: a study, a data set."""
    figure.suptitle(f"{question}\n{about}", x=0.005, ha="left")


def study_of(table: pd.DataFrame) -> str:
    """Return the studies of a table as a headline names them."""
    return "study " + ", ".join(f"“{name}”" for name in sorted(table["study"].unique()))
