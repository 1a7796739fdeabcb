"""Whether a verdict hangs on a choice: the same tables, judged with one choice at a time made otherwise.

Four choices are varied, each with everything else as declared:

- *gate*: a run counts up to another multiple of the floor, or whatever its distribution (``none``).
- *metric*: where a criterion is about ρ, another metric stands in, on ρ's scale from 0, a copy, to 1, independent: ΔE
  (a reconstruction) as it is, retrieval@1 and the cosine as 1 minus them. The threshold stays. So it is for a
  difference to other points, a slope, a rank correlation, and for ρ − rho_floor, since all four read 0 where nothing
  but the sampler's error parts two maps. A criterion that holds ρ against another quantity of its kind keeps ρ.
- *read-out*: a snapshot before or after the declared one, counted for each student in its own snapshots.
- *recipe*: another recipe of the study in place of the selected ones, where it has students that the criterion needs.

The levels and the number of claims stay as they are. None of this is a verdict: thresholds were set for the declared
choices, and the best of twenty readings is no test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from dmdpipe.copying.gate import GATE
from dmdpipe.evidence.readings import Reading, read_criterion
from dmdpipe.evidence.verdicts import FAMILYWISE_ERROR, evaluate_claims, judge_claim
from dmdpipe.specs.claims import Claims, Criterion

GATES = (1.5, 2.0, 3.0, np.inf)
SNAPSHOTS = 3  # on either side of the declared read-out
STUDENT = ["study", "point", "seed"]
STAND_INS: dict[str, Callable[[pd.Series], pd.Series]] = {
    "rho": lambda value: value,
    "delta_e": lambda value: value,
    "retrieval_at_1": lambda value: 1 - value,
    "cosine": lambda value: 1 - value,
}
"""What stands in for ρ, and how it is brought to ρ's scale."""

COLUMNS = ["id", "title", "declared", "choice", "option", "as_declared", "criteria", "verdict", "change"]


class _Option(NamedTuple):
    """One way to make a choice: how a criterion is read then, None where the option does not touch it."""

    choice: str
    name: str
    read: Callable[[Criterion], Reading | None]
    is_declared: Callable[[Criterion], bool]


def sensitivity_table(claims: Claims, results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per tested claim, choice and option.

    Columns: ``id``, ``title``, ``declared`` (the official verdict), ``choice`` (gate, metric, read-out, recipe),
    ``option``, ``as_declared`` (whether it is the declared one), ``criteria`` (how many of the claim's criteria it
    touches; the others are read as declared), ``verdict`` (with this option) and ``change``: empty if the verdict is
    the declared one, *reversed* between supported and refuted, *lost* where it becomes inconclusive, *gained* where it
    was. An option that touches none of a claim's criteria has no row.

    ``results`` is as ``evaluate_claims`` takes it.

    Raises:
        ValueError: as ``evaluate_claims``.
    """
    official = {verdict.id: verdict.verdict for verdict in evaluate_claims(claims, results)}
    metrics = STAND_INS.keys() | claims.metrics
    runs = results[(results["seed"] >= 0) & results["metric"].isin(metrics)]
    alpha = FAMILYWISE_ERROR / max(len(claims.tested), 1)
    options = [*_gates(runs), *_metrics(runs), *_read_outs(runs), *_recipes(runs)]
    rows = []
    for claim in claims.tested:
        declared = {one.name: read_criterion(one, runs) for one in claim.criteria}
        for option in options:
            read = {one.name: option.read(one) for one in claim.criteria}
            otherwise = {name: reading for name, reading in read.items() if reading is not None}
            if not otherwise:
                continue
            verdict = judge_claim(claim, list((declared | otherwise).values()), alpha).verdict
            as_declared = all(option.is_declared(one) for one in claim.criteria if one.name in otherwise)
            about = (claim.id, claim.title, official[claim.id], option.choice, option.name)
            rows.append((*about, as_declared, len(otherwise), verdict, _change(official[claim.id], verdict)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _about(criterion: Criterion) -> str:
    statistic = criterion.statistic
    given = statistic.value or statistic.difference or statistic.slope or statistic.rank_correlation
    assert given is not None
    return given.metric


def _change(declared: str, verdict: str) -> str:
    if verdict == declared:
        return ""
    if verdict == "inconclusive":
        return "lost"
    return "gained" if declared == "inconclusive" else "reversed"


def _gates(runs: pd.DataFrame) -> Iterator[_Option]:
    for gate in GATES:
        converged = pd.Series(True, runs.index) if np.isinf(gate) else runs["gate_ratio"] <= gate
        name = "none" if np.isinf(gate) else f"{gate:g}"
        yield _option("gate", name, runs.assign(converged=converged), gate == GATE)


def _option(choice: str, name: str, runs: pd.DataFrame, is_declared: bool) -> _Option:
    """Return the option to read other runs, in every criterion that finds students there."""

    def read(criterion: Criterion) -> Reading | None:
        reading = read_criterion(criterion, runs)
        return reading if reading.absent or reading.groups else None

    return _Option(choice, name, read, lambda criterion: is_declared)


def _metrics(runs: pd.DataFrame) -> Iterator[_Option]:
    for name, on_rhos_scale in STAND_INS.items():
        stand_in = runs[runs["metric"] == name]
        if len(stand_in):
            renamed = stand_in.assign(metric="rho", value=on_rhos_scale(stand_in["value"]))
            others = runs[runs["metric"] != "rho"]
            option = _option("metric", name, pd.concat([others, renamed], ignore_index=True), name == "rho")
            yield option._replace(read=_only_where_about_rho(option.read))


def _only_where_about_rho(read: Callable[[Criterion], Reading | None]) -> Callable[[Criterion], Reading | None]:
    return lambda criterion: read(criterion) if _is_about_rho(criterion) else None


def _is_about_rho(criterion: Criterion) -> bool:
    difference = criterion.statistic.difference
    against = difference.minus_metric if difference else None
    return _about(criterion) == "rho" and against in (None, "rho_floor")


def _read_outs(runs: pd.DataFrame) -> Iterator[_Option]:
    snapshots = runs.drop_duplicates([*STUDENT, "generator_step"]).sort_values([*STUDENT, "generator_step"])
    snapshots = snapshots[[*STUDENT, "generator_step", "readout"]].astype({"readout": bool})
    position = snapshots.groupby(STUDENT).cumcount()
    declared = position.where(snapshots["readout"]).groupby([snapshots[name] for name in STUDENT]).transform("max")
    for away in range(-SNAPSHOTS, SNAPSHOTS + 1):
        here = snapshots.loc[position - declared == away, [*STUDENT, "generator_step"]]
        if len(here):
            moved = runs.drop(columns="readout").merge(here.assign(readout=True), how="left")
            yield _option("read-out", _words(away), moved.assign(readout=moved["readout"].eq(True)), away == 0)


def _words(away: int) -> str:
    if away == 0:
        return "the read-out"
    return f"{abs(away)} snapshot{'s' if abs(away) > 1 else ''} {'earlier' if away < 0 else 'later'}"


def _recipes(runs: pd.DataFrame) -> Iterator[_Option]:
    for recipe in sorted(runs["recipe"].unique()):
        yield _Option("recipe", recipe, _with_recipe(runs, recipe), _selects(recipe))


def _with_recipe(runs: pd.DataFrame, recipe: str) -> Callable[[Criterion], Reading | None]:
    def read(criterion: Criterion) -> Reading | None:
        difference = criterion.statistic.difference
        # Where recipes are compared, one recipe would be compared with itself.
        compares = difference is not None and difference.minus is not None and difference.minus.recipe
        if compares or runs.loc[runs["study"] == criterion.study, "recipe"].nunique() < 2:
            return None
        select = criterion.select.model_copy(update={"recipe": (recipe,)})
        reading = read_criterion(criterion.model_copy(update={"select": select}), runs)
        return None if reading.absent else reading

    return read


def _selects(recipe: str) -> Callable[[Criterion], bool]:
    return lambda criterion: criterion.select.recipe == (recipe,)
