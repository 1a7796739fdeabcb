"""One place that makes torch repeat itself to the byte."""

from __future__ import annotations

import os

import torch
from torch import Tensor


def exact_torch(threads: int) -> None:
    """Fix the number of CPU threads and ask torch for deterministic algorithms.

    Results are bitwise equal between processes of one environment class with the same number of threads; another
    number of threads or another instruction set rounds differently.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    # The same switch as use_deterministic_algorithms(True), without its second and a half of imports.
    torch.set_deterministic_debug_mode("error")
    # It also fills every new tensor, so that a read of one not yet written shows: a pass over memory each.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def square_root(x: Tensor) -> Tensor:
    """Return √x ≥ 0 element by element, to two units in the last place, with the same bytes on every CPU.

    ``torch.sqrt`` isn't that on a CPU: MKL refines the CPU's own approximation of 1/√x, which each maker chooses.
    ``torch.rsqrt`` divides by the CPU's exact root.
    """
    return x.rsqrt().reciprocal_()
