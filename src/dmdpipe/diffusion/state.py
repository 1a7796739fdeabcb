"""Training state as named tensors, so that a killed training resumes and ends in the same bytes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dmdpipe.artifacts.checkpoint import load_checkpoint, save_checkpoint

SECONDS_BETWEEN_CHECKPOINTS = 15.0


class TrainingState:
    """Everything that a training loop changes: modules, optimisers, random generators and plain arrays.

    Args:
        folder: where the checkpoint lives, outside the step's outputs.
        modules: networks whose parameters change.
        optimisers: their optimisers.
        generators: the random streams that the loop draws from.
        arrays: tensors that the loop fills in place, e.g. histories and snapshots.
    """

    def __init__(
        self,
        folder: Path,
        modules: Mapping[str, nn.Module],
        optimisers: Mapping[str, torch.optim.Optimizer],
        generators: Mapping[str, torch.Generator],
        arrays: Mapping[str, torch.Tensor],
    ):
        self.folder = folder
        self.modules = modules
        self.optimisers = optimisers
        self.generators = generators
        self.arrays = arrays
        self._saved_at = time.monotonic()

    def save_now_and_then(self, iteration: int) -> None:
        """Save after ``iteration`` finished iterations if the last checkpoint is old enough."""
        if time.monotonic() - self._saved_at >= SECONDS_BETWEEN_CHECKPOINTS:
            self.save(iteration)

    def save(self, iteration: int) -> None:
        """Save the state after ``iteration`` finished iterations."""
        tensors: dict[str, np.ndarray] = {}
        for name, module in self.modules.items():
            tensors |= {f"module/{name}/{key}": value.numpy() for key, value in module.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            for index, entries in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser/{name}/{index}/{key}": value.numpy() for key, value in entries.items()}
        tensors |= {f"generator/{name}": g.get_state().numpy() for name, g in self.generators.items()}
        tensors |= {f"array/{name}": value.numpy() for name, value in self.arrays.items()}
        save_checkpoint(self.folder, tensors, {"iteration": iteration})
        self._saved_at = time.monotonic()

    def resume(self) -> int:
        """Load the checkpoint if there is one; return the number of finished iterations (0 without one)."""
        found = load_checkpoint(self.folder)
        if found is None:
            return 0
        tensors, meta = found
        loaded = {key: torch.as_tensor(value) for key, value in tensors.items()}
        for name, module in self.modules.items():
            module.load_state_dict(_below(loaded, f"module/{name}/"))
        for name, optimiser in self.optimisers.items():
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in _below(loaded, f"optimiser/{name}/").items():
                index, entry = key.split("/")
                state.setdefault(int(index), {})[entry] = value
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        for name, generator in self.generators.items():
            generator.set_state(loaded[f"generator/{name}"])
        for name, array in self.arrays.items():
            array.copy_(loaded[f"array/{name}"])
        return int(meta["iteration"])


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
