"""Manifests: what came out of which spec (``result``), made by which code and where (``provenance``).

Each part carries the SHA-256 of everything else in it, its parents' included, so one digest stands for
all that a result was made from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter

from dmdpipe.artifacts.checked import (
    Digest,
    FileName,
    Record,
    RelativePath,
    Sha256,
    inside,
    json_text,
    parse_json,
    read_bytes,
    unreadable,
)
from dmdpipe.artifacts.environment import Environment
from dmdpipe.errors import UserError
from dmdpipe.files import open_ordinary
from dmdpipe.specs.base import canonical_json, digest

FILE_NAME = "manifest.json"
RUN_FILE_NAME = "run.json"
SCHEMA_VERSION: Literal[2] = 2
LARGE = 2**26  # bytes; a payload file above is checked piece by piece before it may fill the memory


def _is_payload(name: str) -> str:
    if name in (FILE_NAME, RUN_FILE_NAME):
        raise ValueError("is never part of a payload")
    return name


PayloadName = Annotated[FileName, AfterValidator(_is_payload)]


class PayloadFile(Record):
    """A payload file's fingerprint."""

    sha256: Sha256
    size: int = Field(ge=0, description="bytes")


class ParentResult(Record):
    """Where a parent lies below the root of the results, and what came out of it."""

    folder: RelativePath
    result_digest: Sha256


class Result(Record):
    """What came out of which spec: comparable across versions of the code and machines."""

    stage: str
    spec: dict[str, Any]
    digest: Digest
    seeds: dict[str, int]
    payload: dict[PayloadName, PayloadFile]
    parents: dict[str, ParentResult]
    result_digest: Sha256


class Equality(Record):
    """What a run in another environment class can be held to; in the same class it is the same bytes.

    bitwise: the same bytes there too. tolerance: the same numbers up to rounding, given the same parents.
    statistical: the same distribution over seeds, because training amplifies rounding.
    """

    kind: Literal["bitwise", "tolerance", "statistical"]
    reason: str


class Provenance(Record):
    """Made by which code in which environment."""

    code: Digest
    modules: dict[str, dict[str, Digest]]
    environment_lock: str
    environment: Environment
    equality: Equality
    parents: dict[str, Sha256]
    provenance_digest: Sha256


class Manifest(Record):
    """A step's manifest.json; deterministic in one environment class."""

    schema_version: Literal[2] = SCHEMA_VERSION
    result: Result
    provenance: Provenance


_MANIFEST = TypeAdapter(Manifest)


def sealed(part: Mapping[str, Any], seal: str) -> dict[str, Any]:
    """Return ``part`` (plain JSON types) with the SHA-256 of its canonical JSON under the key ``seal``."""
    content = {key: value for key, value in part.items() if key != seal}
    return {**content, seal: hashlib.sha256(canonical_json(content).encode()).hexdigest()}


def read_manifest(path: Path) -> Manifest:
    """Return the manifest at ``path``, its own digests checked.

    Raises:
        UserError: if it is unreadable, no manifest of this schema, or was changed after it was written, be it by a
            space or by a key that stands twice.
    """
    text = read_bytes(path)
    manifest = parse_json(_MANIFEST, text, str(path))
    written = manifest.model_dump(mode="json")
    try:
        expected = {
            "result": sealed({**written["result"], "digest": _spec_digest(manifest)}, "result_digest"),
            "provenance": sealed(written["provenance"], "provenance_digest"),
        }
    except ValueError:  # a NaN, which JSON proper lacks
        expected = {}
    changed = [part for part in ("result", "provenance") if written[part] != expected.get(part)]
    if changed:
        raise UserError(f"{path}: {changed[0]} does not match its own digest; run this step again")
    if json_text(written).encode() != text:
        raise UserError(f"{path}: was changed after it was written; run this step again")
    return manifest


def _spec_digest(manifest: Manifest) -> str:
    return digest({"stage": manifest.result.stage, "spec": manifest.result.spec})


def payload_problem(folder: Path, name: str, file: PayloadFile) -> str | None:
    """Return what is wrong with one payload file, or None; read piece by piece, whatever its size."""
    path = folder / name
    try:
        with open_ordinary(inside(folder, name)) as stream:
            return _size_problem(path, file, stream) or _content_problem(path, file, stream)
    except UserError as error:
        return str(error)
    except (OSError, ValueError) as error:
        return unreadable(path, error)


def read_payload(folder: Path, name: str, file: PayloadFile) -> bytes:
    """Return the content of a payload file.

    Raises:
        UserError: if it is not the file that the manifest describes.
    """
    path = folder / name
    try:
        with open_ordinary(inside(folder, name)) as stream:
            problem = _size_problem(path, file, stream)
            if not problem and file.size > LARGE:
                problem = _content_problem(path, file, stream)
            if not problem:
                stream.seek(0)
                data = stream.read(file.size + 1)
                if len(data) == file.size and hashlib.sha256(data).hexdigest() == file.sha256:
                    return data
                problem = _changed(path)
    except (OSError, ValueError, MemoryError) as error:
        problem = unreadable(path, error)
    raise UserError(problem)


def _size_problem(path: Path, file: PayloadFile, stream: BufferedReader) -> str | None:
    size = os.fstat(stream.fileno()).st_size
    if size == file.size:
        return None
    return f"{path}: has {size} bytes, its manifest says {file.size}; run the step that makes it again"


def _content_problem(path: Path, file: PayloadFile, stream: BufferedReader) -> str | None:
    return _changed(path) if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256 else None


def _changed(path: Path) -> str:
    return (
        f"{path}: was changed after it was made (its SHA-256 is not the manifest's); run the step that makes it again"
    )


def verify_payload(folder: Path, manifest: Manifest) -> list[str]:
    """Return one line for each payload file that is missing or not what the manifest says."""
    problems = [payload_problem(folder, name, file) for name, file in sorted(manifest.result.payload.items())]
    return [problem for problem in problems if problem]


def seeds_in(spec: Any, path: str = "") -> dict[str, int]:
    """Return every ``seed`` in a spec's JSON by its dotted path, e.g. ``{"teacher.score.seed": 0}``."""
    found: dict[str, int] = {}
    items = spec.items() if isinstance(spec, dict) else enumerate(spec) if isinstance(spec, list) else ()
    for key, value in items:
        here = f"{path}.{key}" if path else str(key)
        found |= {here: value} if key == "seed" and isinstance(value, int) else seeds_in(value, here)
    return found
