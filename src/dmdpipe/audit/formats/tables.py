"""Tables, column by column: parquet and CSV."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dmdpipe.artifacts.checked import one_line
from dmdpipe.artifacts.tables import decode_table
from dmdpipe.audit.formats.difference import Difference, Tolerance
from dmdpipe.audit.formats.numbers import largest_difference
from dmdpipe.audit.formats.values import value_differences

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


def read_parquet(data: bytes) -> pd.DataFrame:
    """Return a parquet table; raises UserError if it is none."""
    return decode_table(data, "the file")


def read_csv(data: bytes) -> pd.DataFrame:
    """Return a CSV table with a header; an empty cell is missing. Raises ValueError if it is none."""
    import pandas as pd

    return pd.read_csv(io.BytesIO(data), low_memory=False, index_col=False)


def table_differences(a: pd.DataFrame, b: pd.DataFrame, tolerance: Tolerance) -> Iterator[Difference]:
    """Yield the largest difference of each numeric column that differs, and every one of other columns.

    Rows are counted from 0 and paired by number. Rows with the same text in all columns of text are of one kind: their
    numbers in a column share an rms. So ρ is not judged by the size of the training loss that stands in other rows of
    the same column.
    """
    if list(a.columns) != list(b.columns):
        changed = [name for name in [*a.columns, *b.columns] if (name in a.columns) != (name in b.columns)]
        what = f"not in both: {', '.join(changed)}" if changed else "another order"
        yield Difference("columns", one_line(what), structural=True)
        return
    if len(a) != len(b):
        yield Difference("rows", f"{len(a)} → {len(b)}", structural=True)
        return
    kinds = _kinds_of_rows(a)
    for i, name in enumerate(a.columns):
        yield from _column_differences(f"column '{one_line(name)}'", a.iloc[:, i], b.iloc[:, i], tolerance, kinds)


def _column_differences(
    where: str, a: pd.Series, b: pd.Series, tolerance: Tolerance, kinds: NDArray[np.intp]
) -> Iterator[Difference]:
    types = (a.dtype.kind, b.dtype.kind)
    if a.dtype != b.dtype and not set(types) <= set("iuf"):
        yield Difference(where, f"{a.dtype} → {b.dtype}", structural=True)
    elif set(types) <= set("biuf"):
        if found := largest_difference(a.to_numpy(), b.to_numpy(), tolerance, kinds):
            yield Difference(f"{where}, row {found.place[0]}", found.what, found.excess, found.size, "of the rms")
    else:
        for row, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from value_differences(_plain(x), _plain(y), tolerance, f"{where}, row {row}")


def _kinds_of_rows(table: pd.DataFrame) -> NDArray[np.intp]:
    import numpy as np

    texts = [table.iloc[:, i] for i in range(table.shape[1]) if _is_text(table.iloc[:, i])]
    numbers: dict[tuple[str, ...], int] = {}
    rows = zip(*texts, strict=True) if texts else [()] * len(table)
    return np.array([numbers.setdefault(row, len(numbers)) for row in rows], dtype=np.intp)


def _is_text(column: pd.Series) -> bool:
    return column.dtype.kind not in "biuf" and all(isinstance(value, str) for value in column)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
