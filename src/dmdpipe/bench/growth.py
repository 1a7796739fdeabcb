"""How cost grows: with dimension, width, batch, members, pairs and steps, each with the exponent that it must have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dmdpipe.bench.training import student_spec, timed, untrained_teacher
from dmdpipe.diffusion.determinism import exact_torch

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Work = Callable[[], object]

TOLERANCE = 0.2
"""By how much a measured exponent may pass the algorithm's: caches fill up and clocks jitter."""


@dataclass(frozen=True)
class Axis:
    """One thing that grows.

    Attributes:
        name: what grows.
        cost: what is timed.
        values: its values, ascending.
        exponent: of the algorithm, for large values.
        prepare: makes what is timed at one value.
    """

    name: str
    cost: str
    values: tuple[int, ...]
    exponent: float
    prepare: Callable[[int], Work]


def training(dim: int = 64, width: int = 64, batch: int = 256, steps: int = 4) -> Work:
    """Return a whole small training."""
    from dmdpipe.distill.loop import distil

    spec = student_spec(width, dim, batch, steps)
    teacher = untrained_teacher(spec)
    return lambda: distil(spec, teacher)


def ensemble(members: int) -> Work:
    """Return a generator step of students that train together."""
    from dmdpipe.distill.ensemble import Ensemble

    spec = student_spec(64, 64, 64, 2)
    specs = [spec.model_copy(update={"seed": seed}) for seed in range(members)]
    together = Ensemble(specs, [untrained_teacher(spec)] * members)
    return together.train


def sampling(samples: int) -> Work:
    """Return the teacher's map of this many noises."""
    from dmdpipe.diffusion.sampler import teacher_map

    spec = student_spec(64, 64, 256, 1)
    teacher = untrained_teacher(spec)
    z = torch.randn(samples, 64)
    return lambda: teacher_map(teacher, z, spec.noise_range, 4)


def paired(pairs: int) -> Work:
    """Return the statistics that look at each pair once."""
    from dmdpipe.copying.pairing_metrics import cosine, relative_pair_error

    student, teacher = np.random.default_rng(0).standard_normal((2, pairs, 64))
    return lambda: (relative_pair_error(student, teacher), cosine(student, teacher))


def pairwise(pairs: int) -> Work:
    """Return the statistics that look at every two samples: mean distance and ranks."""
    from dmdpipe.copying.distances import mean_distance
    from dmdpipe.copying.pairing_metrics import pair_ranks

    student, teacher = np.random.default_rng(0).standard_normal((2, pairs, 64))
    return lambda: (mean_distance(student, teacher), pair_ranks(student, teacher))


def assignment(pairs: int) -> Work:
    """Return the optimal matching, of at most the pairs that the metrics take."""
    from dmdpipe.copying.pairing_metrics import ASSIGNMENT_LIMIT, optimal_cost

    student, teacher = np.random.default_rng(0).standard_normal((2, min(pairs, ASSIGNMENT_LIMIT), 64))
    return lambda: optimal_cost(student, teacher)


AXES = (
    Axis("dimension d", "training", (4, 16, 64, 256, 1024, 4096), 1, lambda d: training(dim=d)),
    Axis("width", "training", (32, 64, 128, 256, 512, 1024), 2, lambda width: training(width=width)),
    Axis("batch", "training", (64, 128, 256, 512, 1024, 2048), 1, lambda batch: training(batch=batch)),
    Axis("generator steps", "training", (4, 8, 16, 32, 64, 128), 1, lambda steps: training(steps=steps)),
    Axis("members", "training together", (1, 2, 4, 8, 16), 1, ensemble),
    Axis("samples N", "teacher's map", (1_024, 2_048, 4_096, 8_192, 16_384), 1, sampling),
    Axis("pairs N", "paired statistics", (8_000, 16_000, 32_000, 64_000, 128_000, 256_000), 1, paired),
    Axis("pairs N", "pairwise statistics", (500, 1_000, 2_000, 4_000, 8_000), 2, pairwise),
    Axis("pairs N", "assignment", (256, 512, 1_024, 2_048, 4_096), 3, assignment),
)


def measure(axes: Sequence[Axis] = AXES, turns: int = 3, values: int | None = None) -> pd.DataFrame:
    """Return the seconds at every value of every axis, the best of some turns, on one thread.

    Args:
        axes: what grows.
        turns: how often each is timed.
        values: how many values of each axis, from the smallest; none for all.

    Returns:
        Columns axis, cost, value, seconds, exponent (measured, see ``measured_exponent``) and algorithm (the
        exponent that it must have), one row for each value.
    """
    import pandas as pd

    exact_torch(threads=1)
    parts = []
    for axis in axes:
        grown = axis.values[:values]
        seconds = [best(axis.prepare(value), turns) for value in grown]
        part = pd.DataFrame({"axis": axis.name, "cost": axis.cost, "value": grown, "seconds": seconds})
        parts.append(part.assign(exponent=measured_exponent(grown, seconds), algorithm=float(axis.exponent)))
    return pd.concat(parts, ignore_index=True)


def best(work: Work, turns: int) -> float:
    """Return the shortest seconds of some turns, after one that is not counted."""
    work()
    return min(timed(work) for _ in range(turns))


def measured_exponent(values: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the slope of log(seconds) against log(value) over the last three values: where the largest cost rules.

    Raises:
        ValueError: if there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("an exponent needs two values or more")
    slope, _ = np.polyfit(np.log(values[-3:]), np.log(seconds[-3:]), 1)
    return float(slope)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each axis: its ends, the seconds there, both exponents, and whether it grows as it must."""
    groups = table.groupby(["axis", "cost"], sort=False)
    short = groups.agg(
        smallest=("value", "min"),
        largest=("value", "max"),
        seconds_smallest=("seconds", "first"),
        seconds_largest=("seconds", "last"),
        exponent=("exponent", "first"),
        algorithm=("algorithm", "first"),
    ).reset_index()
    return short.assign(as_it_must=short["exponent"] <= short["algorithm"] + TOLERANCE)


def draw(table: pd.DataFrame) -> Figure:
    """Return the figure: one panel an axis, both logarithmic, a dashed line with the algorithm's exponent."""
    from dmdpipe.figures.style import BLUE, MUTED, new_figure, styled

    @styled
    def drawn() -> Figure:
        groups = list(table.groupby(["axis", "cost"], sort=False))
        columns = 3
        rows = -(-len(groups) // columns)
        figure = new_figure(3.1 * columns, 2.7 * rows)
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for panel, ((axis, cost), part) in zip(panels, groups, strict=False):
            value, seconds = part["value"].to_numpy(float), part["seconds"].to_numpy()
            exponent, algorithm = part["exponent"].iloc[0], part["algorithm"].iloc[0]
            panel.loglog(value, seconds[-1] * (value / value[-1]) ** algorithm, "--", color=MUTED, linewidth=1)
            panel.loglog(value, seconds, "o-", color=BLUE)
            panel.set_title(f"{cost}\nexponent {exponent:.2f}, algorithm {algorithm:g}", fontsize=9.5)
            shown = value[[0, len(value) // 2, -1]] if len(value) > 2 else value
            panel.set_xticks(shown, [f"{each:,.0f}" for each in shown])
            panel.set_xticks([], minor=True)
            panel.set_xlabel(axis)
            panel.set_ylabel("seconds")
        for panel in panels[len(groups) :]:
            panel.set_visible(False)
        return figure

    return drawn()
