"""One difference between two files: where it is, how large, and whether it may be rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """The largest differences that count as rounding.

    ``numbers``: the whole smoke scale was computed again with the kernels that PyTorch and OpenBLAS have for other
    instruction sets. Where no training had amplified the rounding, tensors differed by at most 3e-6 of the rms, and
    tables, with intervals over two seeds of what is nearly the same for both, by at most 5e-5. Twenty times that leaves
    room for larger networks and other devices, and is far below the smallest difference on which a claim turns (0.025
    in ρ, which is below 1.5). Pictures follow from such numbers: lines moved by far less than a pixel, which showed in
    few shades, along edges, as 1 of 255 levels.

    Attributes:
        numbers: of two floating-point numbers, as a share of the root mean square (rms) of the numbers of their kind:
            their tensor, their column in rows with the same text, or, for a number alone, the larger of the two.
        shortened: a number that is printed with few digits may differ by one unit of its last digit, if that is no
            more than this share of it.
        grey_levels: of a pixel's channel, of 255.
        pixels: the share of the pixels that may differ at all.
        points: of a number in the drawing commands of a PDF: 1/72 inch, or a colour's channel between 0 and 1.
    """

    numbers: float = 1e-3
    shortened: float = 0.01
    grey_levels: int = 16
    pixels: float = 0.01
    points: float = 0.05


DECLARED = Tolerance()


@dataclass(frozen=True)
class Difference:
    """One difference between two files.

    Attributes:
        where: its place, e.g. ``tensor 'student'[3, 0]``; empty if it is the file as a whole.
        what: what stands there, e.g. ``0.5 → 0.25``.
        excess: its size as a multiple of what counts as rounding: above 1 it is a real difference. Infinite where no
            number says how large it is: other text, another shape, a NaN on one side only.
        size: its size in ``unit``; infinite as ``excess``.
        unit: what the size is a multiple of, e.g. ``of the rms``.
        structural: whether it is about what the file holds (which tensors, rows, columns; or it cannot be read)
            rather than about a value, so that no chance in a training explains it.
    """

    where: str
    what: str
    excess: float = math.inf
    size: float = math.inf
    unit: str = ""
    structural: bool = False

    def __str__(self) -> str:
        size = f" ({self.size:.3g} {self.unit})" if math.isfinite(self.size) else ""
        return f"{self.where + ': ' if self.where else ''}{self.what}{size}"
