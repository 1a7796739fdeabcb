"""Named seeds: every use of randomness has a name, and its seed is a hash of that name."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: str) -> int:
    """Return a 63-bit seed for one purpose, e.g. ``derive_seed(3, "student", "noise")``.

    The result depends on the names alone, never on how often or in what order it is called, so adding a new use
    of randomness cannot change an old one.

    Args:
        seed: the replicate's seed, an integer.
        purpose: the path of names that says what the numbers are for; at least one name.

    Raises:
        ValueError: if no purpose is given.
    """
    if not purpose:
        raise ValueError("a seed needs a purpose, e.g. derive_seed(0, 'teacher', 'init')")
    text = "/".join([str(int(seed)), *purpose])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
