"""Random streams that are addressed by counter: the same numbers on every machine and device."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from dmdpipe.kernels.library import function

WORD, KEY, SIZE, MEMORY = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64, ctypes.c_void_p


class Stream:
    """One purpose's random numbers: Philox4x32-10 under a key of its own.

    Args:
        seed: the key, below 2⁶⁴ (``dmdpipe.seeds.derive_seed``).

    Attributes:
        position: int64 [1], where the next draw begins; all there is to save and restore.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.position = torch.zeros(1, dtype=torch.int64)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal float32 numbers, at most 5.9 from 0: their uniform ones have 24 bits."""
        drawn = torch.empty(shape)
        draw = function("noise", "noise_normal", None, KEY, MEMORY, SIZE, MEMORY)
        draw(self.seed, self.position.data_ptr(), drawn.numel(), drawn.data_ptr())
        return drawn

    def integers(self, first: int, end: int, size: int) -> Tensor:
        """Return int64 [size], uniform over first … end − 1 to within 2⁻³².

        Raises:
            ValueError: unless 1 ≤ end − first < 2³².
        """
        if not 1 <= end - first < 2**32:
            raise ValueError(f"no numbers from {first} to below {end}")
        drawn = torch.empty(size, dtype=torch.int64)
        draw = function("noise", "noise_integers", None, KEY, MEMORY, SIZE, SIZE, WORD, MEMORY)
        draw(self.seed, self.position.data_ptr(), size, first, end - first, drawn.data_ptr())
        return drawn


def philox(counter: tuple[int, int, int, int], key: int) -> tuple[int, ...]:
    """Return the four words of Philox4x32-10 at a counter of four words, under a key of 64 bits."""
    drawn = (WORD * 4)()
    function("noise", "noise_philox", None, MEMORY, KEY, MEMORY)((WORD * 4)(*counter), key, drawn)
    return tuple(drawn)
