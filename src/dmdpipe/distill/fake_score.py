"""Fake scores that are not the usual one: with fresh weights, lagging behind, or made of the student's samples."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmdpipe.diffusion.optimiser import FlatParameters
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.denoiser import Denoiser, build_network, zero_output_layer
from dmdpipe.networks.precision import in_precision
from dmdpipe.seeds import derive_seed
from dmdpipe.specs.data import dimension
from dmdpipe.specs.network import MLP, UNet

if TYPE_CHECKING:
    from dmdpipe.distill.batches import RandomBatches
    from dmdpipe.distill.student import Student
    from dmdpipe.specs.student import StudentSpec


def fresh_fake(spec: StudentSpec, device: torch.device) -> Denoiser:
    """Return a fake score with fresh weights and a zero output layer, as a teacher starts: D(x, σ) = c_skip·x.

    Its network is the teacher's; that of the student where the teacher has none; and the default one where the student
    is linear.
    """
    candidates = (getattr(spec.teacher.score, "network", None), spec.network)
    network_spec = next((network for network in candidates if isinstance(network, MLP | UNet)), MLP())
    seed = derive_seed(spec.seed, "student", "fake")
    network = build_network(network_spec, dimension(spec.teacher.data), seed)
    zero_output_layer(network)
    return in_precision(Denoiser(network.to(device, getattr(torch, spec.dtype))), spec.precision)


class LaggedScore:
    """The fake score as it was a number of generator steps ago, for the generator's gradient alone.

    Args:
        fake: the fake score at its start, which is also what it was before.
        lag: number of generator steps, 1 or more.

    Attributes:
        past: the weights of the last ``lag`` generator steps [lag, P], in turn.
        answering: the denoiser with the old weights.
    """

    def __init__(self, fake: Denoiser, lag: int):
        self.answering = copy.deepcopy(fake).requires_grad_(False)
        self._values = FlatParameters(self.answering).values
        self.past = self._values.repeat(lag, 1)

    def at(self, generator_step: int, current: Tensor) -> Denoiser:
        """Return the denoiser of ``lag`` steps ago, and keep the current flat weights [P, …] for ``lag`` steps hence.

        Args:
            generator_step: counted from 0; every step must be asked for, in order.
            current: weights of the fake score, and whatever else its optimiser trains after them.
        """
        row = self.past[generator_step % len(self.past)]
        self._values.copy_(row)
        row.copy_(current[: len(row)])
        return self.answering


class SampledScore:
    """The exact denoiser of n fresh samples s of the student: D_fake(x, σ) = Σ_j w_j·s_j, w ∝ exp(−‖x − s_j‖²/2σ²).

    It learns nothing and lags behind nothing. Its error is that of a Monte Carlo mean at noise levels above the
    distance between neighbouring samples, and falls with n; below that distance it answers with the nearest sample.
    So it is for few dimensions.

    Args:
        spec: the student's; n is ``recipe.fake_samples``.
        student: S, as it is when the score is asked.
        batches: gets the stream from which the samples' noise is drawn, so that a checkpoint holds its position.
    """

    def __init__(self, spec: StudentSpec, student: Student, batches: RandomBatches):
        self.student = student
        self.shape = (spec.recipe.fake_samples, batches.shape[1])
        self.stream = Stream(derive_seed(spec.seed, "student", "fake-samples"))
        batches.streams["fake-samples"] = self.stream

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the denoised x [B, d], given noisy x [B, d] and σ [B, 1]."""
        samples = self.student(self.stream.normal(*self.shape).to(x))
        # Not from inner products: at the smallest σ their rounding would decide.
        distances = torch.cdist(x, samples, compute_mode="donot_use_mm_for_euclid_dist")
        answer: Tensor = (-0.5 * (distances / sigma) ** 2).softmax(dim=1) @ samples
        return answer
