"""The log of accepted code changes: who said of which step, and why, that a change cannot alter its result.

``audit/accepted.jsonl`` below the root of the results holds one entry a line. Each entry carries the SHA-256 of the one
before it and of itself, so that none can be changed or taken out of the middle unnoticed. One that is cut off the end
accepts nothing any more: the step is stale again.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, TypeAdapter

from dmdpipe.artifacts.atomic import write_atomically
from dmdpipe.artifacts.checked import Digest, Record, RelativePath, Sha256, inside, parse_json, read_bytes
from dmdpipe.artifacts.disk import failures_told
from dmdpipe.artifacts.environment import user_name
from dmdpipe.artifacts.manifest import sealed
from dmdpipe.artifacts.stages import STAGES
from dmdpipe.audit.differences import code_differences
from dmdpipe.audit.tree import Artifact
from dmdpipe.errors import UserError
from dmdpipe.specs.base import canonical_json

LOG = Path("audit", "accepted.jsonl")
BEFORE_THE_FIRST = "0" * 64


class Acceptance(Record):
    """One entry of the log.

    Attributes:
        step: the step's folder below the root of the results.
        made_by: the code digest in the step's manifest.
        accepted: the code digest that counts as the same for this step.
        changes: what differs between the two, by name.
        reason: why that cannot alter the result.
        who: user and host.
        when: UTC.
        previous: seal of the entry before.
        seal: SHA-256 of all this.
    """

    step: RelativePath
    made_by: Digest
    accepted: Digest
    changes: tuple[str, ...]
    reason: str = Field(min_length=1)
    who: str
    when: str
    previous: Sha256
    seal: Sha256


_ENTRY = TypeAdapter(Acceptance)


@dataclass(frozen=True)
class Acceptances:
    """All entries of a log, in order."""

    entries: tuple[Acceptance, ...] = ()

    def find(self, step: str, made_by: str, code: str) -> Acceptance | None:
        """Return the latest entry by which ``code`` counts as the code that made this step, or None."""
        for entry in reversed(self.entries):
            if (entry.step, entry.made_by, entry.accepted) == (step, made_by, code):
                return entry
        return None


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
        written = entry.model_dump(mode="json")
        if sealed(written, "seal") != written or entry.previous != previous:
            raise UserError(f"{where}: was changed, or lines before it were; restore the file from a copy")
        entries.append(entry)
        previous = entry.seal
    return Acceptances(tuple(entries))


def accept(artifacts: Iterable[Artifact], reason: str) -> list[Acceptance]:
    """Write into the log that today's code counts as the code that made these artifacts; return the new entries.

    Artifacts that today's code made, or for which it is accepted already, need no entry.

    Raises:
        UserError: if the reason is empty, or the log is damaged; nothing is written then.
    """
    if not reason.strip():
        raise UserError("--reason: is empty; say why the change cannot alter the result")
    by_tree: dict[Path, list[Artifact]] = {}
    for artifact in artifacts:
        by_tree.setdefault(artifact.results, []).append(artifact)
    new: list[Acceptance] = []
    for results, of_tree in by_tree.items():
        path = inside(results, str(LOG))
        with failures_told(path), _alone(path.parent):
            entries = _new_entries(of_tree, read_acceptances(results), reason)
            if entries:
                old = read_bytes(path) if path.exists() else b""
                write_atomically(path, old + "".join(f"{canonical_json(entry)}\n" for entry in entries).encode())
        new += entries
    return new


def _new_entries(artifacts: Iterable[Artifact], known: Acceptances, reason: str) -> list[Acceptance]:
    new: list[Acceptance] = []
    previous = known.entries[-1].seal if known.entries else BEFORE_THE_FIRST
    for artifact in artifacts:
        stage = STAGES[artifact.manifest.result.stage]
        code = stage.code(stage.parse(artifact.manifest.result.spec))
        made_by = artifact.manifest.provenance.code
        if made_by == code.digest or Acceptances((*known.entries, *new)).find(artifact.folder, made_by, code.digest):
            continue
        entry = {
            "step": artifact.folder,
            "made_by": made_by,
            "accepted": code.digest,
            "changes": code_differences(artifact.manifest.provenance.modules, code.modules),
            "reason": " ".join(reason.split()),
            "who": f"{user_name()}@{socket.gethostname()}",
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "previous": previous,
        }
        new.append(Acceptance.model_validate(sealed(entry, "seal")))
        previous = new[-1].seal
    return new


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
