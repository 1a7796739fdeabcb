"""Random streams: published test vectors, the whole stream written again in NumPy, and what its numbers are like."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dmdpipe.kernels.noise import Stream, philox
from dmdpipe.seeds import derive_seed

GROUP = 64
KEYS = (0, 1, 2**32 + 7, derive_seed(0, "student", "latent"), 2**64 - 1)

# Random123 1.14, tests/kat_vectors: philox4x32 with 10 rounds, as counter, key and answer.
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words_in(text):
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "answer"), VECTORS)
def test_the_generator_is_the_published_one(counter, key, answer):
    low, high = words_in(key)
    assert philox(words_in(counter), low | high << 32) == words_in(answer)
    assert numpy_philox([np.array([word]) for word in words_in(counter)], low | high << 32).flatten().tolist() == list(
        words_in(answer)
    )


def numpy_philox(counter, key):
    """Return the four words [4, N] of Philox4x32-10 at counters of four words [N] each."""
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    low, key0, key1 = np.uint64(2**32 - 1), key % 2**32, key >> 32
    for _ in range(10):
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (second >> np.uint64(32)) ^ c1 ^ np.uint64(key0),
            second & low,
            (first >> np.uint64(32)) ^ c3 ^ np.uint64(key1),
            first & low,
        )
        key0, key1 = (key0 + 0x9E3779B9) % 2**32, (key1 + 0xBB67AE85) % 2**32
    return np.stack([c0, c1, c2, c3])


def numpy_words(key, position, size):
    """Return the first words [size] of the stream from a position on: 16 counters are a group, word by word."""
    groups = -(-size // GROUP)
    counters = np.uint64(16 * position) + np.arange(16 * groups, dtype=np.uint64)
    zero = np.zeros_like(counters)
    words = numpy_philox((counters & np.uint64(2**32 - 1), counters >> np.uint64(32), zero, zero), key)
    return words.reshape(4, groups, 16).transpose(1, 0, 2).reshape(-1)[:size]


def numpy_normals(key, position, groups):
    """Return normal numbers [64·groups] in double precision by Box and Muller, and their radii.

    Words 0 and 1 of a counter make two numbers, words 2 and 3 the next two. Of each the upper 24 bits count; the half
    that is added to the radius's is rounded like any single-precision number.
    """
    bits = (numpy_words(key, position, GROUP * groups) >> np.uint64(8)).astype(np.float64).reshape(groups, 2, 2, 16)
    uniform = (bits[:, :, 0].astype(np.float32) + np.float32(0.5)).astype(np.float64) / 2**24
    radius = np.sqrt(-2 * np.log(uniform))
    angle = 2 * np.pi * bits[:, :, 1] / 2**24
    numbers = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)
    return numbers.reshape(-1), np.stack([radius, radius], axis=2).reshape(-1)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("position", [0, 5, 2**28 - 1, 2**40 + 3])
def test_normal_numbers_are_box_and_mullers_of_the_streams_words(key, position):
    """The counter's upper word and the key's count, too."""
    stream = Stream(key)
    stream.position.fill_(position)
    found = stream.normal(GROUP * 50).double().numpy()
    expected, radius = numpy_normals(key, position, 50)
    assert stream.position.item() == position + 50
    assert (np.abs(found - expected) <= 4 * 2.0**-24 * radius).all()


def test_normal_numbers_are_exact_out_to_the_largest():
    found = Stream(11).normal(GROUP * 40_000).double().numpy()
    expected, radius = numpy_normals(11, 0, 40_000)
    assert np.abs(expected).max() > 4.9 and radius.min() < 2e-3
    assert (np.abs(found - expected) <= 4 * 2.0**-24 * radius).all()
    assert np.isfinite(found).all() and np.abs(found).max() <= math.sqrt(-2 * math.log(2.0**-25)) < 5.9


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(("first", "end"), [(0, 1), (5, 12), (-3, 4), (0, 1000), (20, 981), (7, 7 + 2**32 - 1)])
def test_whole_numbers_are_the_streams_words_scaled(key, first, end):
    stream = Stream(key)
    stream.position.fill_(2**28 - 1)
    words = numpy_words(key, 2**28 - 1, 1000).astype(object)
    expected = [first + word * (end - first) // 2**32 for word in words]
    found = stream.integers(first, end, 1000)
    assert found.dtype == torch.int64 and found.tolist() == expected
    assert min(expected) >= first and max(expected) < end
    assert stream.position.item() == 2**28 - 1 + 16


def test_whole_numbers_are_uniform_ends_included():
    counts = np.bincount(Stream(3).integers(5, 105, 200_000).numpy())
    assert not counts[:5].any() and len(counts) == 105
    chi_squared = ((counts[5:] - 2000) ** 2 / 2000).sum()
    assert abs(chi_squared - 99) < 5 * math.sqrt(2 * 99)


@pytest.mark.parametrize(("first", "end"), [(0, 0), (3, 2), (0, 2**32), (0, 2**40)])
def test_a_range_without_numbers_or_too_wide_is_refused(first, end):
    stream = Stream(0)
    with pytest.raises(ValueError, match="no numbers from"):
        stream.integers(first, end, 3)
    assert stream.position.item() == 0


def test_normal_numbers_are_normal():
    n = 1_000_000
    x = Stream(derive_seed(0, "student", "latent")).normal(n).double()
    moments = [float((x**k).mean()) for k in range(1, 9)]
    normal = [0, 1, 0, 3, 0, 15, 0, 105]
    variances = [1, 2, 15, 96, 945, 10170, 135135, 2016000]
    for moment, expected, variance in zip(moments, normal, variances, strict=True):
        assert abs(moment - expected) < 5 * math.sqrt(variance / n)
    empirical = torch.linspace(0, 1, n, dtype=torch.float64)
    distance = (torch.special.ndtr(x.sort().values) - empirical).abs().max()
    assert distance < 2.5 / math.sqrt(n)


def test_numbers_do_not_show_their_neighbours():
    """Neither the next ones, nor the partner of Box and Muller's pair, nor those of another group or counter."""
    n = 200_000
    x = Stream(8).normal(n).double()
    for lag in (1, 2, 16, 32, 48, 63, 64, 65, 1024):
        for power in (1, 2):
            one, other = x[:-lag] ** power, x[lag:] ** power
            assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 5 / math.sqrt(n)


def test_streams_of_two_purposes_have_nothing_in_common():
    n = 100_000
    seeds = [derive_seed(seed, "student", purpose) for seed in (0, 1) for purpose in ("latent", "dm", "fake")]
    # Keys that differ in one bit, low or high, as well.
    drawn = torch.stack([Stream(seed).normal(n) for seed in (*seeds, seeds[0] ^ 1, seeds[0] ^ 2**40)]).double()
    correlation = torch.corrcoef(drawn) - torch.eye(len(drawn), dtype=torch.float64)
    assert correlation.abs().max() < 5 / math.sqrt(n)
    assert len({tuple(row[:4].tolist()) for row in drawn}) == len(drawn)


@pytest.mark.parametrize("size", [1, 5, 63, 64, 65, 128, 1000])
def test_a_draw_is_the_beginning_of_a_longer_one_and_ends_at_a_group(size):
    stream, longer = Stream(6), Stream(6)
    found, whole = stream.normal(size), longer.normal(1024)
    assert torch.equal(found, whole[:size])
    assert stream.position.item() == -(-size // GROUP)
    assert torch.equal(Stream(6).integers(0, 1000, size), Stream(6).integers(0, 1000, 1024)[:size])
    following = stream.normal(16)
    longer.position.fill_(-(-size // GROUP))
    assert torch.equal(following, longer.normal(16))


def test_no_number_is_drawn_twice():
    stream = Stream(6)
    drawn = torch.cat(
        [stream.normal(7), stream.normal(64), stream.integers(0, 2**32 - 1, 65).double(), stream.normal(3)]
    )
    assert len(drawn.unique()) == len(drawn)


def test_shapes_are_filled_row_by_row():
    assert torch.equal(Stream(6).normal(3, 5), Stream(6).normal(15).view(3, 5))
    stream = Stream(6)
    assert stream.normal(0, 4).shape == (0, 4) and stream.position.item() == 0
    assert Stream(6).normal(2).dtype == torch.float32


def test_a_position_is_all_there_is_to_save():
    stream = Stream(derive_seed(4, "student", "dm"))
    stream.normal(1000), stream.integers(0, 9, 70)
    saved = stream.position.clone()
    expected = stream.normal(100), stream.integers(0, 999, 100)
    stream.normal(5000)
    again = Stream(derive_seed(4, "student", "dm"))
    for one in (stream, again):
        one.position.copy_(saved)
        assert torch.equal(one.normal(100), expected[0]) and torch.equal(one.integers(0, 999, 100), expected[1])


def test_no_other_random_numbers_are_touched():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    Stream(1).normal(10), Stream(1).integers(0, 4, 10)
    assert torch.equal(torch.randn(3), expected)
