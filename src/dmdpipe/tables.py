"""Printing tables: CSV and JSON for programs, aligned columns and paragraphs for people."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Collection
from enum import StrEnum
from typing import TYPE_CHECKING

from dmdpipe.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

VERDICT_COLUMNS = ("id", "title", "verdict", "reason")
RESULT_COLUMNS = ("metric", "readout")


class Format(StrEnum):
    """How a table is printed."""

    table = "table"
    csv = "csv"
    json = "json"


def read_table(path: Path, columns: Collection[str] = ()) -> pd.DataFrame:
    """Return a parquet or CSV table of the results, as its step made it.

    Args:
        path: a file in the folder of a step.
        columns: those that it must have.

    Raises:
        UserError: if the file is not the one that the manifest beside it describes, or is damaged.
    """
    import pandas as pd

    from dmdpipe.artifacts.tables import decode_table
    from dmdpipe.audit.tree import read_artifact

    data = read_artifact(path).read(path.name)
    if path.suffix == ".csv":
        try:
            table = pd.read_csv(io.BytesIO(data))
        except ValueError as error:
            raise UserError(f"{path}: is damaged ({' '.join(str(error).split())}); delete it and run again") from None
    else:
        table = decode_table(data, str(path))
    if missing := [column for column in columns if column not in table]:
        raise UserError(f"{path}: has no column '{missing[0]}'; delete it and run again")
    return table


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
    rows = table.astype(str).to_dict("records")
    width = max((len(row["title"]) for row in rows), default=0)
    lines = []
    for row in rows:
        lines.append(f"{row['id']:3} {row['title']:{width}}  {row['verdict'].upper()}")
        lines += textwrap.wrap(row["reason"], 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)
