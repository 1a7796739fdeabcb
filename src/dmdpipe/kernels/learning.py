"""What the training steps in C are told: a network, its parameters as flat vectors, and AdamW's numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dmdpipe.kernels.mlp import CompiledMLP, Memory, place, structure

if TYPE_CHECKING:
    from dmdpipe.kernels.conditions import Conditions
    from dmdpipe.kernels.optimiser import AdamWSizes


class Flat(NamedTuple):
    """All parameters of a network and AdamW's state, as flat vectors [P] in float32.

    Attributes:
        values: the parameters, in the order of the layers.
        gradient: the loss's gradient.
        first: its running mean.
        second: that of its square.
        clip: bound on the gradient's norm, or None.
    """

    values: Tensor
    gradient: Tensor
    first: Tensor
    second: Tensor
    clip: float | None


class Learner(NamedTuple):
    """An MLP denoiser, what it is told of the noise levels, and, if it learns, its parameters as flat vectors."""

    network: CompiledMLP
    given: Conditions
    flat: Flat | None = None

    def told_flat(self) -> Any:
        """Return the flat vectors as C's structure.

        Raises:
            ValueError: unless they are there, and hold the parameters and gradients of the network's layers.
        """
        before = [0, *accumulate(one.numel() for layer in self.network.layers for one in layer)]
        size = before.pop()
        vectors = self.flat[:4] if self.flat else ()
        good = [one.shape == (size,) and one.dtype == torch.float32 and one.is_contiguous() for one in vectors]
        if self.flat is None or not all(good):
            raise ValueError(f"expected {size} parameters in float32, got {[list(one.shape) for one in vectors]}")
        for places, vector in zip(map(self.network.places, (False, True)), vectors[:2], strict=True):
            if [*places] != [vector.data_ptr() + vector.itemsize * count for count in before]:
                raise ValueError("the network's parameters and gradients lie elsewhere: make its FlatParameters last")
        clip = ctypes.c_int64.from_buffer(ctypes.c_double(self.flat.clip or 0.0)).value
        return structure(*map(place, vectors), size, clip)


class Told(NamedTuple):
    """C's structure of a network, and what it points to, which must live as long."""

    pointers: Any
    parts: tuple[Any, ...]


def told_network(learner: Learner, x: Tensor, memory: Memory) -> Told:
    """Return a network for C, with its conditions checked against samples x [B, d], and the memory that it works in.

    Raises:
        ValueError: if these don't fit, or a parameter of a network that learns has no place for its gradient.
    """
    network = learner.network
    shape, layers, given = network.question(x, learner.given)
    parts = (shape, layers, network.gradients() if learner.flat else structure(0), given)
    return Told(structure(*map(ctypes.addressof, parts), *map(place, memory)), (*parts, memory))


def told_sizes(sizes: Sequence[AdamWSizes]) -> Any:
    """Return the numbers of each step for C; what they say of ``scale`` does not count: C clips."""
    numbers = [n for one in sizes for n in (one.beta1, one.beta2, one.rate, one.epsilon, one.keep)]
    return (ctypes.c_float * len(numbers))(*numbers)
