"""Sums, counts and the nearest of all distances, in C: roots that are IEEE's, counts of whole and broken packs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from dmdpipe.kernels.distances import count_within, sum_of_distances, two_nearest

BITS = 53
HARDEST = 2**11
SCALES = [1.0, 2.0**-400, 2.0**400, 2.0**-950, 2.0**-1066, 2.0**1010]


def distance_of_root(square: float) -> float:
    """√square as the kernel has it: the only distance of two points whose squared distance is just this float."""
    coarse = math.floor(math.sqrt(square) * 2**25) / 2**25  # its square is exact, and so is the rest
    # The first of a whole pack: with a place without a point, the CPU's instruction would make the roots. The other
    # distances are lost in the sum.
    points = np.tile([2.0**-400, 0.0], (8, 1))
    points[0] = coarse, math.sqrt(square - coarse * coarse)
    return sum_of_distances(np.zeros((1, 2)), points)


def nearest_to_midpoints() -> Iterator[float]:
    """Floats x in [1, 4) whose roots lie nearest to the middle between two floats: x·2¹⁰⁶ = k² − q with k odd, q small.

    The roots k of k² ≡ q modulo 2⁵⁴ are lifted bit by bit; there are some for q ≡ 1 modulo 8 only. Elsewhere √x is
    further from any middle than q·2⁻¹⁰⁸ tells, while what stands before the last rounding is off by 2⁻¹⁰³ at most.
    """
    modulus = 2 ** (BITS + 1)
    for q in range(1 - HARDEST, HARDEST, 8):
        root = 1
        for bit in range(3, BITS + 1):
            if (root * root - q) >> bit & 1:
                root += 1 << (bit - 1)
        for k in {root, -root, root + modulus // 2, -root - modulus // 2}:
            midpoint = k % modulus
            if midpoint >= modulus // 2:
                mantissa, rest = divmod(midpoint * midpoint - q, modulus)
                assert rest == 0
                yield math.ldexp(mantissa, 1 - BITS)


def test_roots_are_rounded_as_ieee_says_where_that_is_hardest() -> None:
    hard = [x for x in nearest_to_midpoints() if 1 <= x < 4]
    assert len(hard) > 900
    assert [distance_of_root(x) for x in hard] == [math.sqrt(x) for x in hard]


def test_roots_are_rounded_as_ieee_says_anywhere() -> None:
    rng = np.random.default_rng(0)
    squares = [*np.exp(rng.uniform(0, math.log(4), 20_000)), 1.0, 2.0, math.nextafter(4.0, 0), math.nextafter(1.0, 2)]
    assert [distance_of_root(x) for x in squares] == [math.sqrt(x) for x in squares]


@pytest.mark.parametrize("scale", SCALES)
def test_roots_of_sums_of_any_size_are_numpys(scale: float) -> None:
    """One coordinate, so that the squares are known to the last bit, in packs of eight with zeros among them."""
    x = np.array([[0.0]])
    y = np.sqrt(scale) * np.append(np.random.default_rng(1).uniform(0.1, 9, 4096), [0.0] * 3)[:, None]
    columns = np.append(y[:, 0], np.zeros(5)).reshape(-1, 8)
    # Each place of a pack sums by itself, and these are added in order.
    places = [0.0] * 8
    for pack in columns:
        places = [total + math.sqrt(value * value) for total, value in zip(places, pack, strict=True)]
    total = 0.0
    for place in places:
        total += place
    assert sum_of_distances(x, y) == total > 0


def test_what_is_no_number_or_too_large_stays_so() -> None:
    zero = np.zeros((1, 1))
    assert math.isnan(sum_of_distances(np.array([[math.nan]]), zero))
    assert math.isinf(sum_of_distances(np.array([[1e200]]), zero))


@pytest.mark.parametrize("points", [1, 7, 8, 9, 16, 17, 31])
@pytest.mark.parametrize("rows", [1, 8, 65])
def test_counts_and_the_nearest_are_numpys(rows: int, points: int) -> None:
    """Whole numbers, so that every square is exact, ties are many, and no place without a point may be counted."""
    rng = np.random.default_rng(points)
    x, y = (rng.integers(-3, 4, (n, 2)).astype(float) for n in (rows, points))
    squares = np.square(x[:, None] - y).sum(axis=2)
    near, far = (rng.integers(0, 12, rows).astype(float) for _ in range(2))
    nearer, not_farther = count_within(x, y, near, far)
    np.testing.assert_array_equal(nearer, (squares < near[:, None]).sum(axis=1))
    np.testing.assert_array_equal(not_farther, (squares <= far[:, None]).sum(axis=1))
    padded = np.concatenate([squares, np.full((rows, 1), np.inf)], axis=1)
    np.testing.assert_array_equal(two_nearest(x, y), np.sort(padded, axis=1)[:, :2])
