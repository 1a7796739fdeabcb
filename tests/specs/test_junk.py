"""Random junk instead of configuration: a valid spec or one line for the user, never any other exception."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from studies import members

from dmdpipe.artifacts.stages import STAGES
from dmdpipe.errors import UserError
from dmdpipe.specs.base import canonical_json
from dmdpipe.specs.claims import Claims
from dmdpipe.specs.config import load_config
from dmdpipe.specs.data import FAMILIES
from dmdpipe.specs.problems import _models_in, parse, read_yaml
from dmdpipe.specs.study import Cell, Config, Scale, Study


def fields_of(model: type[BaseModel], path: str = "") -> set[str]:
    """Every dotted key below a model, whichever member of a union it belongs to."""
    found = set()
    for name, field in model.model_fields.items():
        found.add(f"{path}{name}")
        for inner in _models_in(field.annotation):
            found |= fields_of(inner, f"{path}{name}.")
    return found


KEYS = sorted(fields_of(Cell))
WORDS = sorted({word for key in KEYS for word in key.split(".")})
NAMES = ["digits", "gaussian", "exact", "trained", "linear", "mlp", "oracle", "dmd2", "fastgen", "teacher", "rotated"]

leaf = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.floats()
    | st.sampled_from([*NAMES, *FAMILIES, *WORDS])
    | st.text(max_size=5)
)
junk = st.recursive(
    leaf,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=4)
        | st.dictionaries(leaf.filter(lambda key: key == key), inner, max_size=2)
    ),
    max_leaves=10,
)
overrides = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), junk, max_size=5)
few = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def one_line_or_fine(call: Any, *arguments: Any) -> Any:
    """The call's value, or None after an error that is one line for the user."""
    try:
        return call(*arguments)
    except UserError as error:
        assert str(error)
        assert str(error).isprintable(), repr(str(error))
        return None


@pytest.mark.parametrize("model", [Study, Scale, Config, Cell, Claims])
@few
@given(value=junk)
def test_junk_instead_of_a_file(model: type[BaseModel], value: Any) -> None:
    one_line_or_fine(parse, model, value, "here")


@few
@given(value=st.dictionaries(st.sampled_from(sorted(Cell.model_fields)), junk, max_size=4))
def test_junk_instead_of_a_cell(value: Any) -> None:
    one_line_or_fine(parse, Cell, {"data": {"family": "digits"}, **value}, "here")


@few
@given(base=overrides, label=overrides, budgets=overrides)
def test_junk_in_the_layers_of_a_grid(base: dict[str, Any], label: dict[str, Any], budgets: dict[str, Any]) -> None:
    words = {"number": 0, "title": "t", "question": "q", "prediction": "p"}
    declared = {**words, "base": {"data.family": "digits", **base}, "axes": {"a": {"x": label}}}
    study = one_line_or_fine(parse, Study, declared, "here")
    scale = one_line_or_fine(parse, Scale, {"title": "t", "seeds": 1, "set": budgets}, "here")
    if study and scale:
        for member in one_line_or_fine(members, study, scale) or []:
            assert STAGES["metrics"].parse(member.spec.model_dump(mode="json")) == member.spec
            canonical_json(member.spec)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with one study and one scale."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "studies").mkdir()
    (folder / "scales").mkdir()
    words = {"number": 0, "title": "t", "question": "q", "prediction": "p", "base": {"data.family": "digits"}}
    (folder / "studies" / "mine.yaml").write_text(yaml.safe_dump(words))
    (folder / "scales" / "tiny.yaml").write_text("title: t\nseeds: 1\n")
    (folder / "config.yaml").write_text("scale: tiny\nstudies: [mine]\n")
    return folder


@few
@given(value=st.dictionaries(st.sampled_from(["scale", "studies", "results"]) | st.text(max_size=4), junk, max_size=3))
def test_junk_on_the_command_line(folder: Path, value: dict[str, Any]) -> None:
    one_line_or_fine(load_config, value, folder)


@few
@given(text=st.text(max_size=30) | st.text("{}[]:,-&*!|>?%@'\"#ab01 \n\t", max_size=30) | junk.map(yaml.safe_dump))
def test_junk_instead_of_yaml(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.yaml")
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        value = one_line_or_fine(read_yaml, path)
        if value is not None:
            one_line_or_fine(parse, Scale, value, str(path))
