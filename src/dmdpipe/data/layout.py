"""How images lie in rows of numbers: pixel after pixel, row after row, the colours of a pixel side by side."""

from __future__ import annotations

import math


def image_shape(dim: int) -> tuple[int, int]:
    """Return side and number of colours, 1 or 3, of the square images that are rows of ``dim`` numbers.

    No number is both a square and three times one, so d alone tells grey images from coloured ones.

    Raises:
        ValueError: if ``dim`` is neither.
    """
    for colours in (1, 3):
        side = math.isqrt(dim // colours)
        if colours * side**2 == dim:
            return side, colours
    raise ValueError(f"{dim} numbers are no square image of one colour or three")
