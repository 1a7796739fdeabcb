"""Audits as text for people and as JSON for programs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from html import escape
from typing import Any

from dmdpipe.audit.differences import few
from dmdpipe.audit.inspection import Kind
from dmdpipe.audit.verify import Audit, Note

MOST_SHOWN = 2
MIB = 2**20
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Audit ({scale})</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }}
td, th {{ text-align: left; padding: .2em 1em .2em 0; vertical-align: top }} code {{ word-break: break-all }}</style>
</head><body>
<h1>Can these results be trusted? ({scale} scale)</h1>
<p>What <code>dmdpipe audit verify</code> said when this run ended. It hashed {steps} steps with {size:.1f} MiB, walked
every chain of parents, and compared each step with the configuration and the code. Do it again before you rely on it:
this page is not part of what it vouches for. How to read it: docs/audit.md.</p>
<h2>Problems</h2><ul>{said}</ul>
<h2>Changes that somebody accepted, since they alter nothing</h2><ul>{accepted}</ul>
<h2>Digests</h2>
<table><tr><th>study, verdicts or page</th><th>against the published digest</th><th>result root</th></tr>{rows}</table>
</body></html>
"""


def printable(text: str) -> str:
    """Return text without what a file may have smuggled into it to steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def audit_text(audit: Audit) -> str:
    """Return one line for each problem and cause, the notes, and the summary."""
    lines = [*problem_lines(audit), *(f"accepted: {line}" for line in note_lines(audit)), *audit.gaps]
    return "\n".join([*lines, *summary_lines(audit)])


def problem_lines(audit: Audit) -> list[str]:
    """Return one line for each kind and cause of problem, with the places where it is found."""
    causes: dict[tuple[Kind, str], list[str]] = defaultdict(list)
    for problem in audit.problems:
        causes[problem.kind, problem.what].append(problem.where)
    return [f"{kind}: {some(places)}: {what}" for (kind, what), places in causes.items()]


def note_lines(audit: Audit) -> list[str]:
    """Return one line for each thing that somebody said of changes, with the places that it is about."""
    notes: dict[str, list[Note]] = defaultdict(list)
    for note in audit.notes:
        notes[note.said].append(note)
    lines = []
    for said, about in notes.items():
        changes = dict.fromkeys(change for note in about for change in note.changes)
        lines.append(f"{some([note.where for note in about])}: {few(list(changes))}: {said}")
    return lines


def some(places: list[str]) -> str:
    """Return the first places on one line, and how many more there are."""
    more = f" and {len(places) - MOST_SHOWN} more" if len(places) > MOST_SHOWN else ""
    return f"{', '.join(places[:MOST_SHOWN])}{more}"


def summary_lines(audit: Audit, scale: str | None = None) -> list[str]:
    """Return how much was checked, what was found, and the digest of each study (at one scale, if given)."""
    count = len(audit.problems)
    said = "no problems" if count == 0 else "1 problem" if count == 1 else f"{count} problems"
    lines = [f"{audit.results}: {audit.steps} steps, {audit.size / MIB:.1f} MiB of payload verified: {said}"]
    roots = [root for root in audit.roots if scale in (None, root.scale)]
    for root in roots:
        if root.stage == "evidence":
            lines.append(f"  {root.name} ({root.scale}): {root.published}")
            lines.append(f"      result root {root.result}")
            lines.append(f"      provenance root {root.provenance}")
    # Verdicts and pages mostly share one answer.
    answers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for root in roots:
        if root.stage != "evidence":
            answers[root.scale, root.published].append(root.name)
    lines += [f"  {', '.join(names)} ({scale}): {said}" for (scale, said), names in answers.items()]
    return lines


def audit_json(audit: Audit) -> dict[str, Any]:
    """Return the whole audit as plain JSON types."""
    return {
        "results": str(audit.results),
        "steps": audit.steps,
        "bytes": audit.size,
        "problems": [asdict(problem) for problem in audit.problems],
        "accepted": [asdict(note) for note in audit.notes],
        "gaps": list(audit.gaps),
        "roots": [asdict(root) for root in audit.roots],
    }


def audit_page(audit: Audit, scale: str) -> str:
    """Return the audit of a scale's results as a page of HTML that needs nothing else."""
    rows = "".join(
        f"<tr><td>{escape(root.name)}</td><td>{escape(root.published)}</td><td><code>{root.result}</code></td></tr>"
        for root in audit.roots
        if root.scale == scale
    )
    said = "".join(f"<li>{escape(line)}</li>" for line in problem_lines(audit)) or "<li>no problems</li>"
    accepted = "".join(f"<li>{escape(line)}</li>" for line in note_lines(audit)) or "<li>none</li>"
    return PAGE.format(
        scale=escape(scale), rows=rows, said=said, accepted=accepted, steps=audit.steps, size=audit.size / MIB
    )
