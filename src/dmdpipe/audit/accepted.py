"""The log of accepted changes: who said of which step, and why, that a change cannot alter its result.

What changed is the code that makes the step, or parents that were made again and came out with the same bytes. That
they did is not for a person to say: digests of the results are compared when a change is accepted, and at every use.

``audit/accepted.jsonl`` below the root of the results holds one entry a line. Each entry carries the SHA-256 of the one
before it and of itself, so that none can be changed or taken out of the middle unnoticed. One that is cut off the end
accepts nothing any more: the step is stale again.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from pydantic import Field, TypeAdapter

from dmdpipe.artifacts.atomic import write_atomically
from dmdpipe.artifacts.checked import Digest, Record, RelativePath, Sha256, inside, one_line, parse_json, read_bytes
from dmdpipe.artifacts.disk import failures_told
from dmdpipe.artifacts.environment import user_name
from dmdpipe.artifacts.manifest import FILE_NAME, Manifest, read_manifest, sealed
from dmdpipe.artifacts.stages import STAGES
from dmdpipe.audit.differences import code_differences, few
from dmdpipe.audit.tree import Artifact
from dmdpipe.errors import UserError
from dmdpipe.specs.base import canonical_json

LOG = Path("audit", "accepted.jsonl")
BEFORE_THE_FIRST = "0" * 64


class AcceptedParent(Record):
    """A parent that was made again with the same bytes, by other code or in another environment.

    Attributes:
        folder: of the parent.
        result_digest: what came out, both times.
        made_from: the parent's provenance digest in the step's manifest.
        accepted: the provenance digest that counts as the same for this step.
    """

    folder: RelativePath
    result_digest: Sha256
    made_from: Sha256
    accepted: Sha256


class Acceptance(Record):
    """One entry of the log.

    Attributes:
        step: the step's folder below the root of the results.
        made_by: the code digest in the step's manifest.
        accepted: the code digest that counts as the same for this step; ``made_by`` if this is about parents alone.
        changes: what differs between the two, by name.
        parents: those that were made again, by role; entries of older versions have none.
        reason: why all that cannot alter the result.
        who: user and host.
        when: UTC.
        previous: seal of the entry before.
        seal: SHA-256 of all this.
    """

    step: RelativePath
    made_by: Digest
    accepted: Digest
    changes: tuple[str, ...]
    parents: dict[str, AcceptedParent] = {}
    reason: str = Field(min_length=1)
    who: str
    when: str
    previous: Sha256
    seal: Sha256

    @property
    def differences(self) -> tuple[str, ...]:
        """All that is accepted, by name."""
        return (*self.changes, *dict.fromkeys(made_again(parent.folder) for parent in self.parents.values()))

    @property
    def said(self) -> str:
        """Who said when why."""
        return one_line(f"accepted by {self.who} on {self.when[:10]}: {self.reason}")


def made_again(folder: str) -> str:
    """Say of a parent in this folder that it was made again and came out the same; of all in a stage alike."""
    return f"parent in {folder.partition('/')[0]} made again, with the same bytes"


_ENTRY = TypeAdapter(Acceptance)


@dataclass(frozen=True)
class Acceptances:
    """All entries of a log, in order."""

    entries: tuple[Acceptance, ...] = ()

    @cached_property
    def _of_step(self) -> dict[str, list[Acceptance]]:
        """The entries of each step, the latest first."""
        found: dict[str, list[Acceptance]] = defaultdict(list)
        for entry in reversed(self.entries):
            found[entry.step].append(entry)
        return dict(found)

    def find(self, step: str, made_by: str, code: str) -> Acceptance | None:
        """Return the latest entry by which ``code`` counts as the code that made this step, or None."""
        of_step = self._of_step.get(step, [])
        return next((entry for entry in of_step if (entry.made_by, entry.accepted) == (made_by, code)), None)

    def find_parent(self, step: str, manifest: Manifest, role: str, now: Manifest) -> Acceptance | None:
        """Return the latest entry by which a parent that is there counts as the one that a step was made from.

        None if there is none, and if other bytes came out of the two, whatever the log says.

        Args:
            step: the step's folder.
            manifest: of the step.
            role: of the parent; the step must have been made from one.
            now: the manifest of the parent that is there.
        """
        pair = _the_same(manifest, role, now)
        of_step = self._of_step.get(step, []) if pair else []
        return next((entry for entry in of_step if entry.parents.get(role) == pair), None)


@dataclass(frozen=True)
class Outcome:
    """What an attempt to accept came to.

    Attributes:
        entries: those that were written into the logs.
        refused: for each step that must be made again, whatever anybody says, which of its parents have other bytes.
    """

    entries: tuple[Acceptance, ...]
    refused: dict[str, str]


def is_made_again(manifest: Manifest, role: str, now: Manifest) -> bool:
    """Whether the parent that is there has the bytes of the one that a step was made from, but another provenance."""
    has_same_result = manifest.result.parents[role].result_digest == now.result.result_digest
    return has_same_result and manifest.provenance.parents.get(role) != now.provenance.provenance_digest


def _the_same(manifest: Manifest, role: str, now: Manifest) -> AcceptedParent | None:
    """Return what an entry must say of a parent that was made again with the same bytes; None if it can say nothing."""
    made_from = manifest.provenance.parents.get(role)
    if made_from is None or not is_made_again(manifest, role, now):
        return None
    return AcceptedParent(
        folder=manifest.result.parents[role].folder,
        result_digest=now.result.result_digest,
        made_from=made_from,
        accepted=now.provenance.provenance_digest,
    )


def read_acceptances(results: Path) -> Acceptances:
    """Return the log of a tree of results, its chain checked.

    Raises:
        UserError: naming the first line that is no entry, was changed, or does not follow the one before.
    """
    path = inside(results, str(LOG))
    if not os.path.lexists(path):
        return Acceptances()
    entries: list[Acceptance] = []
    previous = BEFORE_THE_FIRST
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        where = f"{path} line {number}"
        entry = parse_json(_ENTRY, line, where)
        written = entry.model_dump(mode="json", exclude_unset=True)
        if sealed(written, "seal") != written or entry.previous != previous:
            raise UserError(f"{where}: was changed, or lines before it were; restore the file from a copy")
        entries.append(entry)
        previous = entry.seal
    return Acceptances(tuple(entries))


def accept(artifacts: Iterable[Artifact], reason: str) -> Outcome:
    """Write into the log that these artifacts count as made by today's code, from the parents that are there.

    Artifacts of which both is so, or accepted already, need no entry. One that was made from a parent with other bytes
    than the one that is there is refused. A parent that is not there, or is damaged, is passed over.

    Raises:
        UserError: if the reason is empty, or the log is damaged; nothing is written then.
    """
    if not reason.strip():
        raise UserError("--reason: is empty; say why the change cannot alter the result")
    by_tree: dict[Path, list[Artifact]] = {}
    for artifact in artifacts:
        by_tree.setdefault(artifact.results, []).append(artifact)
    new: list[Acceptance] = []
    refused: dict[str, str] = {}
    for results, of_tree in by_tree.items():
        path = inside(results, str(LOG))
        with failures_told(path), _alone(path.parent):
            outcome = _judge({artifact.folder: artifact.manifest for artifact in of_tree}, results, reason)
            if outcome.entries:
                old = read_bytes(path) if path.exists() else b""
                lines = "".join(f"{canonical_json(entry)}\n" for entry in outcome.entries)
                write_atomically(path, old + lines.encode())
        new += outcome.entries
        refused |= outcome.refused
    return Outcome(tuple(new), refused)


def alike(artifacts: Iterable[Artifact]) -> list[list[Artifact]]:
    """Return those artifacts whose change of code is not accepted yet, grouped by stage and by what changed.

    One of each group, made again, is a test of the change for all of it.

    Raises:
        UserError: if a log is damaged.
    """
    found = {(artifact.results, artifact.folder): artifact for artifact in artifacts}
    groups: dict[tuple[object, ...], list[Artifact]] = defaultdict(list)
    for results in {root: None for root, _ in found}:
        of_tree = {folder: artifact.manifest for (root, folder), artifact in found.items() if root == results}
        for entry in _judge(of_tree, results, "not said yet").entries:
            if entry.changes:
                stage = of_tree[entry.step].result.stage
                groups[results, stage, entry.changes].append(found[results, entry.step])
    return list(groups.values())


def _judge(steps: Mapping[str, Manifest], results: Path, reason: str) -> Outcome:
    """Return the entries that the log of one tree needs for steps, their manifests by folder, and what is refused."""
    known = read_acceptances(results)
    previous = known.entries[-1].seal if known.entries else BEFORE_THE_FIRST
    there: dict[str, Manifest | None] = dict(steps)
    new: list[Acceptance] = []
    refused: dict[str, str] = {}
    for folder, manifest in steps.items():
        parents = {}
        others = []
        for role, recorded in manifest.result.parents.items():
            if recorded.folder not in there:
                there[recorded.folder] = _manifest_at(results, recorded.folder)
            now = there[recorded.folder]
            if now is None:
                continue
            if now.result.result_digest != recorded.result_digest:
                others.append(f"{recorded.folder} has other bytes than it was made from")
            elif not known.find_parent(folder, manifest, role, now) and (pair := _the_same(manifest, role, now)):
                parents[role] = pair.model_dump()
        if others:
            refused[folder] = few(others)
            continue
        stage = STAGES[manifest.result.stage]
        code = stage.code(stage.parse(manifest.result.spec))
        made_by = manifest.provenance.code
        is_code_known = made_by == code.digest or bool(known.find(folder, made_by, code.digest))
        if is_code_known and not parents:
            continue
        entry = {
            "step": folder,
            "made_by": made_by,
            "accepted": made_by if is_code_known else code.digest,
            "changes": [] if is_code_known else code_differences(manifest.provenance.modules, code.modules),
            "parents": parents,
            "reason": " ".join(reason.split()),
            "who": f"{user_name()}@{socket.gethostname()}",
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "previous": previous,
        }
        new.append(Acceptance.model_validate(sealed(entry, "seal")))
        previous = new[-1].seal
    return Outcome(tuple(new), refused)


def _manifest_at(results: Path, folder: str) -> Manifest | None:
    with suppress(UserError):
        return read_manifest(inside(results, folder) / FILE_NAME)
    return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until nobody else writes the log in this folder, which is made if need be."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder}: is no folder; move it away, the log of accepted changes belongs into it")
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
