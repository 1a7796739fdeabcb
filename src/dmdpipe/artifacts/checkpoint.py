"""Checkpoints: where a killed training goes on. Written atomically; a damaged one counts as none."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmdpipe.artifacts.atomic import write_atomically
from dmdpipe.artifacts.tensors import decode_about, decode_tensors, encode_tensors
from dmdpipe.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILE_NAME = "checkpoint.safetensors"


def save_checkpoint(folder: Path, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """Put a checkpoint into ``folder`` (made if need be) in place of the one there.

    Args:
        folder: a step's ``resume`` folder.
        tensors: arrays by name.
        meta: plain JSON types; keys are text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {"meta": dict(meta), "sha256": _fingerprint(tensors)}
    write_atomically(folder / FILE_NAME, encode_tensors(tensors, about))


def load_checkpoint(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
    """Return the tensors and the meta of the folder's checkpoint, or None if there is none or it is damaged.

    A damaged checkpoint is deleted, with a line on stderr.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    data = path.read_bytes()
    try:
        tensors, about = decode_tensors(data, str(path)), decode_about(data, str(path))
        if isinstance(about, dict) and about.get("sha256") == _fingerprint(tensors):
            return tensors, about["meta"]
        reason = f"{path}: its tensors are not those that were saved"
    except UserError as error:
        reason = str(error)
    print(f"dmdpipe: damaged checkpoint ignored, training starts over: {reason}", file=sys.stderr)
    path.unlink()
    return None


def _fingerprint(tensors: Mapping[str, NDArray[Any]]) -> str:
    """safetensors notices a short file, but not changed numbers."""
    return hashlib.sha256(encode_tensors(tensors)).hexdigest()
