"""One style for every figure, and the one way in which a figure is written.

Figures are drawn on ``matplotlib.figure.Figure`` directly, without pyplot: no global state, no display, and
the same bytes for the same data, because the fonts (DejaVu, bundled with matplotlib), the backend (Agg), the
resolution and every identifier and date in the files are fixed here. Whatever a user's ``matplotlibrc`` says
is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    import pandas as pd

P = ParamSpec("P")
R = TypeVar("R")

# Okabe and Ito's palette, told apart by readers with any common kind of colour blindness.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
WINE, OLIVE = "#882255", "#999933"  # of Tol's palette: their yellow is hard to see on white
INK, MUTED, FAINT = "#222222", "#6B6B6B", "#D9D9D9"
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK)

INIT_COLOURS = {
    "teacher": BLUE,
    "rotated": SKY,
    "edm-default": GREEN,
    "random-head": ORANGE,
    "random-no-skip": VERMILLION,
    "kd": WINE,
    "kd-one-step": OLIVE,
    "kd-rotated": PURPLE,
    "other-teacher": BLACK,
    "partial": YELLOW,
    "interpolated": MUTED,
}
INIT_MARKERS = {
    "teacher": "o",
    "rotated": "h",
    "edm-default": "s",
    "random-head": "^",
    "random-no-skip": "v",
    "kd": "*",
    "kd-one-step": "p",
    "kd-rotated": "D",
    "other-teacher": "X",
    "partial": "<",
    "interpolated": ">",
}
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

NOT_CONVERGED = "hollow: not converged"

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "mathtext.fontset": "dejavusans",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ECECEC",
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "figure.dpi": 100,
    "figure.titlesize": 12.5,
    "figure.titleweight": "bold",
    "savefig.dpi": 130,
    "savefig.facecolor": "white",
    "svg.hashsalt": "dmdpipe",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` run under the project's style, whatever settings the process has."""

    @functools.wraps(function)
    def under_style(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_SETTINGS)
            return function(*args, **kwargs)

    return under_style


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches; call it from a ``styled`` function."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def init_colour(init: str) -> str:
    """Return the fixed colour of a start; an unknown start is drawn in grey."""
    return INIT_COLOURS.get(init, MUTED)


def init_marker(init: str) -> str:
    """Return the fixed marker of a start."""
    return INIT_MARKERS.get(init, "P")


def init_rank(init: str) -> int:
    """Return a start's place in the order in which starts are always shown; unknown ones come last."""
    order = list(INIT_COLOURS)
    return order.index(init) if init in order else len(order)


@styled
def save_figure(
    figure: Figure, folder: Path | str, name: str, data: pd.DataFrame, metadata: dict[str, str] | None = None
) -> list[Path]:
    """Write ``<name>.png``, ``<name>.pdf`` and ``<name>.csv`` (the figure's data) into a folder.

    The same figure gives the same bytes: the files carry no date, no program version and no random
    identifier.

    Args:
        figure: what a function of ``dmdpipe.figures.plots`` returned first.
        folder: made if it is missing.
        name: the file name without suffix.
        data: what that function returned second; written with the shortest decimals that give the same
        float64. metadata: ``Title`` and ``Description`` to embed.

    Returns:
        The three paths: PNG, PDF, CSV.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    png, pdf, csv = (folder / f"{name}.{suffix}" for suffix in ("png", "pdf", "csv"))
    described = dict(metadata or {})
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once: it takes longer than drawing
    figure.savefig(png, format="png", metadata={"Software": "dmdpipe", **described})
    figure.savefig(
        pdf,
        format="pdf",
        metadata={
            "Creator": "dmdpipe",
            "Producer": "dmdpipe",
            "CreationDate": None,
            "ModDate": None,
            "Title": described.get("Title"),
            "Subject": described.get("Description"),
        },
    )
    data.to_csv(csv, index=False, lineterminator="\n")
    return [png, pdf, csv]
