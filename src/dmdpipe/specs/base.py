"""What every spec is: a frozen pydantic model that refuses unknown keys, with canonical JSON and a digest."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

DIGEST_LENGTH = 16


class Spec(BaseModel):
    """Base of all specs: immutable, hashable, strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def later(default: Any, *, description: str, **constraints: Any) -> Any:
    """Return a field that is left out of the JSON at its default: specs from before it was added keep their digests."""
    return Field(default, description=description, exclude_if=lambda value: value == default, **constraints)


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no spaces and plain types: equal values give equal text."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(
        _without_minus_zero(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def _without_minus_zero(value: Any) -> Any:
    """Return JSON types with −0.0 as 0.0: the two are equal, so their texts must be, too."""
    if isinstance(value, dict):
        return {key: _without_minus_zero(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_minus_zero(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:DIGEST_LENGTH]
