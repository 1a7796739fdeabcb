"""JSON and what else is made of plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from dmdpipe.artifacts.checked import one_line
from dmdpipe.audit.formats.difference import Difference, Tolerance
from dmdpipe.audit.formats.numbers import largest_difference
from dmdpipe.audit.formats.text import text_differences


def read_json(data: bytes) -> Any:
    """Return what a JSON text says; raises ValueError if it is none, RecursionError if it is too deep."""
    return json.loads(data)


def value_differences(a: Any, b: Any, tolerance: Tolerance, where: str = "") -> Iterator[Difference]:
    """Yield every difference of two JSON values by its dotted path, e.g. ``cells.3.seed``.

    A list of numbers, not all of them whole, is a tensor; any other number is compared by itself, text as text.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            place = _below(where, key)
            if key in a and key in b:
                yield from value_differences(a[key], b[key], tolerance, place)
            else:
                yield Difference(place, f"only in A: {_shown(a[key])}" if key in a else f"only in B: {_shown(b[key])}")
    elif isinstance(a, list) and isinstance(b, list):
        yield from _list_differences(a, b, tolerance, where)
    elif isinstance(a, str) and isinstance(b, str):
        yield from text_differences(a, b, tolerance, where)
    elif type(a) in (int, float) and type(b) in (int, float):
        if found := _number_difference(a, b, tolerance, where):
            yield found
    elif type(a) is not type(b) or a != b:
        yield Difference(where, f"{_shown(a)} → {_shown(b)}")


def _list_differences(a: list[Any], b: list[Any], tolerance: Tolerance, where: str) -> Iterator[Difference]:
    if len(a) != len(b):
        yield Difference(where, f"{len(a)} items → {len(b)} items")
    kinds = {type(item) for items in (a, b) for item in items}
    if len(a) == len(b) and float in kinds and kinds <= {int, float}:
        import numpy as np

        found = largest_difference(np.array(a, dtype=float), np.array(b, dtype=float), tolerance)
        if found:
            yield Difference(_below(where, str(found.place[0])), found.what, found.excess, found.size, "of the rms")
        return
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        yield from value_differences(x, y, tolerance, _below(where, str(i)))


def _number_difference(a: float, b: float, tolerance: Tolerance, where: str) -> Difference | None:
    if a == b or (a != a and b != b):
        return None
    what = f"{_shown(a)} → {_shown(b)}"
    if isinstance(a, int) and isinstance(b, int):
        return Difference(where, what)
    larger = max(abs(float(a)), abs(float(b)))
    size = abs(a - b) / larger if math.isfinite(larger) else math.inf
    return Difference(where, what, size / tolerance.numbers, size, "of the number")


def _below(where: str, key: str) -> str:
    return one_line(f"{where}.{key}" if where else key)


def _shown(value: Any) -> str:
    text = one_line(repr(value) if not isinstance(value, str) else f"'{value}'")
    return text if len(text) <= 80 else f"{text[:79]}…"
