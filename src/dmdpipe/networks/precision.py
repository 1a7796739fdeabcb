"""Denoisers whose products are in another precision."""

from __future__ import annotations

from importlib import import_module

from dmdpipe.networks.denoiser import Denoiser


def in_precision(denoiser: Denoiser, precision: str) -> Denoiser:
    """Return a denoiser of the same network whose products are in a precision (``dmdpipe.specs.hardware``)."""
    if precision != "bf16":
        return denoiser
    # By name, so that an edit of it touches only the trainings that use it.
    half: type[Denoiser] = import_module("dmdpipe.networks.bf16").Bf16Denoiser
    return half(denoiser.network, denoiser.skip)
