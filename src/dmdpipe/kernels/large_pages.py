"""Memory for what a training goes through in every step, in the machine's large pages where it has some.

A core remembers where a few hundred pages lie. The parameters, moments and activations of a small network are spread
over more pages of the usual 4 KiB than that, and on a virtual machine each that it has to look up is dear.
"""

from __future__ import annotations

import math
import mmap
import threading
from contextlib import suppress

import torch
from torch import Tensor

PAGE = 2**21
LINE = 64
CPU = torch.device("cpu")
CHUNK = 16 * PAGE


class _Chunk:
    """Memory that is given out from its beginning to its end, and the system's again when all that it gave is gone."""

    def __init__(self, size: int):
        self.memory = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # A kernel may have none.
        with suppress(OSError):
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.at = -torch.frombuffer(self.memory, dtype=torch.uint8).data_ptr() % PAGE
        self.end = self.at + size

    def give(self, count: int, dtype: torch.dtype) -> Tensor | None:
        """Return so many zeros, or None if there is no room left."""
        size = count * dtype.itemsize
        if self.at + size > self.end:
            return None
        given = torch.frombuffer(self.memory, dtype=dtype, count=count, offset=self.at)
        # Vectors of one length that begin in different lines of a page do not compete for places in the cache.
        self.at += math.ceil(size / LINE) * LINE + LINE
        return given


_current: list[_Chunk] = []
_LOCK = threading.Lock()


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> Tensor:
    """Return zeros; on the CPU in large pages if the system has some to give, and like ``torch.zeros`` in all else.

    Args:
        shape: of the tensor.
        dtype: of its numbers.
        device: where they are.
    """
    count = math.prod(shape)
    given = None
    if count and device.type == "cpu" and hasattr(mmap, "MADV_HUGEPAGE"):
        # Where there is not so much memory in one piece, torch may find it, or say that there is none.
        with suppress(OSError, OverflowError), _LOCK:
            given = _given(count, dtype)
    return torch.zeros(shape, dtype=dtype, device=device) if given is None else given.view(shape)


def _given(count: int, dtype: torch.dtype) -> Tensor | None:
    size = count * dtype.itemsize
    if size > CHUNK // 2:
        return _Chunk(size).give(count, dtype)
    given = _current[0].give(count, dtype) if _current else None
    if given is None:
        _current[:] = [_Chunk(CHUNK)]
        given = _current[0].give(count, dtype)
    return given


def zeros_like(tensor: Tensor) -> Tensor:
    """Return zeros of a tensor's shape, dtype and device, as ``zeros`` does."""
    return zeros(*tensor.shape, dtype=tensor.dtype, device=tensor.device)
