"""Audits as text for people and as JSON for programs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import Any

from dmdpipe.audit.inspection import Kind
from dmdpipe.audit.verify import Audit

MOST_SHOWN = 2
MIB = 2**20


def audit_text(audit: Audit) -> str:
    """Return one line for each problem and cause, the notes, and the summary."""
    lines = [*problem_lines(audit), *(f"accepted: {note}" for note in audit.notes)]
    return "\n".join([*lines, *summary_lines(audit)])


def problem_lines(audit: Audit) -> list[str]:
    """Return one line for each kind and cause of problem, with the places where it is found."""
    causes: dict[tuple[Kind, str], list[str]] = defaultdict(list)
    for problem in audit.problems:
        causes[problem.kind, problem.what].append(problem.where)
    lines = []
    for (kind, what), places in causes.items():
        more = f" and {len(places) - MOST_SHOWN} more" if len(places) > MOST_SHOWN else ""
        lines.append(f"{kind}: {', '.join(places[:MOST_SHOWN])}{more}: {what}")
    return lines


def summary_lines(audit: Audit) -> list[str]:
    """Return how much was checked, what was found, and the digest of each study."""
    count = len(audit.problems)
    said = "no problems" if count == 0 else "1 problem" if count == 1 else f"{count} problems"
    lines = [f"{audit.results}: {audit.steps} steps, {audit.size / MIB:.1f} MiB of payload verified: {said}"]
    for root in audit.roots:
        lines.append(f"  {root.study} ({root.scale}): result root {root.result}")
        lines.append(f"  {' ' * len(f'{root.study} ({root.scale})')}  provenance  {root.provenance}")
    return lines


def audit_json(audit: Audit) -> dict[str, Any]:
    """Return the whole audit as plain JSON types."""
    return {
        "results": str(audit.results),
        "steps": audit.steps,
        "bytes": audit.size,
        "problems": [asdict(problem) for problem in audit.problems],
        "accepted": list(audit.notes),
        "roots": [asdict(root) for root in audit.roots],
    }
