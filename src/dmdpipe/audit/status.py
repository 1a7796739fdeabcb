"""Which planned steps have what they should have on disk, and which must run, for which named reason.

Manifests decide, and nothing else: neither times of files nor Snakemake's own records. So results can be copied, moved
and touched, and are adopted wherever they lie.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from dmdpipe.artifacts.manifest import Manifest
from dmdpipe.artifacts.plan import PlannedStep
from dmdpipe.audit.accepted import Acceptances, is_made_again
from dmdpipe.audit.differences import code_differences, spec_differences
from dmdpipe.audit.inspection import Inspection, Kind, inspect_steps

# Names the file with the steps that a run wants made, for the rules.
PLAN = "DMDPIPE_PLAN"


class State(StrEnum):
    """What a planned step has on disk."""

    current = "current"
    absent = "absent"
    damaged = "damaged"
    stale = "stale"


@dataclass(frozen=True)
class Status:
    """What a planned step has on disk.

    Attributes:
        step: the planned step.
        state: what it has.
        reasons: why it must run, by name; empty if it is current.
        kind: the kind of problem that a stale step has.
        manifest: what was found, if it can be trusted.
    """

    step: PlannedStep
    state: State
    reasons: tuple[str, ...] = ()
    kind: Kind | None = None
    manifest: Manifest | None = None

    @property
    def cause(self) -> str:
        """The first reason, without the steps through which it came down."""
        return self.reasons[0].rpartition(" runs again: ")[2]


def assess(
    steps: Iterable[PlannedStep],
    results: Path,
    acceptances: Acceptances,
    inspections: Mapping[str, Inspection] | None = None,
) -> dict[str, Status]:
    """Return the status of every planned step by folder.

    A step is current if its folder is whole, was made from its spec by its code (or by code that is accepted as the
    same), and from its parents as they are there now (or from parents with the same bytes, if that is accepted), each
    of which is whole and would not run for another spec or code.

    Args:
        steps: planned steps, parents before their children.
        results: the root of the results.
        acceptances: changes that alter nothing.
        inspections: of these steps' folders, if already made.
    """
    planned = list(steps)
    found = inspect_steps(results, [step.folder for step in planned]) if inspections is None else inspections
    statuses: dict[str, Status] = {}
    for step in planned:
        statuses[step.folder] = _status(step, found[step.folder], statuses, acceptances)
    return statuses


def _status(
    step: PlannedStep, inspection: Inspection, statuses: Mapping[str, Status], acceptances: Acceptances
) -> Status:
    manifest = inspection.manifest
    if manifest is None or not inspection.is_whole:
        problems = [problem for problem in inspection.problems if problem.kind is not Kind.orphan]
        if manifest is None and all(problem.kind is Kind.missing for problem in problems):
            return Status(step, State.absent, ("has not been made",))
        return Status(step, State.damaged, tuple(f"{problem.where}: {problem.what}" for problem in problems))
    if manifest.result.digest != step.digest:
        differences = spec_differences(manifest.result.spec, step.spec.model_dump(mode="json"))
        return Status(step, State.stale, tuple(differences), Kind.stale_config, manifest)
    if not is_current_code(step, manifest, acceptances):
        changes = code_differences(manifest.provenance.modules, step.code.modules)
        return Status(step, State.stale, tuple(changes), Kind.stale_code, manifest)
    reasons = [
        reason
        for role, parent in step.parents.items()
        if (reason := _parent_reason(step, role, statuses[parent.folder], manifest, acceptances))
    ]
    if reasons or manifest.result.parents.keys() != step.parents.keys():
        return Status(step, State.stale, tuple(reasons or ["its parents are others"]), Kind.stale_parent, manifest)
    return Status(step, State.current, manifest=manifest)


def is_current_code(step: PlannedStep, manifest: Manifest, acceptances: Acceptances) -> bool:
    """Whether today's code made this manifest, or is accepted as if it had."""
    made_by = manifest.provenance.code
    return made_by == step.code_digest or bool(acceptances.find(step.folder, made_by, step.code_digest))


def _parent_reason(
    step: PlannedStep, role: str, parent: Status, manifest: Manifest, acceptances: Acceptances
) -> str | None:
    """Why a parent makes its child run, or None.

    A parent that is absent or damaged does not: made again in the same environment it is the same to the byte. If it
    is not, the child is found stale afterwards.
    """
    folder = parent.step.folder
    name = f"its {role} {folder}" if role != folder else folder
    if parent.state is State.stale:
        return f"{name} runs again: {parent.cause}"
    if parent.state is State.current:
        assert parent.manifest is not None
        recorded = manifest.result.parents.get(role)
        if recorded is None or recorded.folder != folder:
            return f"its {role} was {recorded.folder if recorded else 'none'}, and is now {folder}"
        if recorded.result_digest != parent.manifest.result.result_digest:
            return f"{name} has other content than it was made from"
        if is_made_again(manifest, role, parent.manifest):
            entry = acceptances.find_parent(step.folder, manifest, role, parent.manifest)
            return None if entry else f"{name} was made again since, with the same bytes, by other code or elsewhere"
    return None


def steps_to_run() -> set[str] | None:
    """Return the manifests of the steps that this run wants made, for the rules; None outside of ``dmdpipe run``."""
    path = os.environ.get(PLAN)
    return set(json.loads(Path(path).read_text())["reasons"]) if path else None
