"""What differs, by name: between two specs, two states of the code, two environments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dmdpipe.artifacts.checked import one_line
from dmdpipe.artifacts.environment import Environment

ABSENT = "(absent)"
LONGEST_VALUE = 60
Modules = Mapping[str, Mapping[str, str]]


def spec_differences(old: Any, new: Any) -> list[str]:
    """Return every leaf in which two specs (plain JSON types) differ, such as ``seed: 0 → 1``."""
    before, after = dict(leaves(old)), dict(leaves(new))
    keys = [*before, *(key for key in after if key not in before)]
    return [
        f"{key}: {_shown(before.get(key, ABSENT))} → {_shown(after.get(key, ABSENT))}"
        for key in keys
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    ]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every number, text, bool, null and empty container in plain JSON types, with its dotted path."""
    if isinstance(value, dict | list | tuple) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def code_differences(old: Modules, new: Modules) -> list[str]:
    """Return every definition that differs: ``code: distill/dmd.py::dm_gradient changed`` (or added, removed).

    Args:
        old, new: digests of definitions by module (``dmdpipe.artifacts.code.Code.modules``). A module that one of
            them has not at all is named as a whole: the step now reaches it, or reaches it no more.
    """
    found = []
    for module in sorted({*old, *new}):
        path = module.removeprefix("dmdpipe.").replace(".", "/")
        if module not in old or module not in new:
            found.append(f"code: {path}.py {'is now used' if module in new else 'is no longer used'}")
            continue
        before, after = old[module], new[module]
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                what = "added" if name not in before else "removed" if name not in after else "changed"
                found.append(f"code: {path}.py::{name} {what}")
    return found


def environment_differences(old: Environment, new: Environment, but: tuple[str, ...] = ()) -> list[str]:
    """Return every field of the environment class in which two differ: ``libraries.torch: 2.11.0 → 2.13.0``.

    Args:
        old, new: what a step ran in, and what it would run in.
        but: fields to leave out.
    """
    return spec_differences(old.model_dump(exclude=set(but)), new.model_dump(exclude=set(but)))


def few(differences: list[str], most: int = 3) -> str:
    """Return the first differences on one line, and how many more there are."""
    more = f" (and {len(differences) - most} more)" if len(differences) > most else ""
    return "; ".join(differences[:most]) + more


def _shown(value: Any) -> str:
    text = one_line(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
