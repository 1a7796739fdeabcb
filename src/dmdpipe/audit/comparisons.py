"""Two files of one name compared by content type: how far apart they are, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

from dmdpipe.artifacts.checked import one_line
from dmdpipe.audit.formats.difference import DECLARED, Difference, Tolerance
from dmdpipe.audit.formats.notebook import notebook_differences, read_notebook
from dmdpipe.audit.formats.pdf import pdf_differences, read_pdf
from dmdpipe.audit.formats.png import picture_differences, read_png
from dmdpipe.audit.formats.tables import read_csv, read_parquet, table_differences
from dmdpipe.audit.formats.tensors import read_tensors, tensor_differences
from dmdpipe.audit.formats.text import html_differences, read_text
from dmdpipe.audit.formats.values import read_json, value_differences


class ContentType(NamedTuple):
    """How files of one type are read, and compared once they are."""

    read: Callable[[bytes], Any]
    differences: Callable[[Any, Any, Tolerance], Iterator[Difference]]


TEXT = ContentType(read_text, html_differences)
CONTENT_TYPES = {
    ".safetensors": ContentType(read_tensors, tensor_differences),
    ".parquet": ContentType(read_parquet, table_differences),
    ".csv": ContentType(read_csv, table_differences),
    ".json": ContentType(read_json, value_differences),
    ".ipynb": ContentType(read_notebook, notebook_differences),
    ".png": ContentType(read_png, picture_differences),
    ".pdf": ContentType(read_pdf, pdf_differences),
}


@dataclass(frozen=True)
class Comparison:
    """How two files of one name compare.

    Attributes:
        name: the name.
        identical: whether they are the same bytes.
        first: the first difference of their content in the order of the file; None where only its encoding differs.
        largest: the largest as a multiple of what counts as rounding, the first of several as large.
        structural: the first that no chance in a training explains.
    """

    name: str
    identical: bool
    first: Difference | None = None
    largest: Difference | None = None
    structural: Difference | None = None

    @property
    def within_tolerance(self) -> bool:
        """Whether no difference is larger than rounding."""
        return self.largest is None or self.largest.excess <= 1


def compare_files(name: str, a: bytes, b: bytes, tolerance: Tolerance = DECLARED) -> Comparison:
    """Return how two files compare; their type is told from the ending of their common name, else they are text.

    A file that cannot be read, whatever it holds, is a difference that says so.
    """
    if a == b:
        return Comparison(name, identical=True)
    first = largest = structural = None
    for difference in _differences(name, a, b, tolerance):
        first = first or difference
        if largest is None or difference.excess > largest.excess:
            largest = difference
        if difference.structural:
            structural = structural or difference
    return Comparison(name, False, first, largest, structural)


def different(name: str, what: str) -> Comparison:
    """Return the comparison of two files that differ as wholes."""
    found = Difference("", what, structural=True)
    return Comparison(name, False, found, found, found)


def _differences(name: str, a: bytes, b: bytes, tolerance: Tolerance) -> Iterator[Difference]:
    kind = CONTENT_TYPES.get(PurePath(name).suffix, TEXT)
    contents = []
    for side, data in (("A", a), ("B", b)):
        try:
            contents.append(kind.read(data))
        except Exception as error:  # a damaged file can make a library raise anything
            yield Difference("", f"{side} cannot be read: {_reason(error)}", structural=True)
    if len(contents) == 2:
        try:
            yield from kind.differences(contents[0], contents[1], tolerance)
        except Exception as error:  # so can one that is well formed and mean, such as a number of 400 digits
            yield Difference("", f"cannot be compared: {_reason(error)}", structural=True)


def _reason(error: Exception) -> str:
    return one_line(str(error) or type(error).__name__)
