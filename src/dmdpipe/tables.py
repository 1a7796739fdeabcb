"""Printing tables: CSV and JSON for programs, aligned columns for people."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


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
