"""What a distillation iteration draws: student noise z, noise levels σ, and the noise ε that is added to samples.

For students of several steps also how many steps a batch makes, and the noise between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dmdpipe.diffusion.determinism import CPU
from dmdpipe.diffusion.schedule import karras_grid
from dmdpipe.kernels.noise import Stream
from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from dmdpipe.specs.student import StudentSpec

PURPOSES = ("latent", "dm", "fake", "regression", "adversarial", "adversarial-data", "steps", "between")


class Diffusion(NamedTuple):
    """What noises one batch of samples, x + σ·ε.

    Attributes:
        rows: of the noise levels in the grid [B].
        sigma: the levels σ themselves [B, 1].
        noise: ε [B, d], standard normal.
    """

    rows: Tensor
    sigma: Tensor
    noise: Tensor


class RandomBatches:
    """Independent draws, one random stream per purpose, made on the CPU: they are the same on every device.

    Args:
        spec: batch size, grid, seed and dtype are read from it.
        dim: number of coordinates d.
        device: where they are needed.

    Attributes:
        part: the rows of a batch that are asked for, at first all B of it; below, B is the number of these.
    """

    def __init__(self, spec: StudentSpec, dim: int, device: torch.device = CPU):
        self.shape = (spec.batch, dim)
        self.part = slice(None)
        self.sampling_steps = spec.sampling_steps
        self.dtype = getattr(torch, spec.dtype)
        self.device = device
        self.grid = karras_grid(spec.noise_range, spec.recipe.grid_size).to(device, self.dtype)[:, None]
        self.ranges = {
            "dm": (spec.recipe.dm_first, spec.recipe.dm_last + 1),
            "fake": (spec.recipe.fake_first, spec.recipe.fake_last + 1),
            "adversarial": (spec.recipe.adversarial_first, spec.recipe.adversarial_last + 1),
        }
        self.classes = spec.teacher.classes
        purposes = [*PURPOSES, *(("class",) if self.classes else ()), *(("score",) if spec.recipe.score_noise else ())]
        self.streams = {p: Stream(derive_seed(spec.seed, "student", p)) for p in purposes}

    def cut(self, parts: Sequence[slice]) -> Iterator[slice]:
        """Yield parts of a batch; all that is drawn while one is out is that part of what is drawn for the whole.

        Whichever parts these are, the streams are then where they would be after a whole batch.
        """
        before = [stream.position.clone() for stream in self.streams.values()] if len(parts) > 1 else []
        for self.part in parts:
            for stream, position in zip(self.streams.values(), before, strict=False):
                stream.position.copy_(position)
            yield self.part
        self.part = slice(None)

    def latent(self, count: int = 1) -> Tensor:
        """Return student noise z [count·B, d]: that of the next ``count`` batches."""
        return torch.cat([self.normal("latent") for _ in range(count)])

    def normal(self, purpose: str) -> Tensor:
        """Return the next standard normal noise [B, d] of a purpose."""
        return self.streams[purpose].normal(*self.shape)[self.part].to(self.device, self.dtype)

    def asked(self, count: int = 1) -> tuple[Tensor, ...]:
        """Return the class of each noise of the next ``count`` batches [count·B], all alike often; none: no tensor."""
        if not self.classes:
            return ()
        return (torch.cat([self.rows_of("class", self.classes) for _ in range(count)]),)

    def between(self) -> list[Tensor]:
        """Return the noise [B, d] before each later step that the next batch's student makes.

        As many as are drawn, uniformly from none to all of them, as in DMD2: every step is trained, on what the student
        itself makes in those before it.
        """
        if self.sampling_steps == 1:
            return []
        count = int(self.streams["steps"].integers(0, self.sampling_steps, 1))
        return [self.normal("between") for _ in range(count)]

    def rows_of(self, purpose: str, count: int) -> Tensor:
        """Return which of ``count`` are taken [B], int64, each independently of the others and all alike often."""
        return self.streams[purpose].integers(0, count, self.shape[0])[self.part].to(self.device)

    def diffusion(self, purpose: str) -> Diffusion:
        """Return noise levels, uniform over the purpose's grid indices (a key of ``ranges``), and noise."""
        rows = self.streams[purpose].integers(*self.ranges[purpose], self.shape[0])[self.part].to(self.device)
        return Diffusion(rows, self.grid.index_select(0, rows), self.normal(purpose))


class ExpectedBatches(RandomBatches):
    """One fixed batch whose second moments are exact, so that a linear student feels the expected gradient.

    With linear scores the gradient is linear in x + σ·ε, hence its mean over a batch depends on E[zzᵀ] and E[εzᵀ]
    alone. The rows are all combinations of z = √d·e_i (E[zzᵀ] = I), ``LEVELS`` evenly spaced grid indices, and ±ε
    (E[εzᵀ] = 0). On the CPU only, as linear students are.
    """

    LEVELS = 16

    def __init__(self, spec: StudentSpec, dim: int):
        super().__init__(spec, dim)
        first, last = self.ranges["dm"]
        indices = torch.linspace(first, last - 1, self.LEVELS).round().long()
        basis = dim**0.5 * torch.eye(dim, dtype=self.dtype)
        self.z = basis.repeat_interleave(2 * self.LEVELS, dim=0)
        self.rows = indices.repeat_interleave(2).repeat(dim)
        signs = torch.tensor([1.0, -1.0], dtype=self.dtype).repeat(dim * self.LEVELS)[:, None]
        self.epsilon = signs * basis.roll(1, dims=0).repeat_interleave(2 * self.LEVELS, dim=0)

    def latent(self, count: int = 1) -> Tensor:
        """Return z [count·2·LEVELS·d, d]."""
        return self.z.repeat(count, 1)

    def diffusion(self, purpose: str) -> Diffusion:
        """Return the one batch's levels [2·LEVELS·d, 1] and ε [2·LEVELS·d, d]."""
        return Diffusion(self.rows, self.grid.index_select(0, self.rows), self.epsilon)


def make_batches(spec: StudentSpec, dim: int, device: torch.device = CPU) -> RandomBatches:
    """Return the batches that ``spec.batches`` names, on a device."""
    return ExpectedBatches(spec, dim) if spec.batches == "expected" else RandomBatches(spec, dim, device)
