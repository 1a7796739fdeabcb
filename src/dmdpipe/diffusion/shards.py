"""Batches cut into shards, whose gradients are computed one by one and added in their order.

A loss that is a mean over the rows of a batch has, as its gradient, the mean of the shards' gradients. How many shards
there are decides the rounding, and stands in the spec. Which process computes a shard decides nothing: each computes
whole shards, gets those of the others, and adds all of them in the same order as one process alone would.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmdpipe.diffusion.determinism import root_mean_square

if TYPE_CHECKING:
    Log = Mapping[str, float | Tensor]


class Ranks:
    """The processes that share a training, seen from one of them; here it is alone.

    Attributes:
        number: this one's, 0 for the step's own process, which alone reads checkpoints and writes.
        count: of all.
    """

    number = 0
    count = 1

    def gathered(self, own: Tensor) -> Tensor:
        """Return every process's tensor [n, …], which is of one shape everywhere, in their order [count·n, …]."""
        return own

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Put into these tensors what the first process's hold."""


ALONE = Ranks()


class Shards:
    """The shards of a training's batches that one process computes.

    Args:
        count: of all shards; 1 leaves batches whole.
        batch: number of rows B that they share equally.
        ranks: the processes that share the shards equally.

    Attributes:
        own: the rows of each shard that is this process's.
    """

    def __init__(self, count: int = 1, batch: int = 1, ranks: Ranks = ALONE):
        self.count = count
        self.ranks = ranks
        size, share = batch // count, count // ranks.count
        numbers = range(ranks.number * share, (ranks.number + 1) * share)
        self.own = [slice(None)] if count == 1 else [slice(k * size, (k + 1) * size) for k in numbers]

    def mean(self, gradient: Tensor, logs: Iterable[Log], roots: Collection[str] = ()) -> Log:
        """Leave the mean of all shards' gradients in ``gradient``, and return the mean of what they log.

        Args:
            gradient: flat [P].
            logs: one for each shard of ``own``; to get the next one puts that shard's gradient into ``gradient``.
            roots: names of what is logged as a root of a mean of squares, and is brought together as such.
        """
        if self.count == 1:
            (log,) = logs
            return log
        rows = []
        for log in logs:
            values = torch.stack([torch.as_tensor(value) for value in log.values()]).to(gradient)
            rows.append(torch.cat([gradient, values]))
        gradients, values = self.ranks.gathered(torch.stack(rows)).split([len(gradient), len(log)], dim=1)
        gradient.copy_(gradients[0])
        for other in gradients[1:]:
            gradient.add_(other)
        gradient.div_(self.count)
        of_each = zip(log, values.unbind(1), strict=True)
        return {name: root_mean_square(of) if name in roots else of.mean() for name, of in of_each}


WHOLE = Shards()
