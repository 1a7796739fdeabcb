"""What the notebooks in ``reports/`` call: draw a figure for every part of a table, save it, show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from IPython.display import HTML, Image, display

from dmdpipe.figures import style
from dmdpipe.figures.tables import AGGREGATE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    Draw = Callable[..., tuple[Figure, pd.DataFrame]]

NOTHING = "No run of this kind at this scale."


def show(draw: Draw, named: Iterable[tuple[str, pd.DataFrame]], folder: Path | str, **kwargs: object) -> None:
    """Draw, save and display one figure for every named part of a table; say so if there is none.

    Args:
        draw: a plotting function of ``dmdpipe.figures``, called as ``draw(rows, **kwargs)``.
        named: pairs (name, rows), e.g. from ``dmdpipe.figures.tables.parts``.
        folder: receives ``<function>-<name>.png``, ``.pdf`` and ``.csv`` (the figure's data).
        kwargs: passed on to ``draw``.
    """
    drew = False
    for name, rows in named:
        drew = True
        figure, data = draw(rows, **kwargs)
        suptitle = figure.get_suptitle().replace("\n", " ")
        paths = style.save_figure(figure, folder, f"{draw.__name__}-{name}", data, {"Title": suptitle})
        width = int(figure.get_figwidth() * figure.dpi)
        display(Image(data=paths[0].read_bytes(), format="png", width=width, alt=suptitle))
        files = ", ".join(path.name for path in paths)
        say(f"Study and data: {name}. Beside this page lie the figure and its data: {files}", small=True)
    if not drew:
        say(NOTHING)


def scale_note(results: pd.DataFrame, scale: str) -> None:
    """Display what the page rests on: the scale, its studies, its points and its seeds."""
    studies = ", ".join(sorted(results["study"].unique()))
    runs = results[results["seed"] != AGGREGATE]
    points, seeds = len(runs.groupby(["study", "point"])), runs["seed"].nunique()
    words = [f"{points} point{'s' * (points != 1)}", f"{seeds} seed{'s' * (seeds != 1)} at most"]
    warning = " Too few seeds for an interval or a verdict: this run only shows that the pipeline works." * (seeds < 3)
    say(f"Scale “{scale}”: studies {studies or 'none'}; {', '.join(words)}.{warning}")


def list_pages(results: pd.DataFrame) -> None:
    """Display links to the other pages, as they lie beside this one: each study's, then those over all studies."""
    names = [f"study_{study}" for study in dict.fromkeys(results["study"])]
    links = [
        f'<a href="../{escape(name)}/notebook.html">{escape(name.replace("_", " "))}</a>'
        for name in [*names, "start_quality", "gate"]
    ]
    display(HTML(f"<p>Pages: {', '.join(links)}.</p>"))


def say(text: str, small: bool = False) -> None:
    """Display one paragraph of plain text."""
    look = ' style="color:#6B6B6B;font-size:.85em"' if small else ""
    display(HTML(f"<p{look}>{escape(text)}</p>"))
