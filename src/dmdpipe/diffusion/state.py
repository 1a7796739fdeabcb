"""Training state as named tensors, so that a killed training resumes and ends in the same bytes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dmdpipe.artifacts.checkpoint import discard_checkpoint, load_checkpoint, save_checkpoint
from dmdpipe.artifacts.leaving import LEAVING
from dmdpipe.diffusion.shards import ALONE, Ranks

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST_HEADER = 2**20  # bytes; with some forty tensors ours has about five thousand
SECONDS_BETWEEN_CHECKPOINTS = 15.0


class TrainingState:
    """Everything that a training loop changes, on whatever device, saved now and then outside the step's outputs.

    Args:
        folder: where the checkpoint lives.
        tensors: what the loop changes in place: parameters, optimiser state, histories, snapshots, and how far it has
            read each random stream.
        ranks: the processes that share the training; the first one reads and saves for all.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, torch.Tensor], ranks: Ranks = ALONE):
        self.folder = folder
        self.ranks = ranks
        self.tensors = tensors
        self._saved_at = time.monotonic()
        self._iterations = 0

    def save_now_and_then(self, iteration: int) -> None:
        """Save after ``iteration`` finished iterations if the last checkpoint is old enough.

        Raises:
            SystemExit: if the step was told to end; then the state has been saved.
        """
        if self.ranks.number:
            return
        LEAVING.can_save = iteration < self._iterations
        is_told = LEAVING.is_told
        if is_told or time.monotonic() - self._saved_at >= SECONDS_BETWEEN_CHECKPOINTS:
            self.save(iteration)
        if is_told:
            LEAVING.leave()

    def save(self, iteration: int) -> None:
        """Save the state after ``iteration`` finished iterations."""
        save_checkpoint(self.folder, self._arrays(), {"iteration": iteration})
        self._saved_at = time.monotonic()

    def resume(self, iterations: int) -> int:
        """Load the checkpoint if there is one; return the number of finished iterations (0 without one).

        A checkpoint that is not of this training (other tensors, shapes or types, or more iterations than the
        training's ``iterations``) counts as damaged, and changes nothing. Processes that share the training have the
        same state after it.
        """
        first = torch.tensor([self._loaded(iterations) if self.ranks.number == 0 else 0])
        self.ranks.agree([first, *self.tensors.values()])
        self._iterations = iterations
        LEAVING.can_save = int(first) < iterations
        return int(first)

    def _loaded(self, iterations: int) -> int:
        own = self._arrays()
        found = load_checkpoint(self.folder, sum(array.nbytes for array in own.values()) + LARGEST_HEADER)
        if found is None:
            return 0
        arrays, meta = found
        iteration: Any = meta.get("iteration")
        if problem := self._problem(own, arrays) or _iteration_problem(iteration, iterations):
            discard_checkpoint(self.folder, f"{self.folder}: {problem}")
            return 0
        for name, tensor in self.tensors.items():
            tensor.copy_(torch.as_tensor(arrays[name]))
        return int(iteration)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {name: tensor.cpu().numpy() for name, tensor in self.tensors.items()}

    def _problem(self, own: Mapping[str, NDArray[Any]], arrays: Mapping[str, NDArray[Any]]) -> str | None:
        if own.keys() != arrays.keys():
            return "its tensors are not this training's"
        for name, array in own.items():
            if (array.shape, array.dtype) != (arrays[name].shape, arrays[name].dtype):
                return f"'{name}' has not this training's shape and type"
        return None


def _iteration_problem(iteration: object, iterations: int) -> str | None:
    if type(iteration) is int and 0 <= iteration <= iterations:
        return None
    return f"its number of iterations is none between 0 and {iterations}"
