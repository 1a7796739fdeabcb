"""Reading ``config/claims.yaml``."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dmdpipe.errors import UserError, did_you_mean
from dmdpipe.specs.claims import Claims


def load_claims(path: Path, studies: Collection[str]) -> Claims:
    """Return the claims in a YAML file, checked against the names of the ``studies`` that exist.

    Raises UserError, naming file and key, if the file cannot be read, a key is unknown or missing, a value is not what
    the key takes, or a criterion names no known study.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected the file of claims there") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        claims = Claims.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {_first_mistake(error, content)}") from None
    for claim in claims.claims:
        for criterion in claim.criteria:
            if criterion.study not in studies:
                where = f"claims[{claim.id}].criteria[{criterion.name}].study"
                hint = did_you_mean(criterion.study, studies)
                raise UserError(f"{path}: {where}: unknown study '{criterion.study}'{hint}")
    return claims


def _first_mistake(error: ValidationError, content: Any) -> str:
    mistake = error.errors()[0]
    loc = mistake["loc"]
    where = _key_path(loc, content)
    match mistake["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key{did_you_mean(str(loc[-1]), _fields_beside(loc))}"
        case "missing":
            return f"{where}: required, but missing"
        case "literal_error":
            known = re.findall(r"'([^']*)'", mistake["ctx"]["expected"])
            return f"{where}: unknown value '{mistake['input']}'{did_you_mean(str(mistake['input']), known)}"
        case _:
            message = mistake["msg"].removeprefix("Value error, ")
            return f"{where}: {message}" if where else message


def _key_path(loc: tuple[int | str, ...], content: Any) -> str:
    """Return a location as ``claims[C2].criteria[low].study``, with ids and names instead of positions."""
    text, here = "", content
    for step in loc:
        here = _step_into(here, step)
        if isinstance(step, int):
            name = here.get("id", here.get("name")) if isinstance(here, dict) else None
            text += f"[{name if isinstance(name, str) else step}]"
        else:
            text += f".{step}" if text else step
    return text


def _step_into(content: Any, step: int | str) -> Any:
    try:
        return content[step]
    except (KeyError, IndexError, TypeError):
        return None


def _fields_beside(loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys known where the last step of ``loc`` was found."""
    model: type[BaseModel] = Claims
    for step in loc[:-1]:
        if isinstance(step, str):
            model = _model_in(model.model_fields[step].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)
