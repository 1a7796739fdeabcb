"""Reading what may be wrong: paths that must stay inside a root, JSON that must fit a model."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from dmdpipe.errors import UserError
from dmdpipe.files import read_ordinary

T = TypeVar("T")
LONGEST_LINE = 300
LARGEST_RECORD = 2**26  # bytes of a manifest, a run.json or a log of accepted changes; far above any of ours


class Record(BaseModel):
    """Base of all that is written as JSON beside the payload: immutable and strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _is_inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/") or "\0" in path:
        raise ValueError("must be a relative path without '..'")
    return path


RelativePath = Annotated[str, AfterValidator(_is_inside)]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def inside(root: Path, relative: str) -> Path:
    """Return ``root/relative``.

    Raises:
        UserError: if that is not below ``root``: an absolute path, one with ``..``, or one through a link.
    """
    try:
        path = root / _is_inside(relative)
        if path.resolve().is_relative_to(root.resolve()):
            return path
    except (ValueError, RuntimeError):  # RuntimeError: links in a circle
        pass
    raise UserError(f"{root}: {one_line(relative)!r} leads outside this folder; put the file itself there")


def read_bytes(path: Path, largest: int = LARGEST_RECORD) -> bytes:
    """Return the content of an ordinary file of at most ``largest`` bytes.

    Raises:
        UserError: if it cannot be read, is larger, or is a link, a folder, a pipe or a device.
    """
    try:
        return read_ordinary(path, largest)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UserError(unreadable(path, error)) from None


def unreadable(path: Path, error: Exception) -> str:
    """Return one line about a file of an artifact that cannot be read."""
    reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
    return f"{path}: cannot be read ({reason}); run the step that makes it again"


def parse_json(adapter: TypeAdapter[T], text: bytes | str, where: str) -> T:
    """Return what a JSON text says, as the adapter's type.

    Raises:
        UserError: naming the first key at fault.
    """
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_input=False)
        key = ".".join(map(str, first["loc"]))
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(one_line(f"{where}: {key + ': ' if key else ''}{first['msg']}{more}")) from None


def one_line(text: object) -> str:
    """Return text fit for one line of a terminal, whatever a file smuggled into it."""
    line = "".join(letter if letter.isprintable() else " " for letter in str(text))
    return line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 1] + "…"


def json_text(value: Any) -> str:
    """Return JSON to be read by people too: sorted keys, one a line, the same text for equal values."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n"
