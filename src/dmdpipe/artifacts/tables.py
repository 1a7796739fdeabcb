"""Tables as parquet: the same bytes for the same table and pyarrow. Both libraries load only when used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmdpipe.artifacts.checked import one_line
from dmdpipe.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq


LARGEST_NUMBER_OF_COLUMNS = 1000
NUMBERS = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float", "double")
TYPES = (*NUMBERS, "null", "string", "large_string")
LISTED_TYPES = ("float", "double")
ENCODINGS = {"PLAIN", "RLE"}


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
    """Return the table in the bytes of a parquet file as ``encode_table`` writes it.

    Raises:
        UserError: if they are no such file, or one that claims to hold more than its bytes can.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            problem = _problem(file.metadata, file.schema_arrow, len(data))
            if not problem:
                return file.read(use_threads=False).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        problem = f"is no valid parquet file ({one_line(error)})"
    raise UserError(f"{where}: {problem}; run its step again")


def _problem(metadata: pq.FileMetaData, schema: pa.Schema, size: int) -> str | None:
    if metadata.num_columns > LARGEST_NUMBER_OF_COLUMNS:
        return f"has {metadata.num_columns} columns, more than {LARGEST_NUMBER_OF_COLUMNS}"
    if len(set(schema.names)) < len(schema.names):
        return "has two columns of one name"
    for field in schema:
        listed = str(field.type.value_type) if str(field.type).startswith("list<") else None
        if str(field.type) not in TYPES and listed not in LISTED_TYPES:
            return f"has a column of type {one_line(field.type)}, which no table of ours has"
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if not 0 <= metadata.num_rows <= size or sum(group.num_rows for group in groups) != metadata.num_rows:
        return f"claims {metadata.num_rows} rows in {size} bytes"
    for chunk in (group.column(i) for group in groups for i in range(group.num_columns)):
        if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page or not set(chunk.encodings) <= ENCODINGS:
            return "is compressed, which no table of ours is"
        if not 0 <= chunk.num_values <= size:
            return f"claims {chunk.num_values} values in {size} bytes"
    return None
