"""The whole DAG of a run: every step of every study, the verdicts over them, and the notebooks of the report."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dmdpipe.artifacts.plan import PlannedStep, plan
from dmdpipe.artifacts.stages import find_stage
from dmdpipe.errors import UserError
from dmdpipe.specs.claims import Claims, load_claims
from dmdpipe.specs.config import CONFIG_FOLDER, load_config, load_study, members_of, study_names
from dmdpipe.specs.grid import Member
from dmdpipe.specs.report import Axis, FigureSpec, Reader, StudentRef, StudyFigureSpec, StudyPage, VerdictsSpec
from dmdpipe.specs.study import CellRef, Config, EvidenceSpec, ScaleOverlay

REPORTS_FOLDER = Path("reports")
# Pages over all studies; every study has a page of its own beside them, from one notebook.
NOTEBOOKS = ("overview", "start_quality", "gate")
STUDY_NOTEBOOK = "study"


@dataclass(frozen=True)
class StudyPlan:
    """One study at one scale: its members, and the step that gathers them."""

    name: str
    members: list[Member]
    evidence: PlannedStep


@dataclass(frozen=True)
class RunPlan:
    """Everything that one configuration asks for; ``notebooks`` are the pages of the report, by name."""

    config: Config
    studies: dict[str, StudyPlan]
    verdicts: PlannedStep
    notebooks: dict[str, PlannedStep]

    @cached_property
    def steps(self) -> dict[str, PlannedStep]:
        """All steps by folder, every parent before its children; steps that studies share appear once."""
        found: dict[str, PlannedStep] = {}

        def visit(step: PlannedStep) -> None:
            if step.folder not in found:
                for parent in step.parents.values():
                    visit(parent)
                found[step.folder] = step

        for step in [self.verdicts, *self.notebooks.values()]:
            visit(step)
        return found

    def devices_of(self, step: PlannedStep) -> int:
        """Return how many processes share a step: as many as the configuration says, if it has shards for them."""
        return self.config.devices if find_stage(step.stage).shards(step.spec) > 1 else 1

    def step(self, folder: str) -> PlannedStep:
        """Return the step whose files lie in ``folder`` below the results.

        Raises:
            UserError: if this configuration has no such step.
        """
        if folder not in self.steps:
            raise UserError(f"{folder}: no step of the configured studies at scale '{self.config.scale}' is there")
        return self.steps[folder]


def steps_below(step: PlannedStep) -> Iterator[PlannedStep]:
    """Yield a step and all that it depends on, each once, parents first."""
    seen: set[str] = set()

    def visit(current: PlannedStep) -> Iterator[PlannedStep]:
        if current.folder not in seen:
            seen.add(current.folder)
            for parent in current.parents.values():
                yield from visit(parent)
            yield current

    yield from visit(step)


def plan_run(overrides: Mapping[str, Any] | None = None, folder: Path = CONFIG_FOLDER) -> RunPlan:
    """Read the configuration and return the plan of a run.

    Args:
        overrides: keys of ``config.yaml`` given on the command line.
        folder: the configuration folder.

    Raises:
        UserError: naming file and key, if anything in the configuration is wrong.
    """
    config = load_config(overrides, folder)
    studies = {name: plan_study(name, config.scale, folder) for name in config.studies}
    claims = load_claims(folder / "claims.yaml", study_names(folder))
    verdicts = PlannedStep(
        "verdicts",
        VerdictsSpec(scale=config.scale, studies=tuple(studies), claims=claims),
        {name: study.evidence for name, study in studies.items()},
    )
    pages = [plan_notebook(name, config.scale, verdicts) for name in NOTEBOOKS]
    pages += [plan_study_page(study, config.scale, claims, verdicts, folder) for study in studies.values()]
    run_plan = RunPlan(config, studies, verdicts, {step.spec.page: step for step in pages})
    if config.devices > 1:
        check_devices(run_plan, folder)
    return run_plan


def check_devices(run_plan: RunPlan, folder: Path) -> None:
    """Check that the processes that a run allows a training can share the shards of each that has some.

    Raises:
        UserError: if they can't, or no training has any.
    """
    devices = run_plan.config.devices
    place = f"{folder / 'config.yaml'} or --config: devices: {devices}"
    cut = [step for step in run_plan.steps.values() if find_stage(step.stage).shards(step.spec) > 1]
    if not cut:
        raise UserError(f"{place}: no training of this run has shards to share; leave it out, or set student.shards")
    for step in cut:
        shards = find_stage(step.stage).shards(step.spec)
        if shards % devices:
            raise UserError(f"{place} can't share the {shards} shards of {step.folder} equally; take a divisor of them")


def plan_study(name: str, scale: str, folder: Path = CONFIG_FOLDER) -> StudyPlan:
    """Return one study at one scale; its evidence step reads the metrics, pairs and maps of every member."""
    members = members_of(name, scale, folder)
    parents: dict[str, PlannedStep] = {}
    cells = []
    for member in members:
        metrics = plan("metrics", member.spec)
        pairs = metrics.parents["pairs"]
        parents |= {metrics.folder: metrics, pairs.folder: pairs}
        maps = plan("maps", member.maps) if member.maps else None
        if maps:
            parents[maps.folder] = maps
        folders = {"metrics": metrics.folder, "pairs": pairs.folder, "maps": maps.folder if maps else None}
        cells.append(CellRef(**member.labels(), **folders))
    evidence = PlannedStep("evidence", EvidenceSpec(study=name, scale=scale, cells=tuple(cells)), parents)
    return StudyPlan(name, members, evidence)


def plan_notebook(name: str, scale: str, verdicts: PlannedStep) -> PlannedStep:
    """Return the step that runs one notebook of the report on the verdicts step's tables."""
    spec = FigureSpec(notebook=name, scale=scale, source_sha256=_source_digest(name))
    return PlannedStep("figures", spec, {"verdicts": verdicts})


def plan_study_page(
    study: StudyPlan, scale: str, claims: Claims, verdicts: PlannedStep, folder: Path = CONFIG_FOLDER
) -> PlannedStep:
    """Return the step that runs the notebook which all studies share for one of them.

    It reads the verdicts step's tables and the histories of the study's students.
    """
    students = {
        (member.point, member.seed): plan("metrics", member.spec).parents["pairs"].parents["student"]
        for member in study.members
    }
    refs = [StudentRef(point=point, seed=seed, student=step.folder) for (point, seed), step in students.items()]
    spec = StudyFigureSpec(
        notebook=STUDY_NOTEBOOK,
        scale=scale,
        source_sha256=_source_digest(STUDY_NOTEBOOK),
        study=study_page(study.name, scale, claims, folder).model_copy(update={"students": tuple(refs)}),
    )
    return PlannedStep("figures", spec, {"verdicts": verdicts, **{step.folder: step for step in students.values()}})


def study_page(name: str, scale: str, claims: Claims, folder: Path = CONFIG_FOLDER) -> StudyPage:
    """Return what a study's page says before any result: its words, its grid at a scale, who reads it; no students."""
    study = load_study(name, folder)
    kept = study.scales.get(scale, ScaleOverlay()).axes
    return StudyPage(
        name=name,
        number=study.number,
        title=study.title,
        question=study.question,
        prediction=study.prediction,
        changes_mind=study.changes_mind,
        axes=tuple(Axis(name=axis, labels=tuple(kept.get(axis, labels))) for axis, labels in study.axes.items()),
        readers=tuple(
            Reader(claim=claim.id, title=claim.title, criterion=criterion)
            for claim in claims.claims
            for criterion in claim.criteria
            if criterion.study == name
        ),
        students=(),
    )


def _source_digest(notebook: str) -> str:
    source = REPORTS_FOLDER / f"{notebook}.ipynb"
    try:
        return hashlib.sha256(source.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); the report needs it") from None
