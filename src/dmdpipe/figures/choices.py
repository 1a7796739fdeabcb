"""What the claims' verdicts would be with other choices, as HTML that needs nothing from outside."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from dmdpipe.figures.verdicts import badge, colours

if TYPE_CHECKING:
    import pandas as pd

_CELL = "padding:.25em .4em;text-align:center;border:1px solid #ddd"


def choice_table(sensitivity: pd.DataFrame) -> str:
    """Return a row per claim, a column per option, its verdict in each cell, in bold where it is not the declared one.

    A cell is empty where the option touches no criterion of the claim; the declared option is framed.

    Args:
        sensitivity: columns id, title, declared, choice, option, as_declared, verdict and change, as in
            ``sensitivity.parquet``. Rows keep their order.

    Returns:
        One HTML ``<table>`` with inline style, the same text for the same rows.
    """
    rows = sensitivity.to_dict("records")
    if not rows:
        return "<p>No claim was tested.</p>"
    options = list(dict.fromkeys((row["choice"], row["option"]) for row in rows))
    by_cell = {(row["id"], row["choice"], row["option"]): row for row in rows}
    widths = {choice: sum(of == choice for of, _ in options) for choice, _ in options}
    groups = "".join(f'<th colspan="{width}" style="{_CELL}">{escape(name)}</th>' for name, width in widths.items())
    names = "".join(f'<th style="{_CELL};font-weight:400">{escape(name)}</th>' for _, name in options)
    head = f'<tr><th rowspan="2" style="{_CELL}">Claim</th><th rowspan="2" style="{_CELL}">Verdict</th>{groups}</tr>'
    body = ""
    for id_ in dict.fromkeys(row["id"] for row in rows):
        mine = [by_cell.get((id_, *option)) for option in options]
        declared = next(row["declared"] for row in mine if row)
        cells = "".join(map(_cell, mine))
        body += f'<tr><th style="{_CELL}">{escape(id_)}</th><td style="{_CELL}">{badge(declared)}</td>{cells}</tr>'
    return (
        '<div style="overflow-x:auto"><table class="choices" style="border-collapse:collapse;font-size:.75em">'
        f"<thead>{head}<tr>{names}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(row: Mapping[Any, Any] | None) -> str:
    if row is None:
        return f'<td style="{_CELL}"></td>'
    background, colour = colours(row["verdict"])
    frame = ";outline:2px solid #555;outline-offset:-3px" if row["as_declared"] else ""
    word = escape(row["verdict"])
    shown = f"<b>{word}</b>" if row["change"] else word
    return f'<td style="{_CELL};background:{background};color:{colour}{frame}">{shown}</td>'
