"""Small studies and scales for the tests of this folder."""

from __future__ import annotations

from typing import Any

from dmdpipe.specs.grid import Member, expand
from dmdpipe.specs.study import Scale, Study


def study(base: dict[str, Any] | None = None, **parts: Any) -> Study:
    """A study on pooled digits unless ``base`` says otherwise."""
    words = {"number": 0, "title": "t", "question": "q", "prediction": "p"}
    return Study.model_validate({**words, "base": {"data.family": "digits"} if base is None else base, **parts})


def scale(seeds: int = 1, first_seed: int = 0, **settings: Any) -> Scale:
    """A scale; its dotted keys are written with two underscores for a dot."""
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    return Scale.model_validate({"title": "t", "seeds": seeds, "first_seed": first_seed, "set": dotted})


def members(declared: Study, budgets: Scale | None = None, scale_name: str = "tiny") -> list[Member]:
    """The members of a study that is called ``mine``."""
    return expand("mine", declared, scale_name, budgets or scale())


def only(declared: Study, budgets: Scale | None = None) -> Any:
    """The spec of a study's only member."""
    (member,) = members(declared, budgets)
    return member.spec
