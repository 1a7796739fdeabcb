"""Is a step's folder what its manifest says? Nothing is loaded: files are hashed as they stream by."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from dmdpipe.artifacts.checked import inside, one_line, read_bytes
from dmdpipe.artifacts.manifest import FILE_NAME, RUN_FILE_NAME, SCHEMA_VERSION, Manifest, PayloadFile, read_manifest
from dmdpipe.errors import UserError
from dmdpipe.files import open_ordinary


class Kind(StrEnum):
    """The kinds of problem that an audit can find."""

    tampered = "tampered"
    missing = "missing"
    truncated = "truncated"
    orphan = "orphan"
    cycle = "cycle"
    unknown_schema = "unknown schema"
    stale_config = "stale config"
    stale_code = "stale code"
    stale_parent = "stale parent"
    foreign_environment = "foreign environment"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes:
        kind: which kind.
        where: a step's folder or a file, below the root of the results.
        what: what is wrong and what to do, for people.
    """

    kind: Kind
    where: str
    what: str


@dataclass(frozen=True)
class Inspection:
    """What a step's folder holds.

    Attributes:
        folder: below the root of the results.
        manifest: None if there is none that can be trusted.
        problems: what is wrong with the manifest, the payload, or the rest of the folder.
        size: bytes of payload that are what the manifest says.
    """

    folder: str
    manifest: Manifest | None
    problems: tuple[Problem, ...]
    size: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether manifest and payload can be trusted; files that do not belong here take nothing from that."""
        return self.manifest is not None and all(problem.kind is Kind.orphan for problem in self.problems)


def inspect_steps(
    results: Path, folders: Iterable[str], progress: Callable[[int, int], None] | None = None
) -> dict[str, Inspection]:
    """Return the inspection of every folder below the root of the results, on all cores.

    Args:
        results: the root of the results.
        folders: of steps.
        progress: is told how many folders are done, and how many there are.
    """
    names = list(folders)
    found = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, inspection in zip(names, pool.map(lambda folder: inspect_step(results, folder), names), strict=True):
            found[name] = inspection
            if progress:
                progress(len(found), len(names))
    return found


def inspect_step(results: Path, folder: str) -> Inspection:
    """Return what is wrong with one step's folder. It need not be there."""
    try:
        path = inside(results, folder)
    except UserError as error:
        return Inspection(folder, None, (Problem(Kind.tampered, folder, str(error)),))
    manifest_file = f"{folder}/{FILE_NAME}"
    if not path.is_dir() or not os.path.lexists(path / FILE_NAME):
        return Inspection(folder, None, (Problem(Kind.missing, manifest_file, "is not there; ./run makes it again"),))
    try:
        manifest = read_manifest(path / FILE_NAME)
    except UserError as error:
        kind, what = _manifest_problem(path / FILE_NAME, str(error))
        return Inspection(folder, None, (Problem(kind, manifest_file, what),))
    problems = []
    size = 0
    for name, described in sorted(manifest.result.payload.items()):
        if problem := file_problem(path / name, described):
            problems.append(Problem(problem[0], f"{folder}/{name}", problem[1]))
        else:
            size += described.size
    expected = {*manifest.result.payload, FILE_NAME, RUN_FILE_NAME}
    for name in sorted(os.listdir(path)):
        if name not in expected:
            what = "no manifest lists it; delete it"
            problems.append(Problem(Kind.orphan, f"{folder}/{one_line(name)}", what))
    return Inspection(folder, manifest, tuple(problems), size)


def file_problem(path: Path, described: PayloadFile) -> tuple[Kind, str] | None:
    """Return what is wrong with one payload file, or None. Only a regular file is opened, and no link followed."""
    try:
        with open_ordinary(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != described.size:
                kind = Kind.truncated if size < described.size else Kind.tampered
                return kind, f"has {size} bytes, its manifest says {described.size}; ./run makes it again"
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return Kind.missing, "is not there; ./run makes it again"
    except OSError as error:
        return Kind.tampered, f"cannot be read as a file ({error.strerror}); ./run makes it again"
    if found != described.sha256:
        return Kind.tampered, "was changed after it was made (its SHA-256 is not the manifest's); ./run makes it again"
    return None


def _manifest_problem(path: Path, said: str) -> tuple[Kind, str]:
    """Tell a manifest of another version of dmdpipe from one that was damaged."""
    said = said.removeprefix(f"{path}: ")
    try:
        version = json.loads(read_bytes(path))["schema_version"]
    except (UserError, ValueError, KeyError, TypeError, RecursionError):
        return Kind.tampered, said
    if isinstance(version, int) and version != SCHEMA_VERSION:
        return Kind.unknown_schema, (
            f"has schema version {version}, this dmdpipe reads {SCHEMA_VERSION}; read it with the dmdpipe that made"
            " it, or run again"
        )
    return Kind.tampered, said
