"""Tensors as safetensors: the same bytes for the same arrays, and files that can only hold numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from dmdpipe.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# One key only: safetensors writes several in an order that changes from process to process.
METADATA_KEY = "dmdpipe"


def encode_tensors(tensors: Mapping[str, NDArray[Any]], about: Any = None) -> bytes:
    """Return the bytes of a safetensors file: arrays by name and, in its header, ``about`` (plain JSON)."""
    # safetensors takes the memory behind an array to be in C order; asarray keeps arrays of no dimension.
    in_order = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    return safetensors.numpy.save(in_order, {METADATA_KEY: json.dumps(about, sort_keys=True)})


def decode_tensors(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of a safetensors file by name, writable.

    Raises:
        UserError: if the bytes are no such file, whatever its header claims, or hold a type that NumPy lacks.
    """
    try:
        return safetensors.numpy.load(data)
    except KeyError as error:
        raise UserError(f"{where}: holds tensors of type {error}, which NumPy lacks; run its step again") from None
    except (safetensors.SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: is no valid safetensors file ({reason}); run its step again") from None


def decode_about(data: bytes, where: str) -> Any:
    """Return what the header of a safetensors file of ours says about it; None if it says nothing.

    Raises:
        UserError: as ``decode_tensors``, or if the header's text is not JSON.
    """
    decode_tensors(data, where)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    try:
        return json.loads((header.get("__metadata__") or {}).get(METADATA_KEY, "null"))
    except (ValueError, RecursionError):
        raise UserError(f"{where}: its header's '{METADATA_KEY}' is not JSON; run its step again") from None
