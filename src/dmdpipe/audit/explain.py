"""The lineage of one artifact: what it was made from, and why each step of it would run again now, or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any

from dmdpipe.artifacts.dag import steps_below
from dmdpipe.artifacts.manifest import Manifest
from dmdpipe.artifacts.plan import PlannedStep
from dmdpipe.audit.accepted import Acceptances, made_again, read_acceptances
from dmdpipe.audit.differences import few, leaves, spec_differences
from dmdpipe.audit.inspection import Inspection, inspect_steps
from dmdpipe.audit.status import assess
from dmdpipe.audit.tree import Artifact, step_folders
from dmdpipe.audit.verify import lineage, nearest_planned, todays_steps
from dmdpipe.audit.words import printable
from dmdpipe.specs.config import CONFIG_FOLDER

MOST_PARAMETERS = 8
LONGEST = 40
WIDTH = 116
MOST_PARENTS = 6


@dataclass(frozen=True)
class Explanation:
    """One step of a lineage.

    Attributes:
        folder: below the root of the results.
        stage: which kind of step; empty if its manifest cannot be read.
        would_run: why it would run again now, by name; empty if it would not.
        accepted: the acceptances by which changes of its code and its parents do not count, if there are any.
        parameters: of its spec, those that are its own and not its parents', by dotted key.
        seeds: every seed, by dotted key.
        result_digest, code: of its manifest.
        environment: its environment class in one line.
        run: what run.json says: when, where, how long, which commit.
        parents: the same of every parent, by role.
    """

    folder: str
    stage: str = ""
    would_run: tuple[str, ...] = ()
    accepted: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    result_digest: str = ""
    code: str = ""
    environment: str = ""
    run: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, Explanation] = field(default_factory=dict)


def explain_artifact(artifact: Artifact, config: Path = CONFIG_FOLDER) -> Explanation:
    """Return the lineage of an artifact, compared with today's configuration and code.

    Raises:
        UserError: if the configuration is wrong, or the log of accepted changes is damaged.
    """
    results = artifact.results
    planned = todays_steps(results, step_folders(results), config)
    inspections = inspect_steps(results, lineage(results, [artifact.folder]))
    acceptances = read_acceptances(results)
    needed: dict[str, PlannedStep] = {}
    for folder in inspections:
        if folder in planned:
            needed |= {step.folder: step for step in steps_below(planned[folder])}
    statuses = assess(needed.values(), results, acceptances)
    known: dict[str, Explanation] = {}

    def explain(folder: str, below: tuple[str, ...]) -> Explanation:
        if folder in below:
            return Explanation(folder, would_run=("is made from itself",))
        if folder not in known:
            known[folder] = explain_step(folder, (*below, folder))
        return known[folder]

    def explain_step(folder: str, path: tuple[str, ...]) -> Explanation:
        inspection = inspections[folder]
        manifest = inspection.manifest
        if manifest is None:
            return Explanation(folder, would_run=tuple(f"{p.where}: {p.what}" for p in inspection.problems))
        step = planned.get(folder)
        made_by = manifest.provenance.code
        parents = manifest.result.parents
        return Explanation(
            folder=folder,
            stage=manifest.result.stage,
            would_run=statuses[folder].reasons if step else _why_unwanted(manifest, planned.values()),
            accepted=_accepted(folder, manifest, step, inspections, acceptances),
            parameters=own_parameters(manifest, [inspections[parent.folder] for parent in parents.values()]),
            seeds=manifest.result.seeds,
            result_digest=manifest.result.result_digest,
            code=made_by,
            environment=manifest.provenance.environment.name,
            run=Artifact(results, folder, manifest).run_facts(),
            parents={role: explain(parent.folder, path) for role, parent in parents.items()},
        )

    return explain(artifact.folder, ())


def _accepted(
    folder: str,
    manifest: Manifest,
    step: PlannedStep | None,
    inspections: Mapping[str, Inspection],
    acceptances: Acceptances,
) -> str:
    """Return what is accepted of a step's code and of its parents, by whom and why; nothing if nothing needs to be."""
    found: dict[str, dict[str, None]] = {}
    if step and (entry := acceptances.find(folder, manifest.provenance.code, step.code_digest)):
        found[entry.said] = dict.fromkeys(entry.changes)
    for role, parent in manifest.result.parents.items():
        above = inspections[parent.folder].manifest
        if above and (entry := acceptances.find_parent(folder, manifest, role, above)):
            found.setdefault(entry.said, {})[made_again(parent.folder)] = None
    return "; ".join(f"{few(list(changes))}: {said}" for said, changes in found.items())


def own_parameters(manifest: Manifest, parents: list[Inspection]) -> dict[str, Any]:
    """Return the leaves of a step's spec that are its own, without the specs of its parents that it nests.

    A list of records, such as a study's cells or the claims, is summed up as its length.
    """
    nested = [parent.manifest.result.spec for parent in parents if parent.manifest]
    nested += [inner for spec in nested for inner in spec.values() if isinstance(inner, dict)]
    own = {key: _summed_up(value) for key, value in manifest.result.spec.items() if value not in nested}
    return dict(leaves(own)) if own else {}


def _summed_up(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _summed_up(item) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"({len(value)} entries)"
    return value


def _why_unwanted(manifest: Manifest, planned: Iterable[PlannedStep]) -> tuple[str, ...]:
    nearest = nearest_planned(manifest, planned)
    if nearest is None:
        return ("no study asks for it today",)
    differences = spec_differences(manifest.result.spec, nearest.spec.model_dump(mode="json"))
    return (f"no study asks for it today; instead {nearest.folder} would run", *differences)


def explanation_text(explanation: Explanation) -> str:
    """Return the lineage as a tree for a terminal. A step that stands in it twice is drawn once."""
    environments: dict[str, str] = {}
    lines = list(_lines(explanation, "", set(), environments))
    for environment, letter in environments.items():
        lines += wrap(printable(f"environment {letter}: {environment}"), WIDTH, subsequent_indent="    ")
    return "\n".join(lines)


def _lines(step: Explanation, role: str, drawn: set[str], environments: dict[str, str]) -> Iterator[str]:
    name = f"{role}: {step.folder}" if role not in ("", step.folder) else step.folder
    if step.folder in drawn:
        yield f"{printable(name)}  (see above)"
        return
    yield printable(name)
    drawn.add(step.folder)
    # Of hundreds of parents, those that would run again come first.
    parents = sorted(step.parents.items(), key=lambda item: not item[1].would_run)
    bar = "│ " if parents else "  "
    for fact in _facts(step, environments):
        yield from wrap(
            printable(fact), WIDTH, initial_indent=bar, subsequent_indent=f"{bar}    ", break_long_words=False
        )
    shown = parents[:MOST_PARENTS]
    for number, (parent_role, parent) in enumerate(shown):
        heads = ("└─ ", "   ") if number == len(parents) - 1 else ("├─ ", "│  ")
        for depth, line in enumerate(_lines(parent, parent_role, drawn, environments)):
            yield heads[min(depth, 1)] + line
    if rest := parents[MOST_PARENTS:]:
        would = sum(bool(parent.would_run) for _, parent in rest)
        yield f"└─ … and {len(rest)} more, {would or 'none'} of which would run again"


def _facts(step: Explanation, environments: dict[str, str]) -> Iterator[str]:
    if step.would_run:
        yield f"WOULD RUN AGAIN: {few(list(step.would_run))}"
    else:
        yield "would not run again" + (f": {step.accepted}" if step.accepted else "")
    if not step.stage:
        return
    if step.parameters:
        yield "spec: " + few([f"{key}={_short(value)}" for key, value in step.parameters.items()], MOST_PARAMETERS)
    if 0 < len(step.seeds) <= MOST_PARAMETERS:
        yield "seeds: " + ", ".join(f"{key}={seed}" for key, seed in step.seeds.items())
    if step.run:
        git = step.run.get("git")
        commit = f", commit {str(git.get('commit'))[:12]}" if isinstance(git, dict) else ""
        edits = " with edits" if isinstance(git, dict) and git.get("dirty") else ""
        who = f"by {step.run['user']} " if "user" in step.run else ""
        at = f"made {step.run.get('started')} {who}on {step.run.get('host')} in {step.run.get('seconds')} s"
        yield f"{at}{commit}{edits}{', resumed' if step.run.get('resumed') else ''}"
    letter = environments.setdefault(step.environment, chr(ord("A") + len(environments) % 26))
    yield f"result {step.result_digest[:16]}…, code {step.code}, environment {letter}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
