"""Files from a stranger, at random: every reader returns what is right, or says in one line what is wrong, soon."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from dmdpipe.artifacts.checked import inside, json_text, parse_json
from dmdpipe.artifacts.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint
from dmdpipe.artifacts.manifest import Manifest, read_manifest, read_payload, sealed, verify_payload
from dmdpipe.artifacts.plan import read_order
from dmdpipe.artifacts.tables import decode_table, encode_table
from dmdpipe.artifacts.tensors import decode_about, decode_tensors, encode_tensors
from dmdpipe.audit.tree import read_artifact
from dmdpipe.errors import UserError
from dmdpipe.specs.base import digest
from dmdpipe.specs.claims import Claims, load_claims
from dmdpipe.specs.config import study_names
from dmdpipe.specs.problems import parse, read_yaml
from dmdpipe.specs.study import Config, Scale, Study

ROOT = Path(__file__).parents[2]
PAYLOAD = b"numbers"

pytestmark = pytest.mark.slow

few = settings(
    deadline=5000,
    max_examples=50,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def read(call: Callable[..., Any], *arguments: Any) -> Any:
    """The call's value, or None after an error that is one line for the user."""
    try:
        return call(*arguments)
    except UserError as error:
        assert str(error) and str(error).isprintable() and len(str(error)) <= UserError.LONGEST
        return None


# What a stranger does to bytes and to what they say


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """``valid`` with some bytes changed, cut out, repeated or put in."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 20))
        match draw(st.sampled_from(["change", "cut", "put in", "repeat", "end"])):
            case "change":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del data[at : at + length]
            case "put in":
                data[at:at] = draw(st.binary(max_size=20))
            case "repeat":
                data[at:at] = data[at : at + length]
            case "end":
                del data[at:]
    return bytes(data)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 2**31, 2**63, 2**64, 10**400, 1e308, float("inf"), float("nan"), -0.0])
    | st.sampled_from(
        ["", "..", "../x", "/etc/passwd", "a\0b", "a/../../b", "\x1b[31m", "\n", "manifest.json", "x" * 5000]
    )
    | st.text(max_size=5)
    | st.floats()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in nested mappings and lists something stands."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *(place for key in keys for place in places(value[key], (*path, key)))][0 if path else 1 :]


@st.composite
def altered(draw: st.DrawFn, valid: Any) -> Any:
    """``valid``, nested mappings and lists, with something in it exchanged, left out, renamed or added."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        if not places(value):
            break
        *path, last = draw(st.sampled_from(places(value)))
        where = value
        for key in path:
            where = where[key]
        match draw(st.sampled_from(["exchange", "leave out", "add"])):
            case "exchange":
                where[last] = draw(values)
            case "leave out" if len(places(value)) > 1:
                del where[last]
            case "add" if isinstance(where, dict):
                where[draw(st.text(max_size=5))] = draw(values)
            case _:
                where[last] = [where[last]]
    return value


# Manifests


def valid_manifest() -> dict[str, Any]:
    spec = {"seed": 1, "scale": 0.5, "name": "moons"}
    result = {
        "stage": "data",
        "spec": spec,
        "digest": digest({"stage": "data", "spec": spec}),
        "seeds": {"seed": 1},
        "payload": {"a.bin": {"sha256": "5" * 64, "size": len(PAYLOAD)}},
        "parents": {"up": {"folder": "x/y", "result_digest": "0" * 64}},
    }
    provenance = {
        "code": "0" * 16,
        "modules": {},
        "environment_lock": "unlocked",
        "environment": {
            "python": "3.11",
            "platform": "linux-x86_64",
            "libraries": {"numpy": "2"},
            "device": "cpu",
            "cpu": "one",
            "instruction_set": "AVX2",
            "threads": 1,
        },
        "equality": {"kind": "bitwise", "reason": "integers"},
        "parents": {"up": "2" * 64},
    }
    return as_written(result, provenance)


def as_written(result: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    seals = {"result": sealed(result, "result_digest"), "provenance": sealed(provenance, "provenance_digest")}
    return Manifest.model_validate(seals).model_dump(mode="json")


VALID = valid_manifest()


def read_all(folder: Path) -> None:
    """What a reader of an artifact does: the manifest, then every payload file that it lists."""
    manifest = read(read_manifest, folder / "manifest.json")
    if manifest is None:
        return
    assert json_text(manifest.model_dump(mode="json")).encode() == (folder / "manifest.json").read_bytes()
    for problem in verify_payload(folder, manifest):
        assert str(UserError(problem)).isprintable()
    for name, file in manifest.result.payload.items():
        read(read_payload, folder, name, file)
    for parent in manifest.result.parents.values():
        found = read(inside, folder, parent.folder)
        assert found is None or found.resolve().is_relative_to(folder.resolve())
    artifact = read(read_artifact, folder)
    if artifact is not None:
        artifact.run_facts()


def planted(manifest: bytes, run: bytes = b"{}") -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    (Path(folder.name) / "a.bin").write_bytes(PAYLOAD)
    (Path(folder.name) / "manifest.json").write_bytes(manifest)
    (Path(folder.name) / "run.json").write_bytes(run)
    return folder


@few
@given(data=damaged(json_text(VALID).encode()) | st.binary(max_size=100))
def test_a_manifest_with_other_bytes_is_refused(data: bytes) -> None:
    with planted(data) as folder:
        assert read(read_manifest, Path(folder, "manifest.json")) is None or data == json_text(VALID).encode()


@few
@given(value=altered(VALID))
def test_a_manifest_that_says_something_else_is_refused(value: Any) -> None:
    text = json.dumps(value, sort_keys=True, indent=1) + "\n"
    with planted(text.encode("utf-8", "surrogatepass")) as folder:
        assert read(read_manifest, Path(folder, "manifest.json")) is None or text == json_text(VALID)


@few
@given(value=altered({part: VALID[part] for part in ("result", "provenance")}), run=st.binary(max_size=20))
def test_a_manifest_that_a_stranger_has_sealed_leads_nowhere(value: Any, run: bytes) -> None:
    """The seals hold no secret: whoever changes a manifest can seal it anew."""
    sealed_anew = value
    try:
        stage, spec = value["result"]["stage"], value["result"]["spec"]
        result = {**value["result"], "digest": digest({"stage": stage, "spec": spec})}
        sealed_anew = as_written(result, value["provenance"])
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    text = json.dumps(sealed_anew, sort_keys=True, indent=1) + "\n"
    with planted(text.encode("utf-8", "surrogatepass"), run) as folder:
        read_all(Path(folder))


def test_the_manifest_that_they_start_from_is_valid() -> None:
    with planted(json_text(VALID).encode()) as folder:
        assert read(read_manifest, Path(folder, "manifest.json")).model_dump(mode="json") == VALID


@pytest.mark.parametrize(
    "run", [b"", b"[]", b"[" * 100_000, b"1" * 10_000, b"\xff", b'{"a": 1e999}', b"0" * 20_000_000]
)
def test_a_strange_run_file_tells_nothing(tmp_path: Path, plant_artifact: Callable[..., Path], run: bytes) -> None:
    folder = plant_artifact(tmp_path / "data/x", "data", {"a.bin": PAYLOAD})
    (folder / "run.json").write_bytes(run)
    assert read_artifact(folder).run_facts() in ({}, {"a": float("inf")})


@few
@given(
    value=altered({"stage": "data", "spec": {"family": "moons"}, "code": "0" * 16, "parents": {}}),
    text=st.text(max_size=20),
)
def test_an_order_is_read_or_refused(value: Any, text: str) -> None:
    read(read_order, json.dumps(value))
    read(read_order, text)
    read(parse_json, TypeAdapter(Any), text, text)


# Tensors and checkpoints

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((0, 4)), "c": np.array(True)}
ENCODED = encode_tensors(TENSORS, {"stage": "data", "spec": {"seed": 1}})


def with_header(header: Any, rest: bytes) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + rest


LENGTH = int.from_bytes(ENCODED[:8], "little")
HEADER = json.loads(ENCODED[8 : 8 + LENGTH])


@few
@given(
    data=damaged(ENCODED)
    | st.binary(max_size=100)
    | altered(HEADER).map(lambda h: with_header(h, ENCODED[8 + LENGTH :]))
)
def test_tensors_are_read_or_refused_and_never_more_than_the_file_holds(data: bytes) -> None:
    tensors = read(decode_tensors, data, "here")
    read(decode_about, data, "here")
    if tensors is not None:
        assert sum(array.nbytes for array in tensors.values()) <= len(data)


@few
@given(change=damaged(ENCODED))
def test_a_checkpoint_is_whole_or_counts_as_none(change: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_checkpoint(folder, TENSORS, {"iteration": 3})
        valid = (folder / FILE_NAME).read_bytes()
        # The same accidents as befell the other file, in this one.
        (folder / FILE_NAME).write_bytes(change + valid[len(change) :])
        capsys.readouterr()
        found = load_checkpoint(folder)
        said = capsys.readouterr().err
        if found is None:
            assert said.count("\n") == 1 and said[:-1].isprintable() and not list(folder.iterdir())
        else:
            assert all(np.array_equal(found[0][name], TENSORS[name]) for name in TENSORS)


# Tables

TABLE = pd.DataFrame(
    {"metric": ["rho", "δ"], "value": [0.5, np.nan], "x": [[1.0, 2.0], [3.0]], "n": [1, 2], "ok": [True, False]}
)
PARQUET = encode_table(TABLE)

columns = st.one_of(
    st.lists(st.none(), min_size=3, max_size=3),
    st.lists(st.floats() | st.none(), min_size=3, max_size=3),
    st.lists(st.text(max_size=3) | st.none(), min_size=3, max_size=3),
    st.lists(st.binary(max_size=3), min_size=3, max_size=3),
    st.lists(st.lists(st.floats(), max_size=2), min_size=3, max_size=3),
    st.lists(st.dictionaries(st.sampled_from("ab"), st.integers(0, 9), min_size=1), min_size=3, max_size=3),
    st.lists(st.dates() | st.none(), min_size=3, max_size=3),
)


@few
@given(data=damaged(PARQUET) | st.binary(max_size=60).map(lambda data: b"PAR1" + data + b"PAR1"))
def test_a_table_is_read_or_refused(data: bytes) -> None:
    table = read(decode_table, data, "here")
    assert table is None or (isinstance(table, pd.DataFrame) and len(table) <= len(data))


@few
@given(
    made=st.dictionaries(st.text(max_size=3), columns, max_size=3), codec=st.sampled_from(["none", "snappy", "zstd"])
)
def test_a_table_that_others_wrote_is_read_or_refused(made: dict[str, list[Any]], codec: str) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(made), sink, compression=codec)
    read(decode_table, bytes(sink.getvalue()), "here")


# Configuration and claims

CONFIGURATION = {
    "config.yaml": Config,
    "claims.yaml": Claims,
    "scales/smoke.yaml": Scale,
    "studies/dimension.yaml": Study,
}
TEXTS = {name: (ROOT / "config" / name).read_bytes() for name in CONFIGURATION}


@pytest.mark.parametrize("name", CONFIGURATION)
@settings(few, max_examples=15)
@given(data=st.data())
def test_damaged_configuration_is_read_or_refused(name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.yaml")
        path.write_bytes(data.draw(damaged(TEXTS[name])))
        value = read(read_yaml, path)
        if value is not None:
            read(parse, CONFIGURATION[name], value, str(path))


@pytest.mark.parametrize("name", CONFIGURATION)
@few
@given(data=st.data())
def test_altered_configuration_is_read_or_refused(name: str, data: st.DataObject) -> None:
    read(parse, CONFIGURATION[name], data.draw(altered(yaml.safe_load(TEXTS[name]))), "here")


@settings(few, max_examples=15)
@given(value=altered(yaml.safe_load(TEXTS["claims.yaml"])))
def test_altered_claims_are_read_or_refused(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "claims.yaml")
        path.write_text(yaml.safe_dump(value), encoding="utf-8", errors="surrogatepass")
        read(load_claims, path, study_names(ROOT / "config"))
