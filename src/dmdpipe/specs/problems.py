"""Turning a rejected file into one line that a user can act on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dmdpipe.errors import UserError, did_you_mean
from dmdpipe.files import read_ordinary

M = TypeVar("M", bound=BaseModel)
QUOTED = re.compile(r"'([^']*)'")


LARGEST_FILE = 2**18  # bytes; ours have some thousands
LARGEST_INTEGER = 2**63 - 1
PLAIN_TAGS = ("null", "bool", "int", "float", "str", "seq", "map", "timestamp")


class _Loader(yaml.SafeLoader):
    """Plain types only, and no key twice: YAML would keep the last one and say nothing.

    No aliases either: nine of them, each a list of nine times the one before, fill any memory.
    """

    yaml_constructors = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in PLAIN_TAGS
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                problem=f"the alias '*{event.anchor}' is not allowed; write out what it stands for",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key '{key.value}' stands twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = int(super().construct_yaml_int(node))
        if abs(value) > LARGEST_INTEGER:
            raise yaml.constructor.ConstructorError(problem="an integer is too large", problem_mark=node.start_mark)
        return value

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        text = str(super().construct_yaml_str(node))
        text.encode()  # half a character, as "\ud800", could neither be printed nor stored
        return text


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_yaml_str)


def read_yaml(path: Path) -> Any:
    """Return the contents of a YAML file: plain types, without aliases.

    Raises:
        UserError: if the file is missing, unreadable, large or not YAML, or has a key twice.
    """
    try:
        text = read_ordinary(path.resolve(), LARGEST_FILE).decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a YAML file there") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return deepcopy(_parsed(text, str(path)))


@cache
def _parsed(text: str, source: str) -> Any:
    """The same texts are asked for again and again while a run is planned, and parsing takes long."""
    return parse_yaml(text, source)


def parse_yaml(text: str, source: str) -> Any:
    """Return what a YAML text says: plain types, without aliases.

    Raises:
        UserError: naming the source and the line, if it is not YAML, or has a key twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        where = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{source}{where}: not valid YAML ({error.problem})") from None
    # All but the first: odd scalars and keys, very deep nesting.
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise UserError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from None


def parse(model: type[M], value: Any, source: str) -> M:
    """Validate ``value`` as ``model``.

    Raises:
        UserError: one line naming the source, the key, what is wrong and the nearest valid name.
    """
    if not isinstance(value, dict):
        raise UserError(f"{source}: expected a mapping of keys to values, got {type(value).__name__}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(model, error)}") from None


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """Return the first problem of a validation error as one line: key, what is wrong, the nearest valid name."""
    # A mistyped required key shows up twice: as missing and as unknown. The latter has the better hint.
    first = min(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    # Pydantic names the chosen member of a union in the location; it is no key of the file.
    keys = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        *parents, key = keys
        hint = did_you_mean(key, fields_at(model, parents))
        return f"unknown key '{'.'.join(_without_tags(model, parents) + [key])}'{hint}"
    message = first["msg"].removeprefix("Value error, ")
    context = first.get("ctx", {})
    given = context.get("tag", first.get("input"))
    shown = f", got {given!r}" if isinstance(given, str | int | float | bool) and first["type"] != "value_error" else ""
    place = ".".join(_without_tags(model, keys))
    if first["type"].startswith("union_tag"):
        place = ".".join(filter(None, [place, context["discriminator"].strip("'")]))
        known = QUOTED.findall(context.get("expected_tags", ""))
        return f"{place}: unknown value '{given}'{did_you_mean(given, known)}" if known else f"{place}: field required"
    if first["type"] == "literal_error" and isinstance(given, str):
        return f"{place}: unknown value '{given}'{did_you_mean(given, QUOTED.findall(context['expected']))}"
    return f"{place}: {message[0].lower() + message[1:]}{shown}" if place else message


def fields_at(model: type[BaseModel], keys: list[str]) -> list[str]:
    """Return the names of the fields that are allowed below a path of keys, across the members of a union."""
    models: list[type[BaseModel]] = [model]
    for key in keys:
        below = [
            m for outer in models if key in outer.model_fields for m in _models_in(outer.model_fields[key].annotation)
        ]
        tagged = [m for m in models if key in _tags(m)]
        models = below or tagged or models
    return sorted({name for m in models for name in m.model_fields})


def _without_tags(model: type[BaseModel], keys: list[str]) -> list[str]:
    kept = []
    models: list[type[BaseModel]] = [model]
    for key in keys:
        below = [
            m for outer in models if key in outer.model_fields for m in _models_in(outer.model_fields[key].annotation)
        ]
        is_field = any(key in m.model_fields for m in models)
        if is_field or not any(key in _tags(m) for m in models):
            kept.append(key)
        models = below or models
    return kept


def _tags(model: type[BaseModel]) -> set[Any]:
    return {model.model_fields[name].default for name in ("family", "kind") if name in model.model_fields}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
