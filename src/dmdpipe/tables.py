"""Printing tables: CSV and JSON for programs, aligned columns and paragraphs for people."""

from __future__ import annotations

import textwrap
from enum import StrEnum
from typing import TYPE_CHECKING

from dmdpipe.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd


class Format(StrEnum):
    """How a table is printed."""

    table = "table"
    csv = "csv"
    json = "json"


def read_table(path: Path) -> pd.DataFrame:
    """Return a parquet or CSV table of the results.

    Raises:
        UserError: if the file is damaged.
    """
    import pandas as pd

    try:
        return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({' '.join(str(error).split())}); delete it and run again") from None


def render(table: pd.DataFrame, form: Format) -> str:
    """Return a table as text; missing numbers are empty in CSV and null in JSON."""
    match form:
        case Format.csv:
            return table.to_csv(index=False).rstrip("\n")
        case Format.json:
            return table.to_json(orient="records", indent=1, double_precision=15)
        case Format.table:
            return table.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}")


def verdict_text(table: pd.DataFrame) -> str:
    """Return the verdict table for a terminal: one claim a paragraph, the reason below it."""
    width = max(len(title) for title in table["title"])
    lines = []
    for row in table.astype(str).to_dict("records"):
        lines.append(f"{row['id']:3} {row['title']:{width}}  {row['verdict'].upper()}")
        lines += textwrap.wrap(row["reason"], 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)
