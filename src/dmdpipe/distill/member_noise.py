"""What the members of an ensemble draw, each from its own streams: what it would draw alone, wherever it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmdpipe.distill.batches import RandomBatches
from dmdpipe.errors import UserError

if TYPE_CHECKING:
    from dmdpipe.specs.student import Recipe, StudentSpec

    Tensors = dict[str, Tensor]

PURPOSES = ("latent", "dm", "fake")


def fake_steps(recipe: Recipe) -> int:
    """Return the number of fake-score steps for each generator step."""
    return recipe.generator_every - (0 if recipe.fake_trains_with_generator else 1)


def member_noise(specs: Sequence[StudentSpec], dim: int, device: torch.device) -> DrawnOnCPU | DrawnOnGPU:
    """Return what draws for these members where they train.

    Raises:
        UserError: if that is a GPU and there is no Triton.
    """
    return (DrawnOnGPU if device.type == "cuda" else DrawnOnCPU)(specs, dim, device)


class DrawnOnCPU:
    """Member by member.

    Args:
        specs: the members.
        dim: number of coordinates d.
        device: the CPU.

    Attributes:
        positions: where each stream stands: all there is to save and restore.
    """

    def __init__(self, specs: Sequence[StudentSpec], dim: int, device: torch.device):
        self.recipe = specs[0].recipe
        self.batches = [RandomBatches(spec, dim, device) for spec in specs]
        self.positions = {
            f"{number}/{purpose}": batches.streams[purpose].position
            for number, batches in enumerate(self.batches)
            for purpose in PURPOSES
        }

    def draw(self) -> Tensors:
        """Return what a generator step and the F fake-score steps after it need, for M members.

        Returns:
            latent: student noise z [M, E, B, d], first the generator step's, then that of the other iterations.
            dm.rows: of the noise levels in the grid [M, B]; dm.noise: ε [M, B, d].
            fake.rows, fake.noise: likewise [M, F, B] and [M, F, B, d].
        """
        drawn = [self._of_one(batches) for batches in self.batches]
        return {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}

    def _of_one(self, batches: RandomBatches) -> Tensors:
        dm = batches.diffusion("dm")
        fakes = [batches.diffusion("fake") for _ in range(fake_steps(self.recipe))]
        return {
            "latent": torch.stack([batches.latent() for _ in range(self.recipe.generator_every)]),
            "dm.rows": dm.rows,
            "dm.noise": dm.noise,
            "fake.rows": torch.stack([fake.rows for fake in fakes]),
            "fake.noise": torch.stack([fake.noise for fake in fakes]),
        }


class DrawnOnGPU:
    """All members at once, where they are needed: to send the CPU's numbers there takes longer than to train with them.

    Args:
        specs: the members.
        dim: number of coordinates d.
        device: the GPU.

    Attributes:
        positions: where each stream stands: all there is to save and restore. Members draw in step.

    Raises:
        UserError: if there is no Triton.
    """

    def __init__(self, specs: Sequence[StudentSpec], dim: int, device: torch.device):
        try:
            self.kernel: Any = import_module("dmdpipe.kernels.gpu_noise")
        except ModuleNotFoundError as error:
            raise UserError(
                "many students at once on a GPU need the package 'triton', which PyTorch's builds for CUDA bring along"
            ) from error
        self.recipe = specs[0].recipe
        batches = [RandomBatches(spec, dim) for spec in specs]
        self.shape, self.dtype, self.ranges = batches[0].shape, batches[0].dtype, batches[0].ranges
        self.keys = {p: torch.tensor([b.streams[p].seed for b in batches]).to(device) for p in PURPOSES}
        self.positions = {p: torch.zeros(1, dtype=torch.int64, device=device) for p in PURPOSES}

    def draw(self) -> Tensors:
        """Return what ``DrawnOnCPU.draw`` does, and leave the streams where it leaves them."""
        batch, dim = self.shape
        rows, noise = self.kernel.groups_of(batch), self.kernel.groups_of(batch * dim)
        drawn: Tensors = {"latent": self._normals("latent", 0, noise, self.recipe.generator_every)}
        for purpose, draws in (("dm", 1), ("fake", fake_steps(self.recipe))):
            place = self.keys[purpose], self.positions[purpose], 0, rows + noise, draws
            drawn[f"{purpose}.rows"] = self.kernel.integers(*place, batch, self.ranges[purpose])
            drawn[f"{purpose}.noise"] = self._normals(purpose, rows, rows + noise, draws)
        for name in ("dm.rows", "dm.noise"):
            drawn[name] = drawn[name].squeeze(1)
        return drawn

    def _normals(self, purpose: str, start: int, apart: int, draws: int) -> Tensor:
        """Return the stream's next draws [M, draws, B, d], and set it behind them."""
        batch, dim = self.shape
        position = self.positions[purpose]
        numbers: Tensor = self.kernel.normals(self.keys[purpose], position, start, apart, draws, batch * dim)
        position.add_(draws * apart)
        return numbers.view(-1, draws, batch, dim).to(self.dtype)
