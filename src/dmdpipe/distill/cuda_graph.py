"""A procedure on tensors as a CUDA graph: launching thousands of small kernels takes longer than they do."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Replayed:
    """A procedure that reads and changes the same tensors each time: run once, captured at its second call, replayed.

    Args:
        procedure: changes tensors in place, on the GPU alone, and reads none of their values on the CPU.
    """

    def __init__(self, procedure: Callable[[], None]):
        self.procedure = procedure
        self.has_run = False
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do what the procedure does."""
        if not self.has_run:
            self._run_aside()
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.procedure()
        self.graph.replay()

    def _run_aside(self) -> None:
        """Run it on a stream of its own: what libraries prepare at their first call can't be captured."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.procedure()
        torch.cuda.current_stream().wait_stream(side)
        self.has_run = True
