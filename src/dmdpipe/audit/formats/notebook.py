"""Notebooks, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dmdpipe.artifacts.checked import one_line
from dmdpipe.audit.formats.difference import Difference, Tolerance
from dmdpipe.audit.formats.text import embedded_png_differences, html_differences
from dmdpipe.audit.formats.values import read_json, value_differences

Json = dict[str, Any]


def read_notebook(data: bytes) -> Json:
    """Return a notebook's JSON; raises ValueError if it is no notebook."""
    notebook = read_json(data)
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise ValueError("is no notebook: it has no list of cells")
    return notebook


def notebook_differences(a: Json, b: Json, tolerance: Tolerance) -> Iterator[Difference]:
    """Yield every difference of two notebooks; cells and outputs are counted from 1.

    Source must be the same. Outputs are compared by their type: PNG by pixels, HTML and text with printed numbers that
    may differ by rounding.
    """
    yield from value_differences(_without(a, "cells"), _without(b, "cells"), tolerance, "notebook")
    if len(a["cells"]) != len(b["cells"]):
        yield Difference("cells", f"{len(a['cells'])} → {len(b['cells'])}")
    for count, (x, y) in enumerate(zip(a["cells"], b["cells"], strict=False), start=1):
        where = f"cell {count}"
        yield from _source_differences(x, y, where)
        yield from value_differences(
            _without(x, "source", "outputs"), _without(y, "source", "outputs"), tolerance, where
        )
        outputs = [_dicts(cell.get("outputs")) for cell in (x, y)]
        if len(outputs[0]) != len(outputs[1]):
            yield Difference(f"{where}, outputs", f"{len(outputs[0])} → {len(outputs[1])}")
        for number, (p, q) in enumerate(zip(*outputs, strict=False), start=1):
            yield from _output_differences(p, q, tolerance, f"{where}, output {number}")


def _source_differences(a: Json, b: Json, where: str) -> Iterator[Difference]:
    lines = [_joined(cell.get("source")).split("\n") for cell in (a, b)]
    for count, (x, y) in enumerate(zip(*lines, strict=False), start=1):
        if x != y:
            yield Difference(f"{where}, source, line {count}", f"{one_line(x)!r} → {one_line(y)!r}")
    if len(lines[0]) != len(lines[1]):
        yield Difference(f"{where}, source", f"{len(lines[0])} lines → {len(lines[1])} lines")


def _output_differences(a: Json, b: Json, tolerance: Tolerance, where: str) -> Iterator[Difference]:
    yield from value_differences(_without(a, "data", "text"), _without(b, "data", "text"), tolerance, where)
    yield from html_differences(_joined(a.get("text")), _joined(b.get("text")), tolerance, f"{where}, text")
    data = [_dict(output.get("data")) for output in (a, b)]
    for kind in sorted({*data[0], *data[1]}):
        place = one_line(f"{where}, {kind}")
        if kind not in data[0] or kind not in data[1]:
            yield Difference(place, f"only in {'A' if kind in data[0] else 'B'}")
            continue
        x, y = data[0][kind], data[1][kind]
        if kind == "image/png":
            yield from embedded_png_differences(_joined(x), _joined(y), tolerance, place)
        elif kind.startswith("text/"):
            yield from html_differences(_joined(x), _joined(y), tolerance, place)
        else:
            yield from value_differences(x, y, tolerance, place)


def _joined(text: Any) -> str:
    """Return what a notebook keeps as one text or a list of lines."""
    return "".join(map(str, text)) if isinstance(text, list) else "" if text is None else str(text)


def _dicts(value: Any) -> list[Json]:
    return [_dict(item) for item in value] if isinstance(value, list) else []


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {"value": value}


def _without(value: Json, *keys: str) -> Json:
    return {key: item for key, item in value.items() if key not in keys}
