"""Loading a stored teacher as a denoiser."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from dmdpipe.networks.denoiser import Denoiser, build_network
from dmdpipe.networks.precision import in_precision
from dmdpipe.specs.data import dimension

if TYPE_CHECKING:
    from dmdpipe.diffusion.exact import ExactDenoiser
    from dmdpipe.specs.diffusion import TeacherSpec

    Teacher = Denoiser | ExactDenoiser


def load_teacher(spec: TeacherSpec, tensors: Mapping[str, np.ndarray], dtype: torch.dtype = torch.float32) -> Teacher:
    """Return the teacher's denoiser D(x [B, d], σ [B, 1]) → [B, d] from the tensors of ``model.safetensors``.

    Parameters require no gradient.
    """
    if spec.score.kind == "exact":
        # By name, so that an edit of it does not touch the steps of trained teachers.
        exact: type[ExactDenoiser] = import_module("dmdpipe.diffusion.exact").ExactDenoiser
        return exact(tensors, dtype)
    network = build_network(spec.score.network, dimension(spec.data), seed=0)
    load_weights(network, tensors)
    return Denoiser(network.to(dtype).requires_grad_(False))


def placed(teacher: Teacher, device: torch.device, precision: str) -> Teacher:
    """Return a copy of the teacher on a device, its products in a precision (``dmdpipe.specs.hardware``)."""
    if isinstance(teacher, nn.Module):
        return in_precision(copy.deepcopy(teacher), precision).to(device)
    return teacher.to(device)


def load_weights(network: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Copy named arrays into a network's parameters; names and shapes must match exactly."""
    network.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()})
