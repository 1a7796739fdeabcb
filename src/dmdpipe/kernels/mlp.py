"""The MLP denoiser inside its preconditioning, and its gradient, in one call of ``mlp.c`` each.

In PyTorch a small network spends most of its time between matrix products, on passes over memory and on calls. Here
rows go through all layers in blocks that stay in the cache. Float32, on the CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmdpipe.kernels.conditions import Conditions
from dmdpipe.kernels.large_pages import zeros
from dmdpipe.kernels.library import function

SIZE, MEMORY = ctypes.c_int64, ctypes.c_void_p


class Memory(NamedTuple):
    """What C needs for a network: room for its packed weights, and for what becomes of a block of rows."""

    panels: Tensor
    working: Tensor


class CompiledMLP:
    """An MLP denoiser D that reads its parameters where they are, at every call.

    Args:
        layers: weight [out, in] and bias [out] of the noise embedding, the input, each block and the output; contiguous
            float32 on the CPU.
        skip: whether D adds c_skip·x.

    Attributes:
        sizes: d, width, number of blocks, noise features, coordinates of the output.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], skip: bool):
        (width, embedding), (_, dim) = layers[0][0].shape, layers[1][0].shape
        self.layers = layers
        self.skip = skip
        self.sizes = dim, width, len(layers) - 3, embedding, len(layers[-1][0])
        self.known: list[Any] = [None, None]
        self.spare: Tensor | None = None

    def denoise(self, x: Tensor, given: Conditions) -> Tensor:
        """Return D(x) [B, d], given x [B, d] and its conditions."""
        x = x.contiguous()
        answer = torch.empty_like(x)
        call = function("mlp", "mlp_denoise", None, *[MEMORY] * 3, SIZE, *[MEMORY] * 4)
        call(*self.question(x, given), x.shape[0], x.data_ptr(), answer.data_ptr(), *map(place, self.memory()))
        return answer

    def with_pullback(self, x: Tensor, given: Conditions) -> tuple[Tensor, Callable[..., None]]:
        """Return D(x) [B, d] and its pullback (``dmdpipe.networks.pullback``), which may be called once."""
        x = x.contiguous()
        answer, kept = torch.empty_like(x), self._kept(x.shape[0])
        call = function("mlp", "mlp_denoise_and_keep", None, *[MEMORY] * 3, SIZE, *[MEMORY] * 4)
        places = x.data_ptr(), answer.data_ptr(), kept.data_ptr(), place(self.memory().panels)
        call(*self.question(x, given), x.shape[0], *places)

        def pullback(to_answer: Tensor, add: bool = False) -> None:
            shape, layers, conditions = self.question(x, given)
            _same_shape(to_answer, x)
            to = to_answer.contiguous()
            back = function("mlp", "mlp_pull_back", None, *[MEMORY] * 4, SIZE, MEMORY, MEMORY, SIZE, MEMORY, MEMORY)
            places = to.data_ptr(), kept.data_ptr(), add, *map(place, self.memory())
            back(shape, layers, self.gradients(), conditions, x.shape[0], *places)
            self.spare = kept

        return answer, pullback

    def denoising_loss(self, x: Tensor, given: Conditions, clean: Tensor, weight: Tensor | None) -> float:
        """Return the mean of weight·(D(x) − clean)², and set the gradients at the parameters.

        Args:
            x: noisy samples [B, d].
            given: their conditions.
            clean: [B, d].
            weight: for every entry of the conditions' tables [K, 1]; none for 1.
        """
        shape, layers, conditions = self.question(x, given)
        _same_shape(clean, x)
        if weight is not None:
            _same_shape(weight, given.c_in)
        x, clean = x.contiguous(), clean.contiguous()
        call = function("mlp", "mlp_denoising_loss", ctypes.c_float, *[MEMORY] * 4, SIZE, *[MEMORY] * 5)
        places = x.data_ptr(), clean.data_ptr(), place(weight), *map(place, self.memory())
        loss: float = call(shape, layers, self.gradients(), conditions, x.shape[0], *places)
        return loss

    def flow(self, x: Tensor, levels: Conditions, intervals: Sequence[tuple[float, float]]) -> Tensor:
        """Return where the probability flow sends x [B, d] (``dmdpipe.diffusion.sampler.probability_flow``).

        Args:
            x: start points.
            levels: conditions of the noise levels at which the intervals begin, one each [K, 1].
            intervals: for each, σ_next/σ, and what the difference of both slopes is multiplied by; of no effect in the
                last one, which ends at σ_next = 0.

        Raises:
            ValueError: if there are not as many levels as intervals.
        """
        if not len(levels.c_in) == len(intervals) > 0 or levels.rows is not None:
            raise ValueError(f"{len(levels.c_in)} levels of {len(intervals)} intervals")
        end = x.clone(memory_format=torch.contiguous_format)
        shape, layers, _ = self.question(end, Conditions(*(column[:1] for column in levels[:4])))
        told = structure(*(place(column) for column in levels[:2]), place(levels.c_skip) if self.skip else 0,
                         place(levels.features), 0, 0)  # fmt: skip
        heun = torch.tensor(intervals, dtype=torch.float32)
        call = function("mlp", "mlp_flow", None, *[MEMORY] * 4, SIZE, SIZE, *[MEMORY] * 3)
        call(shape, layers, told, heun.data_ptr(), len(heun), end.shape[0], end.data_ptr(), *map(place, self.memory()))
        return end

    def question(self, x: Tensor, given: Conditions) -> tuple[Any, Any, Any]:
        """Return the network's shape, its layers and the conditions, as C's structures.

        Raises:
            ValueError: if x, the conditions and the layers don't fit together: C would read beyond their memory.
        """
        self._check(x, given)
        told = structure(
            given.c_in.data_ptr(),
            given.c_out.data_ptr(),
            given.c_skip.data_ptr() if self.skip else 0,
            given.features.data_ptr(),
            0 if given.rows is None else given.rows.data_ptr(),
            given.c_in.shape[0] > 1,
        )
        return structure(*self.sizes), self.places(False), told

    def _check(self, x: Tensor, given: Conditions) -> None:
        entries, samples, rows = given.c_in.shape[0], x.shape[0], given.rows
        # First of all: C reads rows to see whether they fit.
        if rows is not None and rows.dtype != torch.int64:
            raise ValueError(f"expected rows in int64, got {rows.dtype}")
        if x.ndim != 2 or x.shape[1] != self.sizes[0]:
            raise ValueError(f"expected x [B, {self.sizes[0]}], got {tuple(x.shape)}")
        if rows is None:
            if entries not in (1, samples):
                raise ValueError(f"{samples} samples, but {entries} noise levels")
        elif rows.shape[0] != samples or not function("mlp", "mlp_rows_fit", SIZE, MEMORY, SIZE, SIZE)(
            rows.data_ptr(), samples, entries
        ):
            raise ValueError(f"rows {list(rows.shape)} are not one for each of {samples} samples, below {entries}")
        if given.features.shape != (entries, self.sizes[3]):
            raise ValueError(f"expected features [{entries}, {self.sizes[3]}], got {list(given.features.shape)}")
        if any(one.dtype != torch.float32 for one in (self.layers[0][0], x, given.c_in, given.features)):
            raise ValueError("expected layers, samples and conditions in float32")

    def gradients(self) -> Any:
        """Return where the gradients are to go.

        Raises:
            ValueError: if a parameter has no place for its gradient.
        """
        places = self.places(True)
        if 0 in places:
            raise ValueError("a parameter has no gradient: make the network's FlatParameters first")
        return places

    def places(self, of_gradients: bool) -> Any:
        """Return where the parameters or their gradients lie. They move together, and seldom: both ends are asked."""
        ends = [self.layers[0][0], self.layers[-1][1]]
        now = [place(one.grad if of_gradients else one) for one in ends]
        known = self.known[of_gradients]
        if known is None or [known[0], known[-1]] != now:
            tensors = [one.grad if of_gradients else one for pair in self.layers for one in pair]
            known = self.known[of_gradients] = structure(*map(place, tensors))
        return known

    def memory(self) -> Memory:
        """Return memory to work with, shared with all networks of this shape."""
        return _memory(self.sizes)

    def own_memory(self) -> Memory:
        """Return the same, but with room for packed weights that is this network's alone."""
        return self.memory()._replace(panels=_room("mlp_panels_size", self.sizes))

    def _kept(self, rows: int) -> Tensor:
        """Return memory for what the way back needs of so many rows: the last pullback's, if it fits."""
        size = function("mlp", "mlp_kept_size", SIZE, MEMORY, SIZE)(structure(*self.sizes), rows)
        spare, self.spare = self.spare, None
        return spare if spare is not None and spare.shape[0] == size else torch.empty(size)


def _same_shape(one: Tensor, x: Tensor) -> None:
    if one.shape != x.shape or one.dtype != x.dtype:
        raise ValueError(f"expected {list(x.shape)} in {x.dtype}, got {list(one.shape)} in {one.dtype}")


def structure(*fields: int) -> Any:
    """Return one of C's structures whose fields all take eight bytes."""
    return (SIZE * len(fields))(*fields)


def place(tensor: Tensor | None) -> int:
    """Return where a tensor's numbers lie in memory; 0 without one."""
    return 0 if tensor is None else tensor.data_ptr()


@cache
def _memory(sizes: tuple[int, ...]) -> Memory:
    """Return memory for a network, the same at every call: fresh memory costs more than what is done in it."""
    return Memory(_room("mlp_panels_size", sizes), _room("mlp_memory_size", sizes))


def _room(measure: str, sizes: tuple[int, ...]) -> Tensor:
    return zeros(function("mlp", measure, SIZE, MEMORY)(structure(*sizes)))
