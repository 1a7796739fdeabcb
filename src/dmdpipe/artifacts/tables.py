"""Tables as parquet: the same bytes for the same table and pyarrow. Both libraries load only when used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmdpipe.artifacts.checked import one_line
from dmdpipe.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def encode_table(table: pd.DataFrame) -> bytes:
    """Return the bytes of a parquet file with the columns of ``table``, without its index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # pandas' own metadata names its version, and a codec's version would show in the bytes. Plain values, so that a
    # reader can tell from a file's size how much memory it takes.
    columns = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    pq.write_table(columns, sink, compression="none", use_dictionary=False)
    return bytes(sink.getvalue())


def decode_table(data: bytes, where: str) -> pd.DataFrame:
    """Return the table in the bytes of a parquet file.

    Raises:
        UserError: if they are no such file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(pa.BufferReader(data)).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{where}: is no valid parquet file ({one_line(error)}); run its step again") from None
