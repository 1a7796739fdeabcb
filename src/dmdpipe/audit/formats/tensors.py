"""Tensors in safetensors files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from dmdpipe.artifacts.checked import one_line
from dmdpipe.artifacts.tensors import decode_about, decode_tensors
from dmdpipe.audit.formats.difference import Difference, Tolerance
from dmdpipe.audit.formats.numbers import largest_difference
from dmdpipe.audit.formats.values import value_differences

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TensorFile(NamedTuple):
    """A safetensors file: its arrays by name, and what its header says about them."""

    tensors: dict[str, NDArray[Any]]
    about: Any


def read_tensors(data: bytes) -> TensorFile:
    """Return a safetensors file; raises UserError if it is none."""
    return TensorFile(decode_tensors(data, "the file"), decode_about(data, "the file"))


def tensor_differences(a: TensorFile, b: TensorFile, tolerance: Tolerance) -> Iterator[Difference]:
    """Yield the largest difference of each tensor that differs, and every one of what the headers say."""
    yield from value_differences(a.about, b.about, tolerance, "header")
    for name in sorted({*a.tensors, *b.tensors}):
        where = f"tensor '{one_line(name)}'"
        if name not in a.tensors or name not in b.tensors:
            yield Difference(where, f"only in {'A' if name in a.tensors else 'B'}", structural=True)
            continue
        x, y = a.tensors[name], b.tensors[name]
        if x.dtype != y.dtype or x.shape != y.shape:
            types = f"{x.dtype} of shape {list(x.shape)} → {y.dtype} of shape {list(y.shape)}"
            yield Difference(where, types, structural=True)
        elif found := largest_difference(x, y, tolerance):
            yield found.at(where)
