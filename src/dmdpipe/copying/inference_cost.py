"""What it costs to draw a sample from a student, against one answer of the teacher's network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dmdpipe.data.layout import image_shape
from dmdpipe.specs.data import dimension

if TYPE_CHECKING:
    from dmdpipe.specs.network import UNet
    from dmdpipe.specs.student import StudentSpec


def weights(network: Any, dim: int) -> int:
    """Return the number of weights of a network with d = ``dim``, but for biases and norms; 0 for particles."""
    if network.kind == "unet":
        return sum(own for own, _ in _layers(network, dim))
    return multiplications(network, dim)


def multiplications(network: Any, dim: int) -> int:
    """Return the multiplications per sample of a forward pass of a network with d = ``dim``.

    The number of weights, and in a U-Net as often as there are positions; attention's products of positions are left
    out. 0 for particles, which are no network.
    """
    if network.kind == "particles":
        return 0
    if network.kind == "linear":
        return dim * dim
    if network.kind == "unet":
        return sum(own * positions for own, positions in _layers(network, dim))
    return int(network.width * (2 * dim + network.depth * network.width + network.embedding + network.classes))


def _layers(network: UNet, dim: int) -> Iterator[tuple[int, int]]:
    """Return weights and positions of every layer of a U-Net (``dmdpipe.networks.unet``)."""
    side, colours = image_shape(dim)
    channels = [network.channels * factor for factor in network.multipliers]
    embedding = 4 * channels[0]
    last = len(channels) - 1
    at = [(-(-side // 2**last) * 2 ** (last - level)) ** 2 for level in range(last + 1)]

    def block(before: int, after: int, positions: int, attends: bool) -> Iterator[tuple[int, int]]:
        yield 9 * after * (before + after) + before * after * (before != after), positions
        yield embedding * after, 1
        if attends:
            yield 4 * after * after, positions

    yield from ((9 * colours * channels[0], at[0]), (channels[0] * embedding + embedding**2, 1))
    skips, before = [channels[0]], channels[0]
    for level, own in enumerate(channels):
        for _ in range(network.blocks):
            yield from block(before, own, at[level], level in network.attention)
            before = own
            skips.append(own)
        if level < last:
            yield 9 * own * own, at[level + 1]
            skips.append(own)
    yield from block(before, before, at[last], True)
    yield from block(before, before, at[last], False)
    for level in range(last, -1, -1):
        own = channels[level]
        for _ in range(network.blocks + 1):
            yield from block(before + skips.pop(), own, at[level], level in network.attention)
            before = own
        if level:
            yield 9 * own * own, at[level - 1]
    yield 9 * channels[0] * colours, at[0]


def inference_cost(student: StudentSpec) -> float:
    """Return a student's multiplications for a sample, over those of one call of its teacher's network.

    Steps × those of the student's network / those of the teacher's; 1 for a student of one step on the teacher's
    network. NaN for an exact teacher, which has no network, and for particles, which make no samples but those that
    they are. Heun's sampler of n intervals costs 2n − 1 in this unit.
    """
    score, dim = student.teacher.score, dimension(student.teacher.data)
    if score.kind != "trained" or student.network.kind == "particles":
        return float("nan")
    return student.sampling_steps * multiplications(student.network, dim) / multiplications(score.network, dim)
