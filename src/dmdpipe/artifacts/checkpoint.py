"""Checkpoints: where a killed training goes on. Written atomically; a damaged one counts as none."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmdpipe.artifacts.atomic import write_atomically
from dmdpipe.artifacts.checked import read_bytes
from dmdpipe.artifacts.disk import failures_told
from dmdpipe.artifacts.tensors import decode_about, decode_tensors, encode_tensors
from dmdpipe.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILE_NAME = "checkpoint.safetensors"
LARGEST_CHECKPOINT = 2**33  # bytes


def save_checkpoint(folder: Path, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """Put a checkpoint into ``folder`` (made if need be) in place of the one there.

    Args:
        folder: a step's ``resume`` folder.
        tensors: arrays by name.
        meta: plain JSON types; keys are text.

    Raises:
        UserError: if the disk is full or may not be written to; the checkpoint that was there stays.
    """
    about = {"meta": dict(meta), "sha256": _fingerprint(tensors)}
    data = encode_tensors(tensors, about)
    with failures_told(folder / FILE_NAME):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE_NAME, data)


def load_checkpoint(
    folder: Path, largest: int = LARGEST_CHECKPOINT
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
    """Return the tensors and the meta of the folder's checkpoint, or None if there is none or it is damaged.

    A damaged checkpoint is deleted, with a line on stderr.

    Args:
        folder: a step's ``resume`` folder.
        largest: the most bytes that it may have.
    """
    path = folder / FILE_NAME
    if not os.path.lexists(path):
        return None
    try:
        data = read_bytes(path, largest)
        tensors, about = decode_tensors(data, str(path)), decode_about(data, str(path))
        if isinstance(about, dict) and about.get("sha256") == _fingerprint(tensors):
            meta = about.get("meta")
            if isinstance(meta, dict):
                return tensors, meta
        reason = f"{path}: its tensors are not those that were saved"
    except UserError as error:
        reason = str(error)
    discard_checkpoint(folder, reason)
    return None


def discard_checkpoint(folder: Path, reason: str) -> None:
    """Delete the folder's checkpoint, with a line on stderr that says why."""
    print(f"dmdpipe: {UserError(f'damaged checkpoint ignored, training starts over: {reason}')}", file=sys.stderr)
    path = folder / FILE_NAME
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _fingerprint(tensors: Mapping[str, NDArray[Any]]) -> str:
    """safetensors notices a short file, but not changed numbers."""
    return hashlib.sha256(encode_tensors(tensors)).hexdigest()
