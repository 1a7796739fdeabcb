"""The student as a map S(z) = G(σ_max·z, σ_max), before any weights are put in.

A student of several steps goes on from there as in DMD2 (arXiv 2405.14867, section 4.4): x₁ = S(z), and then
x_k = G(x_{k−1} + σ_k·ε_{k−1}, σ_k) with fresh noise ε and falling levels σ_k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmdpipe.data.rotations import haar_rotation
from dmdpipe.diffusion.schedule import student_levels
from dmdpipe.kernels.conditions import Conditions
from dmdpipe.networks.denoiser import Denoiser, build_network
from dmdpipe.networks.precision import in_precision
from dmdpipe.networks.pullback import Pullback, with_pullback
from dmdpipe.seeds import derive_seed
from dmdpipe.specs.data import dimension

if TYPE_CHECKING:
    from dmdpipe.specs.student import StudentSpec


class Student(nn.Module):
    """S(z) = G(σ_max·Qz, σ_max), with Q the identity unless the start is ``rotated``.

    Args:
        generator: G, called with scaled noise [B, d] and σ [B, 1].
        levels: the descending noise levels at which the student answers; σ_max is the first.
        rotation: Q [d, d], or None for the identity.
    """

    rotation: Tensor | None

    def __init__(self, generator: nn.Module, levels: Sequence[float], rotation: Tensor | None = None):
        super().__init__()
        self.generator = generator
        self.levels = levels
        self.register_buffer("rotation", rotation, persistent=False)
        self._told: dict[tuple[float, torch.dtype, torch.device], Tensor | Conditions] = {}

    def forward(self, z: Tensor, between: Sequence[Tensor] = (), *asked: Tensor) -> Tensor:
        """Map standard normal noise [B, d] to samples [B, d].

        Args:
            z: the first noise.
            between: the noise before each later step, [B, d] each: with k of them, the sample is that of step k + 1.
            asked: the class of each sample [B], if the generator is asked for one.
        """
        return self.generator(*self._question(z, between, *asked))

    @torch.no_grad()
    def with_pullback(self, z: Tensor, between: Sequence[Tensor] = (), *asked: Tensor) -> tuple[Tensor, Pullback]:
        """Return ``forward``'s samples and the pullback of the last step alone (``dmdpipe.networks.pullback``).

        The steps before it are a simulation of what the student does when it samples, and get no gradient (DMD2,
        section 4.5).
        """
        return with_pullback(self.generator, *self._question(z, between, *asked))

    def _question(self, z: Tensor, between: Sequence[Tensor], *asked: Tensor) -> tuple[Tensor, Tensor | Conditions]:
        if len(between) >= len(self.levels):
            raise ValueError(f"noise before {len(between)} later steps, but the student has {len(self.levels) - 1}")
        level = self.levels[len(between)]
        if between:
            before = self(z, between[:-1], *asked)
            return torch.add(before, between[-1], alpha=level), self._level(z, level, *asked)
        if self.rotation is not None:
            z = z @ self.rotation.T
        return level * z, self._level(z, level, *asked)

    def _level(self, z: Tensor, level: float, *asked: Tensor) -> Tensor | Conditions:
        """Return what the generator is told of a level, the same at every call, and of the classes."""
        kind = level, z.dtype, z.device
        if kind not in self._told:
            # Not made from z: under vmap that would be one member's, and end with the map.
            sigma = torch.full((1, 1), level, dtype=z.dtype, device=z.device)
            self._told[kind] = sigma
            if isinstance(self.generator, Denoiser):
                self._told[kind] = (self.generator.every_class if asked else self.generator.conditions)(sigma)
        told = self._told[kind]
        return told.at(*asked) if asked and isinstance(told, Conditions) else told


def build_student(spec: StudentSpec) -> Student:
    """Return the student's architecture, with fresh weights drawn from its seed.

    Raises:
        ValueError: for particles, which have none (``dmdpipe.distill.particles``).
    """
    if spec.network.kind == "particles":
        raise ValueError("particles are no network: dmdpipe.distill.particles makes them")
    dim = dimension(spec.teacher.data)
    dtype = getattr(torch, spec.dtype)
    network = build_network(spec.network, dim, derive_seed(spec.seed, "student", "init"))
    generator = network if spec.network.kind == "linear" else Denoiser(network, skip=spec.init.kind != "random-no-skip")
    rotation = rotation_of(spec, dtype) if spec.init.kind == "rotated" else None
    return Student(generator, student_levels(spec.noise_range, spec.sampling_steps), rotation).to(dtype)


def student_to_train(spec: StudentSpec, device: torch.device) -> Student:
    """Return ``build_student``'s student on a device, with products in the spec's precision."""
    student = build_student(spec)
    if isinstance(student.generator, Denoiser):
        student.generator = in_precision(student.generator, spec.precision)
    return student.to(device)


def rotation_of(spec: StudentSpec, dtype: torch.dtype) -> Tensor:
    """Return Q [d, d], the fixed rotation that the noise bank of the same dimension stores."""
    return torch.tensor(haar_rotation(dimension(spec.teacher.data)), dtype=dtype)


def rotated(function: Callable[[Tensor], Tensor], rotation: Tensor) -> Callable[[Tensor], Tensor]:
    """Return z ↦ function(Qz) for row vectors z [B, d]."""
    return lambda z: function(z @ rotation.T)
