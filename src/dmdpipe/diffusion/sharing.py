"""Which processes share a step's training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from dmdpipe.diffusion.shards import ALONE, Ranks
from dmdpipe.errors import UserError

if TYPE_CHECKING:
    from dmdpipe.artifacts.step import Step
    from dmdpipe.specs.hardware import Hardware


@contextmanager
def ranks_of(step: Step, hardware: Hardware) -> Iterator[Ranks]:
    """Return the processes that share a step's training, as many as ``step.devices``, while the block runs.

    Args:
        step: of the first of them, which starts the others; or of one of the others, which joins them.
        hardware: the spec of the training.

    Raises:
        UserError: if they can't share the shards equally, or have not a device each, or one of them ends.
    """
    if hardware.shards % step.devices:
        raise UserError(
            f"{step.label}: devices {step.devices} can't share its shards, {hardware.shards}, equally; take a number"
            " that divides them"
        )
    if step.devices == 1:
        yield ALONE
        return
    # By name, so that an edit of it does not touch trainings that are never shared.
    with import_module("dmdpipe.diffusion.ranks").joined(step, hardware.device) as ranks:
        yield ranks
