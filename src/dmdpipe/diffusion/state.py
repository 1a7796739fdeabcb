"""Training state as named tensors, so that a killed training resumes and ends in the same bytes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from dmdpipe.artifacts.checkpoint import load_checkpoint, save_checkpoint

SECONDS_BETWEEN_CHECKPOINTS = 15.0


class TrainingState:
    """Everything that a training loop changes, saved now and then outside the step's outputs.

    Args:
        folder: where the checkpoint lives.
        tensors: what the loop changes in place: parameters, optimiser state, histories, snapshots.
        generators: the random streams that the loop draws from.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, torch.Tensor], generators: Mapping[str, torch.Generator]):
        self.folder = folder
        self.tensors = tensors
        self.generators = generators
        self._saved_at = time.monotonic()

    def save_now_and_then(self, iteration: int) -> None:
        """Save after ``iteration`` finished iterations if the last checkpoint is old enough."""
        if time.monotonic() - self._saved_at >= SECONDS_BETWEEN_CHECKPOINTS:
            self.save(iteration)

    def save(self, iteration: int) -> None:
        """Save the state after ``iteration`` finished iterations."""
        arrays = {f"tensor/{name}": tensor.numpy() for name, tensor in self.tensors.items()}
        arrays |= {f"generator/{name}": source.get_state().numpy() for name, source in self.generators.items()}
        save_checkpoint(self.folder, arrays, {"iteration": iteration})
        self._saved_at = time.monotonic()

    def resume(self) -> int:
        """Load the checkpoint if there is one; return the number of finished iterations (0 without one)."""
        found = load_checkpoint(self.folder)
        if found is None:
            return 0
        arrays, meta = found
        for name, tensor in self.tensors.items():
            tensor.copy_(torch.as_tensor(arrays[f"tensor/{name}"]))
        for name, source in self.generators.items():
            source.set_state(torch.as_tensor(arrays[f"generator/{name}"]))
        return int(meta["iteration"])
