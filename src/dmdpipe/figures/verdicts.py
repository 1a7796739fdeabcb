"""The verdict table, as HTML that stands in a notebook and needs nothing from outside."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping

# Background and text, at a contrast of at least 4.5 : 1; colour is never the only sign of a verdict.
_COLOURS = {
    "supported": ("#D7F0E5", "#00543D"),
    "refuted": ("#FADFD2", "#8A3200"),
    "inconclusive": ("#EBEBEB", "#3D3D3D"),
    "holds": ("#D7F0E5", "#00543D"),
    "fails": ("#FADFD2", "#8A3200"),
    "undecided": ("#EBEBEB", "#3D3D3D"),
}
_CELL = "padding:.5em .7em;text-align:left;vertical-align:top;border-bottom:1px solid #ddd"


def verdict_table(verdicts: pd.DataFrame, criteria: pd.DataFrame | None = None) -> str:
    """Return the verdict table: a row per claim, its verdict, the reason, and its criteria folded below.

    Args:
        verdicts: columns id, title, verdict (supported, refuted, inconclusive) and reason; the columns
            ``statement`` and ``level_of_evidence`` are shown where there are any. Rows keep their order.
        criteria: columns id (the claim's), criterion, value, low, high (the bounds that decide), threshold,
            predicts (below, above), outcome (holds, fails, undecided), reason, n_seeds, spread (standard deviation over
            seeds), effect (how many of these the value lies beyond the threshold), detectable (smallest difference
            that these seeds decide with probability 0.8) and seeds_needed (to decide the observed one).

    Returns:
        One HTML ``<table>`` with inline style, the same text for the same tables.
    """
    body = "".join(_row(claim, criteria) for claim in verdicts.to_dict("records"))
    return (
        '<table class="verdicts" style="border-collapse:collapse;width:100%">'
        f"<thead>{_cells('th', 'Claim', 'Verdict', 'Why')}</thead><tbody>{body}</tbody></table>"
    )


def _row(claim: Mapping[Any, Any], criteria: pd.DataFrame | None) -> str:
    name = f"<b>{_text(claim['id'])}: {_text(claim['title'])}</b>"
    for column, before in (("statement", ""), ("level_of_evidence", "Evidence: ")):
        if _known(claim.get(column)):
            name += f'<br><span style="color:#555;font-size:.9em">{before}{_text(claim[column])}</span>'
    mine = criteria[criteria["id"] == claim["id"]] if criteria is not None else pd.DataFrame()
    return _cells("td", name, badge(claim["verdict"]), _text(claim["reason"]) + _criteria(mine))


def _criteria(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    columns = ("Criterion", "Measured [bounds that decide]", "Claim predicts", "Outcome")
    head = _cells(
        "th", *columns, "Seeds", "SD over seeds", "Effect size", "Difference they can decide", "Seeds for this one"
    )
    body = "".join(
        _cells(
            "td",
            _text(row["criterion"]),
            measured(row["value"], row["low"], row["high"]),
            f"{_text(row['predicts'])} {number(row['threshold'])}",
            f"{badge(row['outcome'])}<br>{_text(row['reason'])}",
            _count(row["n_seeds"]),
            number(row["spread"]),
            number(row["effect"]),
            number(row["detectable"]),
            _count(row["seeds_needed"]),
        )
        for row in rows.to_dict("records")
    )
    count = f"{len(rows)} criteri{'on' if len(rows) == 1 else 'a'}"
    return (
        f'<details style="margin-top:.4em"><summary style="cursor:pointer">{count}</summary>'
        '<table style="border-collapse:collapse;font-size:.9em;margin-top:.3em">'
        f"<thead>{head}</thead><tbody>{body}</tbody></table></details>"
    )


def _cells(tag: str, *contents: str) -> str:
    return "<tr>" + "".join(f'<{tag} style="{_CELL}">{content}</{tag}>' for content in contents) + "</tr>"


def measured(value: Any, low: Any, high: Any) -> str:
    """Return a number with its interval or bounds, as far as they are known."""
    if not _known(value):
        return "–"
    if not (_known(low) and _known(high)):
        return f"{number(value)} (no bounds)"
    return f"{number(value)} [{number(low)}, {number(high)}]"


def _count(value: Any) -> str:
    return f"{value:.0f}" if _known(value) else "–"


def colours(word: Any) -> tuple[str, str]:
    """Return the background and the text colour of a verdict or an outcome."""
    return _COLOURS.get(str(word), _COLOURS["inconclusive"])


def badge(word: Any) -> str:
    """Return a verdict or an outcome as a coloured word."""
    background, colour = colours(word)
    look = f"background:{background};color:{colour};padding:.15em .6em;border-radius:.8em;white-space:nowrap"
    return f'<span style="{look};font-weight:600">{_text(word)}</span>'


def number(value: Any) -> str:
    """Return three digits of a number; a dash where there is none."""
    return f"{float(value):.3g}".replace("-", "−").replace("inf", "∞") if _known(value) else "–"


def _text(value: Any) -> str:
    return escape(str(value)) if _known(value) else ""


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and pd.isna(value))
