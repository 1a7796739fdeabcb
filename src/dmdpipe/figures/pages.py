"""A study's page: its words, made from what the study declares and from what came out, and its figures.

Every study gets its page from ``reports/study.ipynb`` and from this module. A figure that only some studies have is a
row of ``FIGURES``, drawn wherever a study's table has what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from IPython.display import HTML, Markdown, display

from dmdpipe.figures import cost, curves, drift, grids, mechanism, readout, report, starts, tables
from dmdpipe.figures.verdicts import badge, measured, number
from dmdpipe.specs.report import Reader, StudyPage

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd


@dataclass(frozen=True)
class StudyFigure:
    """A figure that some studies have.

    Attributes:
        title, reading: its heading, and how to read it.
        draw: as ``report.show`` takes it.
        by: a figure for each combination of values of these columns.
        varies: leave out those in which this column has one value.
        metrics: what a study's table must have for it.
        differs: the metric of these that must not be the same for all points, if one is named.
        when: what else must be true of a study's table, if anything.
    """

    title: str
    reading: str
    draw: Callable[..., Any]
    by: tuple[str, ...] = ("study",)
    varies: str | None = None
    metrics: tuple[str, ...] = ("rho",)
    differs: str | None = None
    when: Callable[[pd.DataFrame], bool] | None = None


FIGURES = (
    StudyFigure(
        "Against the dimension",
        "Left: ρ. Middle and right: ΔE (a reconstruction) and retrieval@1 with their dimension-matched null, dotted:"
        " what they read for a fixed weak correlation of teacher and student (0.05 per coordinate). Both drift with the"
        " dimension at equal copying, so they are never read without it. The start changes with the dimension too.",
        curves.rho_against_dimension,
        by=("study", "family"),
        varies="d",
    ),
    StudyFigure(
        "Which map does a student end at?",
        "Circles: ρ to the teacher T. Diamonds: ρ to the rotated teacher T∘Q. A student that starts at T∘Q and ends"
        " there kept the pairing that it started with; one that ends at T was pulled towards it.",
        starts.initialisation_controls,
        varies="init",
        metrics=("rho", "rho_rotated"),
    ),
    StudyFigure(
        "Which map does the student approach?",
        "Distances, as ρ, from every map that the student could be on its way to; the nearest one names the"
        " mechanism. T, or T∘Q where the student was put there first: the pairing is inherited from the start. The"
        " particle flow Φ∘S₀, the samples of the start moved by the loss alone with no network in between: the loss"
        " made it. Optimal transport: what least movement would give. The best affine map: only linear structure is"
        " copied. S₀: nothing has moved. Maps lie near each other: where T is almost linear, or almost the"
        " transport map, only the order of the curves tells. A map that is missing is not available: the particles"
        " did not reach the teacher's distribution. Below: how far the student's Jacobians are from symmetric,"
        " dashed the teacher's; those of the transport map and of every exact denoiser are, a rotation's are not.",
        mechanism.maps_over_time,
        metrics=("rho_transport", "jacobian_asymmetry"),
    ),
    StudyFigure(
        "What does copying cost or buy?",
        "Across: the cost of a sample, in calls of the teacher's network. A curve joins"
        " students of one start and one network that differ in their number of steps. Copying, step by step: ρ between"
        " the student and the teacher that is sampled in the same steps, with the same fresh noise between them; for"
        " one step this is the usual ρ. Dotted: what that noise alone does to ρ. Where it is near 1, the first noise"
        " has hardly a say in the sample, whatever the student does. Novelty: distance to the nearest independent"
        " teacher sample, over that of a fresh teacher sample; dotted: the same to the training data. Below 1: nearer"
        " than fresh samples are. Novelty that falls with the cost at a distribution within the gate would say that"
        " cheap students pay with copies.",
        cost.copying_against_cost,
        metrics=("inference_cost", "gate_ratio", "rho_resampled", "novelty_teacher", "novelty_data"),
        differs="inference_cost",
    ),
    StudyFigure(
        "How fast does the pairing drift, and what sets the speed?",
        "The speed is the least-squares slope of ρ over the snapshots of a student from which on it is within the gate;"
        " a student with fewer than three of them has none. Marks: means over seeds with their 95 % intervals; dots:"
        " single seeds. At 0 nothing drifts. Above each panel the exponent p of speed ∝ xᵖ, with its interval over"
        " seeds; not determined, if a seed's speed is not positive. Learning rate: 1 if a flow drives the drift, 2 if"
        " it is a random walk. ρ ends near 1, so a student that is nearly there drifts slower whatever is varied.",
        drift.drift_speeds,
        when=drift.varies_training,
    ),
)


WITHIN_CLASSES = ("rho_within_class", "rho_same_class")
"""Drawn beside ρ wherever a study's table has them."""


def declared(study: Mapping[str, Any]) -> StudyPage:
    """Return what the study declares, from the notebook's parameter."""
    return StudyPage.model_validate(study)


def introduce(page: StudyPage, results: pd.DataFrame, scale: str) -> None:
    """Display title, question, prediction and what the study varies."""
    grid = "; ".join(f"{axis.name}: {', '.join(axis.labels)}" for axis in page.axes) or "nothing: it is one point"
    lines = [
        f"# {page.title}",
        f"**Question.** {page.question}",
        f"**Prediction.** {page.prediction}",
        f"**What varies** (study `{page.name}`, number {page.number}). {grid}.",
    ]
    if _of_several_steps(results):
        lines.append(
            "**Mind ρ.** Some students here take several steps, with fresh noise between them that leaves the first"
            " noise little to say: their ρ is no measure of copying. `rho_resampled` is, beside `rho_resampling`, what"
            " that noise alone does to ρ."
        )
    if WITHIN_CLASSES[0] in set(results["metric"]):
        lines.append(
            "**Mind ρ.** Here teacher and student may be asked for the same class, so that ρ is below 1 already where"
            " they share nothing else: it then reads `rho_same_class`. Copying is read from `rho_within_class`, where"
            " mismatched partners are of the same class, too."
        )
    display(Markdown("\n\n".join(lines)))
    report.scale_note(results, scale)


def _of_several_steps(results: pd.DataFrame) -> bool:
    rows = results[results["metric"] == "rho_resampling"]
    return bool((rows["value"] > 0).any())


def draw(page: StudyPage, results: pd.DataFrame, output: Path | str) -> None:
    """Display the figure that every study has."""
    thresholds = [
        (reader.criterion.statistic.value.metric, reader.criterion.threshold, reader.claim)
        for reader in page.readers
        if reader.criterion.statistic.value
    ]
    named = tables.parts(results, ["study"])
    metrics = (*metrics_read(page), *WITHIN_CLASSES)
    report.show(readout.read_out, named, output, metrics=metrics, thresholds=thresholds)


def metrics_read(page: StudyPage) -> Iterator[str]:
    """Yield the metrics that the criteria read in this study."""
    for reader in page.readers:
        statistic = reader.criterion.statistic
        for part in (statistic.value, statistic.difference, statistic.slope, statistic.rank_correlation):
            if part is not None:
                yield part.metric
        if statistic.difference and statistic.difference.minus_metric:
            yield statistic.difference.minus_metric
        if statistic.rank_correlation:
            yield statistic.rank_correlation.against.metric


def read(page: StudyPage, results: pd.DataFrame, verdicts: pd.DataFrame, criteria: pd.DataFrame) -> None:
    """Display what came out: a sentence per criterion that reads the study, and the numbers of every point."""
    known = verdicts.set_index("id")["verdict"]
    lines = []
    for reader, row in _judged(page, criteria):
        verdict = escape(str(known.get(reader.claim, "not judged")))
        about = f"<b>{escape(reader.claim)} {escape(reader.title)}</b> ({verdict})"
        lines.append(
            f"<li>{about}: {badge(row['outcome'])} {escape(reader.criterion.name)}. {escape(sentence(row))}</li>"
        )
    if not page.readers:
        report.say("No claim reads this study. What it shows is measured beside the claims and decides none.")
    display(HTML(f"<ul>{''.join(lines)}</ul>" if lines else ""))
    display(HTML(point_table(results)))


def change_minds(page: StudyPage, criteria: pd.DataFrame) -> None:
    """Display what would change what was read: as the study declares it, and by each criterion's margin and power."""
    if page.changes_mind:
        report.say(page.changes_mind)
    lines = [
        f"<li><b>{escape(reader.claim)}</b>, {escape(reader.criterion.name)}: {escape(turning_point(row))}"
        '<br><span style="color:#6B6B6B;font-size:.9em">'
        f"Why this threshold: {escape(reader.criterion.because)}</span></li>"
        for reader, row in _judged(page, criteria)
    ]
    if lines:
        display(HTML(f"<ul>{''.join(lines)}</ul>"))
    elif not page.changes_mind:
        report.say("The prediction above says what would count against it.")


def draw_more(results: pd.DataFrame, output: Path | str) -> None:
    """Display the figures of ``FIGURES`` that this study has."""
    for figure in FIGURES:
        named = list(tables.parts(results, figure.by, varies=figure.varies))
        if named and is_shown(figure, results):
            display(Markdown(f"## {figure.title}\n\n{figure.reading}"))
            report.show(figure.draw, named, output)


def is_shown(figure: StudyFigure, results: pd.DataFrame) -> bool:
    """Whether a study's results have what a figure shows."""
    if not set(figure.metrics) <= set(results["metric"]):
        return False
    if figure.when is not None and not figure.when(results):
        return False
    return figure.differs is None or tables.at_readout(results, figure.differs)["value"].nunique() > 1


def draw_pairs(gallery: pd.DataFrame, results: pd.DataFrame, output: Path | str) -> None:
    """Display the same noise through teacher and student, a figure per data set and σ_max."""
    named = tables.parts(gallery, ["study", "data", "sigma_max"])
    report.show(grids.paired_grid, named, output, results=results)


def sentence(row: Mapping[Any, Any]) -> str:
    """Return what was found on one criterion, in words: its number, bounds, side, seeds, and what they could see."""
    reason = str(row["reason"])
    return f"{reason[:1].upper()}{reason[1:]}."


def turning_point(row: Mapping[Any, Any]) -> str:
    """Return what would turn one criterion's outcome, from its margin and its power.

    Args:
        row: outcome, predicts, threshold, value, low, high (the bounds that decide), n_seeds, spread, detectable and
            seeds_needed, as in ``criteria.parquet``.
    """
    threshold, n = float(row["threshold"]), row["n_seeds"]
    if row["outcome"] == "undecided":
        if row.get("cause") == "statistic undefined":
            return "open: its number is not defined for every seed."
        if not _finite(row["detectable"]):
            return f"open: it takes at least three seeds that count, and there are {n:.0f}."
        could = f"{n:.0f} seeds see a difference of {number(row['detectable'])} from the threshold {number(threshold)}"
        if _finite(row["seeds_needed"]):
            return f"open: {could}; one like the measured one takes {row['seeds_needed']:.0f} fresh seeds."
        return f"open: {could}; one like the measured one takes more than 10,000."
    lies_below = (row["predicts"] == "below") == (row["outcome"] == "holds")
    bound, other = (row["high"], "above") if lies_below else (row["low"], "below")
    gap = abs(float(bound) - threshold)
    return (
        f"a run on fresh seeds whose mean lies {other} {number(threshold)}. Now it is {number(row['value'])}; the bound"
        f" that decides, {number(bound)}, leaves a margin of {number(gap)}, or {_in_spreads(gap, row['spread'])}."
    )


def _in_spreads(gap: float, spread: Any) -> str:
    if not _finite(spread) or float(spread) == 0.0:
        return "more than seeds differ"
    return f"{number(gap / float(spread))} times the SD over seeds"


def point_table(results: pd.DataFrame) -> str:
    """Return an HTML table of every point at its read-out: ρ over all seeds, its levels, and how many passed.

    Where students are asked for classes, also ρ within the class.
    """
    within = WITHIN_CLASSES[0] if WITHIN_CLASSES[0] in set(results["metric"]) else None
    shown = tables.at_readout(results, "rho", "rho_floor", "rho_affine", *([within] if within else []))
    means, seeds = tables.over_seeds(shown), tables.per_seed(shown)
    cell = "padding:.25em .7em;text-align:left;border-bottom:1px solid #ddd"
    more = ("ρ within the class",) if within else ()
    rows: list[tuple[str, ...]] = [
        ("Point", "ρ [95 % over all seeds]", *more, "floor", "affine map", "seeds within the gate")
    ]
    for point in dict.fromkeys(results["point"]):
        of_point = means[means["point"] == point].set_index("metric")
        runs = seeds[(seeds["point"] == point) & (seeds["metric"] == "rho")]
        rho = of_point.loc["rho"]
        levels = (number(of_point["value"].get(name)) for name in ("rho_floor", "rho_affine"))
        gate = f"{int(runs['converged'].sum())} of {len(runs)}"
        own = [of_point.loc[within]] if within in of_point.index else []
        classes = [measured(row["value"], row["low"], row["high"]) for row in own] or (["–"] if within else [])
        rows.append((point, measured(rho["value"], rho["low"], rho["high"]), *classes, *levels, gate))
    body = "".join(
        "<tr>" + "".join(f'<{tag} style="{cell}">{escape(str(word))}</{tag}>' for word in row) + "</tr>"
        for tag, row in zip(["th", *["td"] * (len(rows) - 1)], rows, strict=True)
    )
    return f'<table style="border-collapse:collapse;font-size:.9em">{body}</table>'


def _judged(page: StudyPage, criteria: pd.DataFrame) -> Iterator[tuple[Reader, Mapping[Any, Any]]]:
    by_name = {(row["id"], row["criterion"]): row for row in criteria.to_dict("records")}
    for reader in page.readers:
        if row := by_name.get((reader.claim, reader.criterion.name)):
            yield reader, row


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(float(value))
