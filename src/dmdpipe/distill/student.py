"""The student as a map S(z) = G(σ_max·z, σ_max), before any weights are put in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmdpipe.data.rotations import haar_rotation
from dmdpipe.networks.denoiser import Conditions, Denoiser, build_network, in_precision
from dmdpipe.networks.pullback import Pullback, with_pullback
from dmdpipe.seeds import derive_seed
from dmdpipe.specs.data import dimension

if TYPE_CHECKING:
    from dmdpipe.specs.student import StudentSpec


class Student(nn.Module):
    """S(z) = G(σ_max·Qz, σ_max), with Q the identity unless the start is ``rotated``.

    Args:
        generator: G, called with scaled noise [B, d] and σ [B, 1].
        sigma_max: the noise level at which the student answers.
        rotation: Q [d, d], or None for the identity.
    """

    rotation: Tensor | None

    def __init__(self, generator: nn.Module, sigma_max: float, rotation: Tensor | None = None):
        super().__init__()
        self.generator = generator
        self.sigma_max = sigma_max
        self.register_buffer("rotation", rotation, persistent=False)
        self._told: dict[tuple[torch.dtype, torch.device], Tensor | Conditions] = {}

    def forward(self, z: Tensor) -> Tensor:
        """Map standard normal noise [B, d] to samples [B, d]."""
        return self.generator(*self._question(z))

    def with_pullback(self, z: Tensor) -> tuple[Tensor, Pullback]:
        """Return S(z) and its pullback (``dmdpipe.networks.pullback``)."""
        return with_pullback(self.generator, *self._question(z))

    def _question(self, z: Tensor) -> tuple[Tensor, Tensor | Conditions]:
        if self.rotation is not None:
            z = z @ self.rotation.T
        return self.sigma_max * z, self._level(z)

    def _level(self, z: Tensor) -> Tensor | Conditions:
        """Return what the generator is told of σ_max, the same at every call."""
        kind = z.dtype, z.device
        if kind not in self._told:
            # Not made from z: under vmap that would be one member's, and end with the map.
            sigma = torch.full((1, 1), self.sigma_max, dtype=z.dtype, device=z.device)
            self._told[kind] = self.generator.conditions(sigma) if isinstance(self.generator, Denoiser) else sigma
        return self._told[kind]


def build_student(spec: StudentSpec) -> Student:
    """Return the student's architecture, with fresh weights drawn from its seed."""
    dim = dimension(spec.teacher.data)
    dtype = getattr(torch, spec.dtype)
    network = build_network(spec.network, dim, derive_seed(spec.seed, "student", "init"))
    generator = network if spec.network.kind == "linear" else Denoiser(network, skip=spec.init.kind != "random-no-skip")
    rotation = rotation_of(spec, dtype) if spec.init.kind == "rotated" else None
    return Student(generator, spec.noise_range.sigma_max, rotation).to(dtype)


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
