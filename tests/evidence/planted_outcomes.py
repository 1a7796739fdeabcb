"""Metric values that put any criterion of any claim on the side of its threshold where it is wanted.

A mean, a difference and a slope are linear in the metrics of a study's points. So what a criterion reads where one of
these numbers is 1 and all others are 0 is that number's weight, and values that give several criteria any statistics at
once solve a system of linear equations. Nothing here knows a claim, a study or a metric by name: whoever adds one to
config/ has it planted, too.

A rank correlation is not linear. Its second quantity is planted as a copy of the first, with its sign: 1 or −1, or each
in every other seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import lsq_linear

from dmdpipe.evidence.readings import read_criterion
from dmdpipe.evidence.results import per_seed_rows
from dmdpipe.specs.claims import Claims, Criterion, load_claims
from dmdpipe.specs.config import members_of, scale_names, study_names

CONFIG = Path(__file__).parents[2] / "config"
READOUT = 100
Place = tuple[str, str, str]  # study, point, metric


def declared_claims() -> Claims:
    """Return the claims of the configuration."""
    return load_claims(CONFIG / "claims.yaml", study_names(CONFIG))


def planted_claims() -> Claims:
    """Return the claims that only the campaign knows."""
    return load_claims(Path(__file__).with_name("planted_claims.yaml"), study_names(CONFIG))


def declared_controls() -> Claims:
    """Return the controls of the configuration."""
    return load_claims(CONFIG / "controls.yaml", study_names(CONFIG), controls=True)


def declared_points(claims: Claims) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the labels of all points by study and point, with ``seeds``, for the studies that the claims read.

    A study's points are those of the first scale, from laptop on, at which it has all that its criteria select.
    """
    criteria = [criterion for claim in claims.claims for criterion in claim.criteria]
    return {study: points_for(study, criteria) for study in dict.fromkeys(one.study for one in criteria)}


def points_for(study: str, criteria: Sequence[Criterion]) -> dict[str, dict[str, Any]]:
    """Return the labels of a study's points, with ``seeds``, as ``declared_points`` does."""
    mine = [criterion for criterion in criteria if criterion.study == study]
    reasons = []
    for scale in ["laptop", *(name for name in scale_names(CONFIG) if name != "laptop")]:
        points: dict[str, dict[str, Any]] = {}
        for member in members_of(study, scale, CONFIG):
            labels = dict(member.labels())
            seed = labels.pop("seed")
            points.setdefault(labels["point"], {**labels, "seeds": 0})["seeds"] += 1
            assert seed >= 0
        names = sorted({name for criterion in mine for name in metrics_of(criterion)})
        zeros = {(study, point, metric): 0.0 for point in points for metric in names}
        runs = table({study: points}, zeros, seeds=1, criteria=mine)
        absent = [reading.absent for reading in (read_criterion(criterion, runs) for criterion in mine)]
        if not any(absent):
            return points
        reasons += [f"{scale}: {why[1]}" for why in absent if why]
    raise AssertionError(f"no scale has all points that criteria of study '{study}' select: {'; '.join(reasons)}")


def metrics_of(criterion: Criterion) -> tuple[str, ...]:
    """Return the names of the metrics at the read-out that a criterion reads, without repetition."""
    statistic = criterion.statistic
    if statistic.difference is not None:
        names = (statistic.difference.metric, statistic.difference.minus_metric)
    else:
        one = statistic.value or statistic.slope or statistic.rank_correlation
        assert one is not None
        names = (one.metric,)
    return tuple(dict.fromkeys(name for name in names if name is not None))


def table(
    points: Mapping[str, Mapping[str, Mapping[str, Any]]],
    values: Mapping[Place, float],
    offsets: Mapping[Place, float] | None = None,
    seeds: int = 5,
    criteria: Sequence[Criterion] = (),
    signs: Mapping[str, Sequence[int]] | None = None,
    gate_ratio: float = 1.2,
) -> pd.DataFrame:
    """Return the rows of single seeds of the studies' results tables, with planted metrics.

    Seed k of n has value + e_k·offset at every place, with e_k from −1 to 1, of mean 0. The second quantity of a rank
    correlation among ``criteria`` is its first in the same seed, times its sign there (by name of the criterion; 1).
    """
    pattern = np.linspace(-1, 1, seeds) if seeds > 1 else np.zeros(1)
    tables = []
    for study, of_study in points.items():
        correlations = [one for one in criteria if one.study == study and one.statistic.rank_correlation]
        cells = []
        for point, labels in of_study.items():
            mine = {metric: value for (s, p, metric), value in values.items() if (s, p) == (study, point)}
            for seed, e in enumerate(pattern):
                rows = {
                    (READOUT, metric): value + e * (offsets or {}).get((study, point, metric), 0.0)
                    for metric, value in mine.items()
                }
                for one in correlations:
                    if not all(labels[column] in kept for column, kept in one.select if kept):
                        continue
                    correlation = one.statistic.rank_correlation
                    assert correlation is not None
                    sign = (signs or {}).get(one.name, (1,) * seeds)[seed]
                    step = correlation.against.generator_step
                    place = (READOUT if step is None else step, correlation.against.metric)
                    assert place not in rows, f"{one.name}: its two quantities would be one"
                    rows[place] = sign * rows[READOUT, correlation.metric]
                gates = [(READOUT, "gate_ratio", gate_ratio), (READOUT, "converged", float(gate_ratio <= 2))]
                steps = {step for step, _ in rows} - {READOUT}
                gates += [(step, name, value) for step in steps for _, name, value in gates[:2]]
                frame = pd.DataFrame(
                    [*((step, metric, value) for (step, metric), value in rows.items()), *gates],
                    columns=["generator_step", "metric", "value"],
                )
                cells.append(({**labels, "seed": seed}, frame))
        tables.append(per_seed_rows(study, "test", cells))
    return pd.concat(tables, ignore_index=True)


def weights(
    criteria: Sequence[Criterion], points: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> tuple[list[Place], np.ndarray]:
    """Return the places that the criteria read, and the weight of each in every criterion [C, P].

    A place is read if the statistic is lost with it. The row of a rank correlation, which has no weights, is zero.
    """
    columns: dict[Place, np.ndarray] = {}
    for study in dict.fromkeys(one.study for one in criteria):
        mine = [(row, one) for row, one in enumerate(criteria) if one.study == study]
        names = dict.fromkeys(name for _, one in mine for name in metrics_of(one))
        zeros = {(study, point, name): 0.0 for point in points[study] for name in names}
        runs = table({study: points[study]}, zeros, seeds=1, criteria=[one for _, one in mine])
        for place in zeros:
            here = (runs["point"] == place[1]) & (runs["metric"] == place[2])
            for row, one in mine:
                correlation = one.statistic.rank_correlation is not None
                if place[2] not in metrics_of(one):
                    continue
                if correlation or np.isnan(statistic_of(one, runs.assign(value=runs["value"].mask(here)))):
                    column = columns.setdefault(place, np.zeros(len(criteria)))
                    if not correlation:
                        column[row] = statistic_of(one, runs.assign(value=runs["value"].mask(here, 1.0)))
    return list(columns), np.column_stack(list(columns.values()))


def statistic_of(criterion: Criterion, runs: pd.DataFrame) -> float:
    """Return a criterion's statistic over the seeds of a table."""
    reading = read_criterion(criterion, runs)
    assert reading.absent is None, reading.absent
    return float(sum(group.mean() for group in reading.groups))


def values_for(
    matrix: np.ndarray,
    wanted: Sequence[float],
    near: Sequence[float],
    bounds: Sequence[tuple[float, float]] | None = None,
) -> np.ndarray | None:
    """Return metric values [P], within bounds and near to some, whose statistics are those wanted; None without any.

    ``matrix`` [C, P] are the weights, ``wanted`` [C], ``near`` and ``bounds`` [P].
    """
    start = np.asarray(near, dtype=float)
    missing = np.asarray(wanted, dtype=float) - matrix @ start
    low, high = np.array(bounds).T - start if bounds is not None else (-np.inf, np.inf)
    # The second block keeps what the equations leave open near its start.
    weak = 1e-4
    system = np.vstack([matrix, weak * np.eye(len(start))])
    found = lsq_linear(system, np.append(missing, np.zeros(len(start))), (low, high), tol=1e-14)
    if np.abs(matrix @ found.x - missing).max(initial=0.0) > 1e-4:
        return None
    return start + found.x
