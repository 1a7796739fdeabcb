"""Results tables with planted answers, for the points of the standard studies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from dmdpipe.evidence.results import results_table

Labels = Mapping[str, Any]


def labels(
    data: str,
    d: int,
    init: str = "teacher",
    sigma_max: float = 80.0,
    recipe: str = "dmd2",
    point: str | None = None,
) -> dict[str, Any]:
    point = point or f"{data}, d={d}, start={init}, sigma_max={sigma_max:g}, {recipe}"
    return {
        "point": point,
        "data": data,
        "d": d,
        "network": "mlp",
        "init": init,
        "recipe": recipe,
        "sigma_max": sigma_max,
    }


TWO_D = ("ring", "moons", "checkerboard", "swiss_roll")
STUDIES: dict[str, list[dict[str, Any]]] = {
    "low_dimension": [*(labels(data, 2) for data in TWO_D), labels("ring", 2, "random-head")],
    "high_dimension": [labels("digits-8x8", 64), labels("digits-8x8", 64, recipe="regression")],
    "adversarial": [labels("digits-8x8", 64, recipe=recipe) for recipe in ("dmd2", "dmd2-gan", "gan")],
    "auxiliary": [labels("digits-8x8", 64) | {"point": f"weight={weight}"} for weight in ("0", "0.05", "0.25")],
    "dimension": [labels(f"digits-{side}x{side}", side**2) for side in (2, 4, 8)],
    "sigma_max": [
        labels(f"digits-{side}x{side}", side**2, sigma_max=sigma_max) for side in (2, 8) for sigma_max in (80.0, 8.0)
    ],
    "initialisation": [
        labels("digits-4x4", 16, init)
        for init in ("teacher", "edm-default", "random-head", "random-no-skip", "kd-rotated")
    ],
    "memorization": [
        labels("digits-4x4-n50", 16, point="case=50 images"),
        labels("digits-4x4", 16, point="case=all images"),
        labels("mixture-16", 16, point="case=no data set"),
    ],
    "capacity": [
        labels("digits-4x4", 16, "kd", point="student=64x3"),
        labels("digits-4x4", 16, "kd", point="student=256x3"),
    ],
    "convergence": [
        labels("digits-4x4", 16, point=f"start={start}, score={score}")
        for start in (1000, 4000)
        for score in (1000, 4000)
    ],
}

World = Callable[[Labels], Mapping[str, float]]


def metrics(values: Mapping[str, float], gate_ratio: float, steps: tuple[int, ...] = (0, 100)) -> pd.DataFrame:
    """Return a student's metrics table: at the first steps unlike at the last, which holds ``values``."""
    rows = []
    for step in steps:
        last = step == steps[-1]
        gate = gate_ratio if last else 50.0
        rows += [(step, "gate_ratio", gate), (step, "converged", float(gate <= 2))]
        rows += [(step, metric, value if last else 7.0) for metric, value in values.items()]
    return pd.DataFrame(rows, columns=["generator_step", "metric", "value"])


def table(
    world: World,
    seeds: int | Mapping[str, int] = 5,
    spread: float = 0.01,
    gate: Callable[[Labels, int], float] = lambda point, seed: 1.2,
    studies: Mapping[str, list[dict[str, Any]]] = STUDIES,
    first_seed: int = 0,
) -> pd.DataFrame:
    """Return the union of the studies' results tables in a world that gives every point its metrics.

    ``seeds`` is their number in every study, or by study.
    """
    rng = np.random.default_rng(20260606)
    number = seeds if isinstance(seeds, Mapping) else dict.fromkeys(studies, seeds)
    return pd.concat(
        [
            results_table(
                study,
                "test",
                [
                    (
                        {**point, "seed": seed},
                        metrics(
                            {name: value + spread * rng.standard_normal() for name, value in world(point).items()},
                            gate(point, seed),
                            steps=(100,),
                        ),
                    )
                    for point in points
                    for seed in range(first_seed, first_seed + number[study])
                ],
                seed_pairs={},
            )
            for study, points in studies.items()
        ],
        ignore_index=True,
    )
