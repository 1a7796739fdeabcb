"""Text: equal, or equal but for printed numbers that differ by rounding."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterator
from itertools import zip_longest

from dmdpipe.artifacts.checked import one_line
from dmdpipe.audit.formats.difference import Difference, Tolerance
from dmdpipe.audit.formats.png import picture_differences, read_png

# Without a sign: where a sign changes the text does, and that is no rounding.
_PRINTED_NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,4})?")
_EMBEDDED_PNG = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]*)")
_SHOWN = 60

Excess = Callable[[str, str], float]


def read_text(data: bytes) -> str:
    """Return UTF-8 text; raises ValueError if it is none."""
    return data.decode()


def text_differences(a: str, b: str, tolerance: Tolerance, where: str = "") -> Iterator[Difference]:
    """Yield a difference for each line that differs, by its number from 1; lines are paired by number.

    Numbers printed with a decimal point or an exponent may differ by rounding (``Tolerance``), whole numbers not.
    """
    yield from line_differences(a, b, _PRINTED_NUMBER, lambda x, y: _printed_excess(x, y, tolerance), where)


def line_differences(a: str, b: str, number: re.Pattern[str], excess: Excess, where: str = "") -> Iterator[Difference]:
    """Yield a difference for each pair of lines that differ in their text, or in numbers by ``excess`` of their text.

    Args:
        number: what is a number; has no groups.
        excess: the two numbers' text → their difference as a multiple of what counts as rounding.
        where: what the lines belong to.
    """
    one_line_each = "\n" not in a and "\n" not in b
    for count, (x, y) in enumerate(zip_longest(a.split("\n"), b.split("\n")), start=1):
        if x == y:
            continue
        place = where if where and one_line_each else f"{where + ', ' if where else ''}line {count}"
        if x is None or y is None:
            yield Difference(place, f"only in {'A' if y is None else 'B'}: {_shown(x or y or '')}")
            return
        yield _line_difference(place, x, y, number, excess)


def html_differences(a: str, b: str, tolerance: Tolerance, where: str = "") -> Iterator[Difference]:
    """Yield the differences of two pages: of their text line by line, of their embedded PNG by pixels."""
    images = [_EMBEDDED_PNG.findall(text) for text in (a, b)]
    yield from text_differences(_EMBEDDED_PNG.sub("image", a), _EMBEDDED_PNG.sub("image", b), tolerance, where)
    for count, (x, y) in enumerate(zip(*images, strict=False), start=1):
        place = f"{where + ', ' if where else ''}image {count}"
        yield from embedded_png_differences(x, y, tolerance, place)


def embedded_png_differences(a: str, b: str, tolerance: Tolerance, where: str) -> Iterator[Difference]:
    """Yield the differences of two PNG in base64; raises as ``read_png``."""
    if a != b:
        yield from picture_differences(read_png(base64.b64decode(a)), read_png(base64.b64decode(b)), tolerance, where)


def _line_difference(where: str, a: str, b: str, number: re.Pattern[str], excess: Excess) -> Difference:
    around, numbers = ([split(text) for text in (a, b)] for split in (number.split, number.findall))
    if around[0] != around[1]:
        start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        start = max(0, start - _SHOWN // 4)
        return Difference(where, f"{_shown(a[start:])} → {_shown(b[start:])}")
    pairs = [(x, y) for x, y in zip(*numbers, strict=True) if x != y]
    x, y = max(pairs, key=lambda pair: excess(*pair))
    size = _relative(float(x), float(y))
    short = max(len(a), len(b)) <= _SHOWN
    what = f"{_shown(a)} → {_shown(b)}" if short else f"{one_line(x)} → {one_line(y)}"
    return Difference(where, what, excess(x, y), size, "of the number")


def _printed_excess(a: str, b: str, tolerance: Tolerance) -> float:
    if a.isdigit() and b.isdigit():
        return math.inf
    x, y = float(a), float(b)
    larger = max(x, y)
    unit = max(_last_digit(a), _last_digit(b))
    # Between one unit and two, so that one counts, whatever becomes of it in binary.
    allowed = max(tolerance.numbers * larger, 1.5 * unit if unit <= tolerance.shortened * larger else 0)
    return abs(x - y) / allowed if 0 < allowed < math.inf else math.inf


def _last_digit(number: str) -> float:
    """Return what one unit of a printed number's last digit is worth."""
    mantissa, _, exponent = number.lower().partition("e")
    return float(f"1e{int(exponent or 0) - len(mantissa.partition('.')[2])}")


def _relative(x: float, y: float) -> float:
    larger = max(abs(x), abs(y))
    return abs(x - y) / larger if 0 < larger < math.inf else math.inf


def _shown(text: str) -> str:
    return repr(one_line(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"))
