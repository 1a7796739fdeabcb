"""The random streams of ``noise.c`` on a GPU, of many members at once: the same numbers, bit by bit.

Each operation is that of the C file, in its order, rounded as IEEE 754 says: fused multiply-adds where it has them and
nowhere else, exact square roots.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton import language as tl

Ends = tuple[int, int]

LANES, GROUP = 16, 64
COUNTERS = 256
"""Of one program: sixteen groups."""


def groups_of(size: int) -> int:
    """Return how many groups of a stream a draw of so many numbers takes."""
    return -(-size // GROUP)


def normals(keys: Tensor, position: Tensor, start: int, apart: int, draws: int, size: int) -> Tensor:
    """Return standard normal float32 numbers [M, draws, size], as ``dmdpipe.kernels.noise.Stream.normal`` does.

    Args:
        keys: of the members' streams, int64 [M].
        position: the group at which they stand, int64 [1]; left as it is.
        start: groups between that and the first draw.
        apart: groups between the beginnings of two draws.
        draws: how many.
        size: of each.
    """
    to = torch.empty(len(keys), draws, size, device=keys.device)
    _normal[_programs(to)](keys, position, to, start, apart, draws, size, COUNTERS, enable_fp_fusion=False)
    return to


def integers(keys: Tensor, position: Tensor, start: int, apart: int, draws: int, size: int, ends: Ends) -> Tensor:
    """Return int64 [M, draws, size] from the first of two ``ends`` to below the other, as ``Stream.integers`` does.

    The other arguments are those of ``normals``.
    """
    to = torch.empty(len(keys), draws, size, dtype=torch.int64, device=keys.device)
    first, end = ends
    _integer[_programs(to)](keys, position, to, start, apart, draws, size, first, end - first, COUNTERS)
    return to


def _programs(to: Tensor) -> tuple[int, int, int]:
    return triton.cdiv(groups_of(to.shape[2]) * LANES, COUNTERS), to.shape[1], to.shape[0]


@triton.jit
def _words(keys, position, start, apart, draw, COUNTERS: tl.constexpr):
    """Return the four words of each counter of this program, and the place in the draw of a counter's first word."""
    index = tl.program_id(0) * COUNTERS + tl.arange(0, COUNTERS)
    group = tl.load(position) + start + draw.to(tl.int64) * apart
    counter = group * 16 + index
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    zero = low * 0
    key = tl.load(keys + tl.program_id(2))
    w0, w1, w2, w3 = tl.philox(key, low, high, zero, zero)
    return w0, w1, w2, w3, (index // 16) * 64 + index % 16


@triton.jit
def _logarithm(x):
    shifted = x.to(tl.uint32, bitcast=True) - 0x3F3504F3
    e = (shifted.to(tl.int32, bitcast=True) >> 23).to(tl.float32)
    m = ((shifted & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    z = m * m
    p = tl.fma(m, 7.0376836292e-2, -1.1514610310e-1)
    p = tl.fma(p, m, 1.1676998740e-1)
    p = tl.fma(p, m, -1.2420140846e-1)
    p = tl.fma(p, m, 1.4249322787e-1)
    p = tl.fma(p, m, -1.6668057665e-1)
    p = tl.fma(p, m, 2.0000714765e-1)
    p = tl.fma(p, m, -2.4999993993e-1)
    p = tl.fma(p, m, 3.3333331174e-1)
    p = p * m * z
    p = tl.fma(e, -2.12194440e-4, p)
    p = tl.fma(z, -0.5, p)
    return tl.fma(e, 0.693359375, m + p)


@triton.jit
def _sine_and_cosine(turns):
    quarters = turns * 4.0
    # Adding 1.5·2²³ rounds to the nearest whole number.
    nearest = (quarters + 12582912.0) - 12582912.0
    x = (quarters - nearest) * 1.57079632679
    z = x * x
    s = tl.fma(z, -1.9515295891e-4, 8.3321608736e-3)
    s = tl.fma(s, z, -1.6666654611e-1)
    s = tl.fma(s * z, x, x)
    c = tl.fma(z, 2.443315711809948e-5, -1.388731625493765e-3)
    c = tl.fma(c, z, 4.166664568298827e-2)
    c = tl.fma(c * z, z, tl.fma(z, -0.5, 1.0))
    quarter = nearest.to(tl.int32)
    odd = (quarter & 1) == 1
    along, across = tl.where(odd, c, s), tl.where(odd, s, c)
    return _signed(along, quarter), _signed(across, quarter + 1)


@triton.jit
def _signed(x, quarter):
    """Return x, with the other sign in the third and the fourth quarter."""
    sign = ((quarter & 2) << 30).to(tl.uint32, bitcast=True)
    return (x.to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit
def _pair(first, second):
    """Return two normal numbers of two words, by Box and Muller's transform."""
    u = ((first >> 8).to(tl.int32).to(tl.float32) + 0.5) * 5.9604644775390625e-08
    radius = tl.sqrt_rn(_logarithm(u) * -2.0)
    sine, cosine = _sine_and_cosine((second >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08)
    return radius * cosine, radius * sine


@triton.jit
def _normal(keys, position, to, start, apart, draws, size, COUNTERS: tl.constexpr):
    draw = tl.program_id(1)
    w0, w1, w2, w3, place = _words(keys, position, start, apart, draw, COUNTERS)
    n0, n1 = _pair(w0, w1)
    n2, n3 = _pair(w2, w3)
    row = to + (tl.program_id(2).to(tl.int64) * draws + draw) * size
    tl.store(row + place, n0, mask=place < size)
    tl.store(row + place + 16, n1, mask=place + 16 < size)
    tl.store(row + place + 32, n2, mask=place + 32 < size)
    tl.store(row + place + 48, n3, mask=place + 48 < size)


@triton.jit
def _integer(keys, position, to, start, apart, draws, size, first, choices, COUNTERS: tl.constexpr):
    draw = tl.program_id(1)
    w0, w1, w2, w3, place = _words(keys, position, start, apart, draw, COUNTERS)
    row = to + (tl.program_id(2).to(tl.int64) * draws + draw) * size
    tl.store(row + place, _scaled(w0, choices) + first, mask=place < size)
    tl.store(row + place + 16, _scaled(w1, choices) + first, mask=place + 16 < size)
    tl.store(row + place + 32, _scaled(w2, choices) + first, mask=place + 32 < size)
    tl.store(row + place + 48, _scaled(w3, choices) + first, mask=place + 48 < size)


@triton.jit
def _scaled(word, choices):
    return ((word.to(tl.uint64) * choices) >> 32).to(tl.int64)
