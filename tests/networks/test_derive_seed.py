"""Named seeds: the same name always gives the same number, another name another one."""

from __future__ import annotations

import hashlib

import pytest

from dmdpipe.seeds import derive_seed


def test_a_seed_is_a_hash_of_its_name_and_nothing_else():
    expected = int.from_bytes(hashlib.sha256(b"3/student/noise").digest()[:8], "big") // 2
    assert derive_seed(3, "student", "noise") == expected
    derive_seed(3, "something", "else")
    assert derive_seed(3, "student", "noise") == expected


def test_seeds_differ_in_every_part_of_the_name_and_fit_torch_and_numpy():
    names = [("teacher", "init"), ("student", "init"), ("init", "teacher"), ("teacher",), ("teacherinit",)]
    seeds = [derive_seed(seed, *name) for seed in range(200) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neighbouring_replicates_get_unrelated_seeds():
    """Each of the 63 bits is set in about half of the seeds, and flips in about half of the steps."""
    seeds = [derive_seed(seed, "student", "latent") for seed in range(1000)]
    for bit in range(63):
        bits = [seed >> bit & 1 for seed in seeds]
        assert 400 < sum(bits) < 600
        assert 400 < sum(a != b for a, b in zip(bits[:-1], bits[1:], strict=True)) < 600


def test_a_seed_needs_a_purpose():
    with pytest.raises(ValueError, match="purpose"):
        derive_seed(0)
