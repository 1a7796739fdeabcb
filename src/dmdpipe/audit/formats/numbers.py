"""The largest difference of two arrays, relative to the size of their numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from dmdpipe.audit.formats.difference import Difference, Tolerance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Largest(NamedTuple):
    """The largest difference of two arrays of one shape: its index, ``place``, and the rest as in ``Difference``."""

    place: tuple[int, ...]
    what: str
    excess: float
    size: float

    def at(self, where: str) -> Difference:
        """Return it as the difference of the tensor ``where``."""
        index = f"[{', '.join(map(str, self.place))}]" if self.place else ""
        return Difference(f"{where}{index}", self.what, self.excess, self.size, "of the rms")


def largest_difference(
    a: NDArray[Any], b: NDArray[Any], tolerance: Tolerance, kinds: NDArray[np.intp] | None = None
) -> Largest | None:
    """Return the largest difference of two arrays of one shape, None if they are equal.

    Floating-point numbers are compared relative to the rms of the finite numbers of their kind, in the array where it
    is larger. A NaN equals a NaN only, an infinity itself only. Whole numbers and truth values must be equal.

    Args:
        kinds: which numbers are of one kind, as numbers from 0, in the order of the array; all if left out.
    """
    import numpy as np

    x, y = a.ravel(), b.ravel()
    if "f" not in (a.dtype.kind, b.dtype.kind):
        unequal = np.flatnonzero(x != y)
        if not unequal.size:
            return None
        gaps = np.abs(x[unequal] * 1.0 - y[unequal])
        return _largest(a, b, int(unequal[gaps.argmax()]), math.inf, math.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        x, y = x.astype(np.float64), y.astype(np.float64)
        gaps = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0, np.abs(x - y))
    if not gaps.any():
        return None
    gaps[np.isnan(gaps)] = np.inf
    scale = np.maximum(_rms(x, kinds), _rms(y, kinds))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        sizes = np.where(gaps > 0, gaps / scale, 0)
    i = int(sizes.argmax())
    return _largest(a, b, i, float(sizes[i] / tolerance.numbers), float(sizes[i]))


def _largest(a: NDArray[Any], b: NDArray[Any], i: int, excess: float, size: float) -> Largest:
    import numpy as np

    index = tuple(int(k) for k in np.unravel_index(i, a.shape))
    return Largest(index, f"{a[index]} → {b[index]}", excess, size)


def _rms(values: NDArray[np.float64], kinds: NDArray[np.intp] | None) -> NDArray[np.float64]:
    """Return the rms of the finite values of each value's kind, of the values' shape; of shape [] without kinds."""
    import numpy as np

    finite = np.where(np.isfinite(values), values, 0)
    top = np.abs(finite).max(initial=0) or 1.0
    squares = (finite / top) ** 2  # without the division, large numbers would overflow
    if kinds is None:
        return np.asarray(top * np.sqrt(squares.sum() / max(1, np.isfinite(values).sum())))
    number = np.bincount(kinds, np.isfinite(values))
    return (top * np.sqrt(np.bincount(kinds, squares) / np.maximum(1, number)))[kinds]
