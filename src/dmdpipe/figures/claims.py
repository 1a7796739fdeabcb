"""The first page's cards: a claim, its verdict, one small figure of its criteria, and what evidence is missing."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmdpipe.figures import style
from dmdpipe.figures.verdicts import badge, number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_COLOURS = {"holds": style.GREEN, "fails": style.VERMILLION, "undecided": style.MUTED}
# Wider than the page's text, so that on a usual screen eight cards are two rows of four, with figures that can be read.
_WIDTH = "min(92rem, 100vw - 3rem)"
_GRID = (
    f"width:calc({_WIDTH});margin-left:calc(50% - {_WIDTH} / 2);"
    "display:grid;grid-template-columns:repeat(auto-fill,minmax(18.5rem,1fr));gap:.8rem"
)
_CARD = "border:1px solid #ddd;border-radius:.5rem;padding:.6rem .7rem;font-size:.85rem;line-height:1.35"


@style.styled
def criteria_strips(criteria: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw a claim's criteria, a strip each: the number and the bounds that decide it, from its threshold.

    The threshold stands in the middle, the side that the claim predicts is shaded. Each strip has a scale of its own,
    wide enough for its bounds as far as they are finite: strips are about sides and margins, not to be compared in
    size. A criterion without a number shows none.

    Args:
        criteria: the rows of one claim, as in ``criteria.parquet``.

    Returns:
        The figure, and the rows that it shows.
    """
    rows = criteria.to_dict("records")
    figure = style.new_figure(4.2, 0.1 + 0.5 * max(len(rows), 1))
    all_axes: Any = figure.subplots(max(len(rows), 1), 1, squeeze=False)[:, 0]
    for axes, row in zip(all_axes, rows, strict=False):
        _strip(axes, row)
    if not rows:
        all_axes[0].text(0.0, 0.0, "no criterion yet", color=style.MUTED, ha="center", fontsize=8)
    for axes in all_axes:
        axes.set(xlim=(-1.1, 1.1), ylim=(-1.0, 1.0), xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    return figure, criteria.reset_index(drop=True)


def _strip(axes: Any, row: Mapping[Any, Any]) -> None:
    above = row["predicts"] == "above"
    axes.axvspan(0.0 if above else -1.1, 1.1 if above else 0.0, ymin=0.0, ymax=0.45, color=style.BLUE, alpha=0.1, lw=0)
    axes.axvline(0.0, ymin=0.0, ymax=0.45, color=style.INK, linewidth=1.0)
    axes.text(-1.1, 0.98, str(row["criterion"]), fontsize=7.5, va="top")
    colour = _COLOURS.get(str(row["outcome"]), style.MUTED)
    off = [float(row[name]) - float(row["threshold"]) for name in ("low", "value", "high")]
    reach = max((abs(x) for x in off if math.isfinite(x)), default=0.0) or 1.0
    low, value, high = (max(-1.1, min(1.1, x / reach)) for x in off)
    if math.isnan(off[1]):
        axes.text(0.03, -0.55, "not measured", fontsize=7.5, color=style.MUTED, va="center")
        return
    if not (math.isnan(off[0]) or math.isnan(off[2])):
        axes.plot([low, high], [-0.55, -0.55], color=colour, linewidth=2.0, solid_capstyle="butt")
    face = "white" if row["outcome"] == "undecided" else colour
    axes.plot(value, -0.55, "o", color=colour, markersize=6, markerfacecolor=face)
    words = f"{number(row['value'])}, threshold {number(row['threshold'])}"
    axes.text(1.1, 0.98, words, fontsize=7, va="top", ha="right", color=style.MUTED, backgroundcolor="white")


def claim_cards(verdicts: pd.DataFrame, criteria: pd.DataFrame, output: Path | str) -> str:
    """Return all claims as a grid of cards, in HTML with inline style that needs nothing from outside.

    Args:
        verdicts: columns id, title, verdict and statement. Rows keep their order.
        criteria: the claims' criteria, as in ``criteria.parquet``.
        output: receives each card's figure, ``criteria_strips-<claim>.png``, ``.pdf`` and ``.csv``.
    """
    cards = []
    for claim in verdicts.to_dict("records"):
        mine = criteria[criteria["id"] == claim["id"]]
        figure, data = criteria_strips(mine)
        name = str(claim["id"])
        png, *_ = style.save_figure(figure, output, f"criteria_strips-{name}", data, {"Title": f"Criteria of {name}"})
        image = base64.b64encode(png.read_bytes()).decode()
        statement = claim.get("statement")
        cards.append(
            f'<div style="{_CARD}"><div><b>{escape(name)} {escape(str(claim["title"]))}</b></div>'
            f'<div style="margin:.3em 0">{badge(claim["verdict"])}</div>'
            f'<div style="color:#555">{escape(statement) if isinstance(statement, str) else ""}</div>'
            f'<img style="width:100%" alt="Criteria of {escape(name)}" src="data:image/png;base64,{image}">'
            f"<div>{escape(missing_evidence(str(claim['verdict']), mine))}</div></div>"
        )
    return f'<div style="{_GRID}">{"".join(cards)}</div>'


def missing_evidence(verdict: str, criteria: pd.DataFrame) -> str:
    """Return what would decide an inconclusive claim, from its criteria; empty for any other verdict."""
    if verdict != "inconclusive":
        return ""
    needs = []
    if (criteria["outcome"] == "fails").any():
        # A criterion that fails refutes, unless what fails, or is open, is a premise.
        needs.append("a run in which the premises hold, since without them nothing is tested")
    for row in criteria[criteria["outcome"] == "undecided"].to_dict("records"):
        study = row["study"]
        match row["cause"]:
            case "no study":
                need = f"study {study}, which has not been run"
            case "no matching run":
                need = f"study {study} with more of its points than this scale has"
            case "interval crosses" if math.isfinite(row["seeds_needed"]):
                need = f"{row['seeds_needed']:.0f} seeds of study {study}"
            case "interval crosses":
                need = f"more seeds of study {study} than can be run"
            case "statistic undefined":
                need = f"study {study} where its number is defined for every seed"
            case _:
                need = f"more converged seeds of study {study}"
        needs.append(need)
    return f"What would decide it: {'; '.join(dict.fromkeys(needs))}." if needs else ""
