"""Several rounds of DMD in one call of ``dmd.c``: each a generator step and the fake score's steps up to the next one.

Float32, on the CPU, for MLPs. Piece by piece, calls from Python would take a third as long as what they compute, and
leave the cache to each other; round by round still a twentieth.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dmdpipe.kernels.large_pages import zeros
from dmdpipe.kernels.learning import Learner, told_network, told_sizes
from dmdpipe.kernels.library import function
from dmdpipe.kernels.mlp import MEMORY, SIZE, place, structure

if TYPE_CHECKING:
    from dmdpipe.kernels.noise import Stream
    from dmdpipe.kernels.optimiser import AdamWSizes


STEP_OF_A_PARAMETER = 50
"""As many multiplications take as long as AdamW's step of a parameter, which waits for memory."""


class Noising(NamedTuple):
    """Where samples get their noise: x + σ·ε.

    Attributes:
        stream: draws which levels, and then ε.
        sigma: all noise levels σ [K, 1], float32.
        first: of those that are drawn, all alike often.
        end: the one after the last.
    """

    stream: Stream
    sigma: Tensor
    first: int
    end: int

    def told(self) -> Any:
        """Return this as C's structure.

        Raises:
            ValueError: if there are no such levels: C would read beyond their memory.
        """
        count = _column(self.sigma)
        if not 0 <= self.first < self.end <= count:
            raise ValueError(f"no levels {self.first} to below {self.end} in {count}")
        drawn = self.stream.position.data_ptr(), self.first, self.end - self.first, self.sigma.data_ptr()
        return structure(self.stream.seed, *drawn)


class Matching(NamedTuple):
    """What ``dmdpipe.distill.dmd.dm_gradient`` is asked for, under its names.

    Attributes:
        normalise: whether g is divided by mean|x − μ_real|.
        normaliser_offset: added to that.
        normaliser_min: its lower clamp.
        scale: of the gradient that the student gets, scale·g.
    """

    normalise: bool
    normaliser_offset: float
    normaliser_min: float
    scale: float


class Round(NamedTuple):
    """The numbers of AdamW's steps in a round; their ``scale`` does not count: C clips.

    Attributes:
        generator: of the generator's step.
        fakes: of each step of the fake score.
    """

    generator: AdamWSizes
    fakes: Sequence[AdamWSizes]


class Logged(NamedTuple):
    """What a round tells.

    Attributes:
        dm_gradient: the root mean square of g.
        student_gradient: the norm of the student's gradient.
        fake_loss: the fake score's last loss; not a number if it takes no step.
    """

    dm_gradient: float
    student_gradient: float
    fake_loss: float


class _Latent(ctypes.Structure):
    """C's structure of the same name."""

    _fields_ = (("key", SIZE), ("position", MEMORY), ("level", ctypes.c_float))


class _Training(ctypes.Structure):
    """C's structure of the same name."""

    _fields_ = (
        *((name, MEMORY) for name in ("student", "teacher", "fake", "latent", "at_generator", "at_fake", "matching")),
        *((name, MEMORY) for name in ("weight", "of_student", "of_fake", "average", "room")),
        ("batch", SIZE),
        ("share", ctypes.c_float),
    )


class CompiledRounds:
    """The rounds of one distillation. All that it is given is read and changed where it is, in every round, but for the
    networks' weights: those are read at the first call, and until the last one changed by nothing else.

    Args:
        student: G, with the conditions of its one level.
        teacher: D_teacher, with those of all K noise levels; it does not learn.
        fake: D_fake, likewise.
        latent: where the student's noise z comes from.
        level: σ_max; the student is G(σ_max·z, σ_max).
        at_generator: noises samples for the generator's step.
        at_fake: noises them for the fake score's.
        matching: the gradient.
        weight: of the fake score's loss at each level [K, 1]; none for 1.
        batch: rows B of a batch.
        most: most steps of the fake score in a round.
        average: of the student's parameters [P]; after each of its steps it moves towards them. None: there is none.
        share: by which share of the way.

    Attributes:
        multiplications: in the products of a round, about, and as many as take the time of its optimiser steps.

    Raises:
        ValueError: if these don't fit together: C would read or write beyond their memory.
    """

    def __init__(
        self,
        student: Learner,
        teacher: Learner,
        fake: Learner,
        latent: Stream,
        level: float,
        at_generator: Noising,
        at_fake: Noising,
        matching: Matching,
        weight: Tensor | None,
        batch: int,
        most: int,
        average: Tensor | None = None,
        share: float = 0.0,
    ):
        dim = student.network.sizes[0]
        known = {_column(each) for each in (at_generator.sigma, at_fake.sigma, *([] if weight is None else [weight]))}
        if {len(one.given.c_in) for one in (teacher, fake)} | known != {len(at_fake.sigma)}:
            raise ValueError("conditions, noise levels and weights are not of the same levels")
        if len(student.given.c_in) != 1 or batch < 1 or most < 0:
            raise ValueError(f"{len(student.given.c_in)} levels of the student, batches of {batch}, {most} steps")
        row = torch.zeros(batch, dtype=torch.int64)
        floats = [*zeros(4, batch, dim), zeros(most + 1, batch, dim), zeros(max(most, 1), batch, dim)]
        of_levels = [one._replace(given=one.given.at(row)) for one in (teacher, fake)]
        networks = [told_network(one, floats[0], one.network.own_memory()) for one in (student, *of_levels)]
        shape = structure(*student.network.sizes)
        floats.append(zeros(function("dmd", "dmd_kept_size", SIZE, MEMORY, SIZE)(shape, batch)))
        self.most, self.begun = most, False
        sizes = [sum(weight.numel() for weight, _ in one.network.layers) for one in (student, teacher, fake)]
        passes = most + 2, 1, 3 * most + 1
        products = batch * sum(size * count for size, count in zip(sizes, passes, strict=True))
        self.multiplications = products + STEP_OF_A_PARAMETER * (sizes[0] + most * sizes[2])
        flats = [one.told_flat() for one in (student, fake)]
        if average is not None and (average.shape != (flats[0][4],) or average.dtype != torch.float32):
            raise ValueError(f"an average of {list(average.shape)} in {average.dtype}, of {flats[0][4]} parameters")
        parts = {
            "student": networks[0].pointers,
            "teacher": networks[1].pointers,
            "fake": networks[2].pointers,
            "latent": _Latent(latent.seed, latent.position.data_ptr(), level),
            "at_generator": at_generator.told(),
            "at_fake": at_fake.told(),
            "matching": (ctypes.c_float * len(matching))(*matching),
            "of_student": flats[0],
            "of_fake": flats[1],
            "room": structure(row.data_ptr(), *map(place, floats)),
        }
        places = {name: ctypes.addressof(part) for name, part in parts.items()}
        self._told = _Training(**places, weight=place(weight), average=place(average), batch=batch, share=share)
        # C is told places in memory: what lies there must stay.
        given = student, teacher, fake, latent, at_generator, at_fake, weight, average
        self._held = given, parts, networks, row, floats
        self._call = function("dmd", "dmd_rounds", None, MEMORY, SIZE, SIZE, *[MEMORY] * 4)

    def __call__(self, rounds: Sequence[Round], shared: bool) -> list[Logged]:
        """Go some rounds.

        Args:
            rounds: AdamW's numbers in each.
            shared: whether the fake score's first step is on the generator's batch; the others have their own.

        Returns:
            What each round tells.

        Raises:
            ValueError: if one of them has more steps than there is room for.
        """
        steps = [len(each.fakes) for each in rounds]
        if not all(shared <= count <= self.most for count in steps):
            raise ValueError(f"{steps} steps of the fake score, there may be {int(shared)} to {self.most}")
        if not self.begun:
            function("dmd", "dmd_begin", None, MEMORY)(ctypes.byref(self._told))
            self.begun = True
        generators, fakes = [each.generator for each in rounds], [one for each in rounds for one in each.fakes]
        log = (ctypes.c_double * len(Logged._fields) * len(rounds))()
        changing = told_sizes(generators), told_sizes(fakes), structure(*steps)
        self._call(ctypes.byref(self._told), len(rounds), shared, *changing, log)
        return [Logged(*each) for each in log]


def _column(column: Tensor) -> int:
    """Return the number of rows of a column [K, 1]."""
    if column.ndim != 2 or column.shape[1] != 1 or column.dtype != torch.float32 or not column.is_contiguous():
        raise ValueError(f"expected a column in float32, got {list(column.shape)} in {column.dtype}")
    return len(column)
