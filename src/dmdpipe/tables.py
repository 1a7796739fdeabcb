"""Printing tables: CSV and JSON for programs, aligned columns and paragraphs for people."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

VERDICT_COLUMNS = ("id", "title", "verdict", "reason")
SENSITIVITY_COLUMNS = ("id", "title", "declared", "choice", "option", "as_declared", "verdict", "change")
RESULT_COLUMNS = ("metric", "readout")


class Format(StrEnum):
    """How a table is printed."""

    table = "table"
    csv = "csv"
    json = "json"


def render(table: pd.DataFrame, form: Format) -> str:
    """Return a table as text; missing numbers are empty in CSV and null in JSON."""
    match form:
        case Format.csv:
            return table.to_csv(index=False).rstrip("\n")
        case Format.json:
            return table.to_json(orient="records", indent=1, double_precision=15)
        case Format.table:
            return table.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}")


def verdict_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return verdicts for a terminal: one claim or control a paragraph, the reason below it.

    Args:
        rows: the verdicts, with at least ``VERDICT_COLUMNS``, all text.
    """
    ids, width = (max((len(row[column]) for row in rows), default=0) for column in ("id", "title"))
    lines = []
    for row in rows:
        lines.append(f"{row['id']:{max(ids, 3)}} {row['title']:{width}}  {row['verdict'].upper()}")
        lines += textwrap.wrap(row["reason"], 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def sensitivity_text(table: pd.DataFrame) -> str:
    """Return the table of other choices for a terminal: one claim a paragraph, one choice a line, changes in capitals.

    ``table`` is as ``dmdpipe.evidence.sensitivity.sensitivity_table`` returns it.
    """
    rows = table.to_dict("records")
    width = max((len(row["title"]) for row in rows), default=0)
    lines = []
    for i, row in enumerate(rows):
        before = rows[i - 1] if i else {}
        if row["id"] != before.get("id"):
            lines.append(f"{row['id']:3} {row['title']:{width}}  {row['declared'].upper()}")
        if (row["id"], row["choice"]) != (before.get("id"), before.get("choice")):
            same = [other for other in rows if (other["id"], other["choice"]) == (row["id"], row["choice"])]
            options = "; ".join(map(_option_words, same))
            lines += textwrap.wrap(options, 100, initial_indent=f"      {row['choice']:9} ", subsequent_indent=" " * 16)
    changed = sum(bool(row["change"]) for row in rows)
    return "\n".join([*lines, "", f"{changed} of {len(rows)} readings give another verdict than the declared one"])


def _option_words(row: Mapping[Any, Any]) -> str:
    declared = " (declared)" if row["as_declared"] else ""
    change = f" {row['change'].upper()}" if row["change"] else ""
    return f"{row['option']}{declared}: {row['verdict']}{change}"
