"""Paired samples and what is measured on them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dmdpipe.specs.base import Spec
from dmdpipe.specs.data import dimension
from dmdpipe.specs.diffusion import TeacherSamplesSpec
from dmdpipe.specs.student import StudentSpec


class PairsSpec(Spec):
    """The same noise through teacher and student: z, T(z), and S(z) at every snapshot."""

    student: StudentSpec
    teacher_samples: TeacherSamplesSpec

    @model_validator(mode="after")
    def _same_teacher(self) -> PairsSpec:
        if self.student.teacher != self.teacher_samples.teacher:
            raise ValueError("student.teacher and teacher_samples.teacher must be the same teacher")
        if self.student.noise_range != self.teacher_samples.noise_range:
            raise ValueError("student.noise_range and teacher_samples.noise_range must be the same")
        bank, dim = self.teacher_samples.bank, dimension(self.student.teacher.data)
        if bank.dim != dim:
            raise ValueError(f"teacher_samples.bank.dim ({bank.dim}) must be the data's dimension, {dim}")
        if bank.seed and self.student.init.kind in ("rotated", "kd-rotated"):
            raise ValueError("teacher_samples.bank.seed must be 0: rotated starts use the rotation of that bank")
        if self.student.bank not in (None, bank):
            raise ValueError("student.bank and teacher_samples.bank must be the same: particles have no other noise")
        return self


class MetricsSpec(Spec):
    """All copying metrics and distribution distances of one student, at every snapshot."""

    pairs: PairsSpec
    projections: PositiveInt = Field(128, description="fixed random directions of the sliced Wasserstein distance")
    whitened_variance: PositiveFloat = Field(0.99, le=1, description="share of variance that the whitened cosine keeps")


class MapSettings(Spec):
    """Options of the distances to named maps: the transport map, the particle flow, the best affine map."""

    fake: Literal["kernel", "gaussian"] = Field(
        "kernel",
        description="how the particles' own score is known: from their points, or from their mean and covariance (exact"
        " where data and start are Gaussian)",
    )
    particles: int = Field(1_000, ge=3, description="how many make the fake score: the first held-out noises")
    flow_steps: PositiveInt = Field(600, description="Euler steps of the particle flow")
    transport_pairs: int = Field(
        1_000, ge=2, le=4_096, description="noises that are assigned to samples, the first ones"
    )
    jacobian_points: PositiveInt = Field(16, description="noises at which Jacobians are taken, the first ones")


class MapsSpec(MapSettings):
    """Distances of one student to the named maps, at every snapshot."""

    pairs: PairsSpec

    @model_validator(mode="after")
    def _fits_the_student(self) -> MapsSpec:
        if self.pairs.student.sampling_steps > 1:
            raise ValueError("maps are taken of S(z) in one step: sampling_steps must be 1")
        if self.pairs.student.teacher.classes:
            raise ValueError("maps are of the noise alone: they need network.classes 0")
        bank = self.pairs.teacher_samples.bank
        if not bank.dim < self.particles <= bank.n_held_out:
            raise ValueError(
                f"maps.particles must be above d = {bank.dim} and at most bank.n_held_out = {bank.n_held_out},"
                f" got {self.particles}"
            )
        return self
