"""What the notebooks in ``reports/`` call: draw a figure for every part of a table, save it, show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from IPython.display import HTML, Image, display

from dmdpipe.figures import style

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
        suptitle = figure.get_suptitle()
        paths = style.save_figure(figure, folder, f"{draw.__name__}-{name}", data, {"Title": suptitle})
        width = int(figure.get_figwidth() * figure.dpi)
        display(Image(data=paths[0].read_bytes(), format="png", width=width, alt=suptitle))
        files = ", ".join(path.name for path in paths)
        say(f"Study and data: {name}. Files beside this page, the figure's data among them: {files}", small=True)
    if not drew:
        say(NOTHING)


def say(text: str, small: bool = False) -> None:
    """Display one paragraph of plain text."""
    look = ' style="color:#6B6B6B;font-size:.85em"' if small else ""
    display(HTML(f"<p{look}>{escape(text)}</p>"))
