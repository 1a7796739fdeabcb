"""Tensors, tables, JSON and checkpoints on the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pydantic import TypeAdapter

from dmdpipe.artifacts.atomic import replace_folder, write_atomically
from dmdpipe.artifacts.checked import inside, json_text, one_line, parse_json, read_bytes
from dmdpipe.artifacts.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint
from dmdpipe.artifacts.tables import decode_table, encode_table
from dmdpipe.artifacts.tensors import decode_about, decode_tensors, encode_tensors
from dmdpipe.errors import UserError


@given(
    array=st.sampled_from(["f4", "f8", "i8", "u1", "?"]).flatmap(
        lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0))
    )
)
@settings(deadline=None, max_examples=50)
def test_tensors_come_back_to_the_bit(array: np.ndarray) -> None:
    tensors = {
        "as it is": array,
        "transposed": array.T,
        "every second": array[..., ::2] if array.ndim else array,
    }
    back = decode_tensors(encode_tensors(tensors, {"a": 1}), "here")
    for name, expected in tensors.items():
        assert back[name].dtype == expected.dtype
        assert back[name].shape == expected.shape
        assert back[name].tobytes() == expected.tobytes()
        assert back[name].flags.writeable


def test_tensors_make_the_same_bytes_in_another_order_and_process() -> None:
    x, y = np.arange(3.0), np.arange(4, dtype=np.float32)
    encoded = encode_tensors({"x": x, "y": y}, {"b": 1, "a": [2]})
    assert encode_tensors({"y": y, "x": x}, {"a": [2], "b": 1}) == encoded
    program = (
        "import sys, numpy as np; from dmdpipe.artifacts.tensors import encode_tensors;"
        "tensors = {'y': np.arange(4, dtype='f4'), 'x': np.arange(3.0)};"
        "sys.stdout.buffer.write(encode_tensors(tensors, {'a': [2], 'b': 1}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment).stdout == encoded
    assert decode_about(encoded, "here") == {"a": [2], "b": 1}


def file_with(header: object, payload: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload


HOSTILE = {
    "empty": b"",
    "short": b"abc",
    "header longer than the file": (2**63).to_bytes(8, "little") + b"{}",
    "no object": file_with([]),
    "nested deeply": file_with(b"[" * 100_000),
    "not JSON": file_with(b'{"a":'),
    "not UTF-8": file_with(b"\xff\xfe"),
    "a type that NumPy lacks": file_with({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}, b"12"),
    "a type that nobody has": file_with({"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}}, b"12345678"),
    "overflowing shape": file_with({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}}, b"1234"),
    "empty but huge": file_with({"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}),
    "too many dimensions": file_with({"a": {"dtype": "F32", "shape": [0] + [1] * 200, "data_offsets": [0, 0]}}),
    "negative": file_with({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
    "beyond the end": file_with({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
    "overlapping": file_with({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, b"1234"),
    "metadata that is no text": file_with({"__metadata__": {"dmdpipe": 3}}),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tensors_are_refused_in_one_line(data: bytes) -> None:
    for decode in (decode_tensors, decode_about):
        with pytest.raises(UserError, match="^here.safetensors: ") as error:
            decode(data, "here.safetensors")
        assert "\n" not in str(error.value)


def test_a_header_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(UserError, match="not JSON"):
        decode_about(file_with({"__metadata__": {"dmdpipe": "[" * 100_000}}), "here")
    assert decode_about(file_with({}), "here") is None
    assert decode_about(file_with({"__metadata__": None}), "here") is None


def test_tables_come_back_and_make_the_same_bytes() -> None:
    table = pd.DataFrame(
        {
            "generator_step": np.array([0, 10]),
            "metric": ["rho", "δ"],
            "value": [0.5, np.nan],
            "converged": [True, False],
        }
    )
    encoded = encode_table(table.set_index(pd.Index([3, 4])))
    assert encode_table(table) == encoded
    pd.testing.assert_frame_equal(decode_table(encoded, "here"), table)
    assert b"pandas" not in encoded


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + b"\xff" * 40 + b"PAR1", b"a,b\n1,2\n"])
def test_hostile_tables_are_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(UserError, match="^here.parquet: ") as error:
        decode_table(data, "here.parquet")
    assert "\n" not in str(error.value)


def parquet(table: pa.Table, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **{"compression": "none", "use_dictionary": False, **options})
    return bytes(sink.getvalue())


MANY = 100_000
BOMBS = {
    "rows without values": (parquet(pa.table({"a": pa.nulls(MANY)})), "claims 100000 rows"),
    "values without rows": (
        parquet(pa.table({"a": pa.array([[None] * MANY], pa.list_(pa.float64()))})),
        "claims 100000 values",
    ),
    "zstd": (parquet(pa.table({"a": np.zeros(9)}), compression="zstd"), "compressed"),
    "snappy": (parquet(pa.table({"a": np.zeros(9)}), compression="snappy"), "compressed"),
    "dictionary": (parquet(pa.table({"a": ["x" * 1000] * 9}), use_dictionary=True), "compressed"),
    "differences": (
        parquet(pa.table({"a": ["x" * 1000] * 9}), column_encoding={"a": "DELTA_BYTE_ARRAY"}),
        "compressed",
    ),
    "columns": (parquet(pa.table({f"c{i}": [1] for i in range(1001)})), "1001 columns"),
    "one name twice": (parquet(pa.Table.from_arrays([pa.array([1])] * 2, names=["a", "a"])), "two columns"),
    "structs": (parquet(pa.table({"a": [{"b": 1}]})), "type struct"),
    "lists of lists": (parquet(pa.table({"a": [[[1.0]]]})), "type list"),
    "bytes": (parquet(pa.table({"a": [b"\xff"]})), "type binary"),
    "times": (parquet(pa.table({"a": pa.array([2**40], pa.timestamp("s"))})), "type timestamp"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_table_that_claims_more_than_its_bytes_hold_is_refused_unread(case: str) -> None:
    data, says = BOMBS[case]
    with pytest.raises(UserError, match=f"^here: .*{says}") as error:
        decode_table(data, "here")
    assert str(error.value).isprintable()


def test_every_kind_of_column_that_the_steps_write_comes_back() -> None:
    table = pd.DataFrame(
        {
            "nothing": [None, None, None],
            "some text": ["a", None, "b"],
            "some numbers": [0.5, np.nan, np.inf],
            "lists": [[1.0, 2.0], [], [0.1]],
            "no numbers": [np.nan] * 3,
            "small": np.array([1, 2, 3], dtype=np.int32),
            "single": np.array([1, 2, 3], dtype=np.float32),
        }
    )
    back = decode_table(encode_table(table), "here")
    assert list(back) == list(table) and len(back) == 3
    assert back["nothing"].isna().all() and back["no numbers"].isna().all()
    assert [list(row) for row in back["lists"]] == list(table["lists"])
    assert back["some text"][[0, 2]].tolist() == ["a", "b"] and pd.isna(back["some text"][1])
    for name in ("some numbers", "no numbers", "small", "single"):
        pd.testing.assert_series_equal(back[name], table[name])
    empty = decode_table(encode_table(table[:0]), "here")
    assert list(empty) == list(table) and len(empty) == 0


def test_json_has_sorted_keys_and_no_nan() -> None:
    assert json_text({"b": [1], "a": 0.1}) == '{\n "a": 0.1,\n "b": [\n  1\n ]\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        json_text(float("nan"))


def test_json_that_does_not_fit_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^here: b  \[31m: Input should be a valid integer.*\(and 1 more\)$"):
        parse_json(TypeAdapter(dict[str, int]), '{"a": 1, "b\\n\\u001b[31m": "x", "c": "x"}', "here")
    for text in ("", "{", "[" * 100_000, '{"a": NaN}'):
        with pytest.raises(UserError, match="^here: "):
            parse_json(TypeAdapter(dict[str, int]), text, "here")
    assert one_line("x" * 1000) == "x" * 299 + "…"


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "", "link/x", "circle", "a\0b"])
def test_paths_stay_inside(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    (root / "circle").symlink_to(root / "circle")
    with pytest.raises(UserError, match="outside"):
        inside(root, path)
    assert inside(root, "a/b.c") == root / "a/b.c"


def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_bytes(tmp_path / "absent")


def test_a_failed_atomic_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def no_space(source: object, target: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"old"}


@pytest.mark.parametrize("before", [None, [], ["old", "kept"]])
def test_a_folder_is_replaced_as_a_whole(tmp_path: Path, before: list[str] | None) -> None:
    new, target = tmp_path / "new", tmp_path / "a" / "b"
    new.mkdir()
    (new / "kept").write_text("new")
    if before is not None:
        target.mkdir(parents=True)
        for name in before:
            (target / name).write_text("old")
    replace_folder(new, target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {"kept": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_checkpoints_come_back_and_replace_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "resume" / "here"
    assert load_checkpoint(folder) is None
    for step in (1, 2):
        tensors = {"w": np.full((2, 3), step, np.float32), "step": np.array(step), "none": np.zeros((0, 2))}
        save_checkpoint(folder, tensors, {"step": step, "loss": 0.1, "rows": [1, None]})
    found = load_checkpoint(folder)
    assert found is not None
    back, meta = found
    assert meta == {"step": 2, "loss": 0.1, "rows": [1, None]}
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "foreign"])
def test_a_damaged_checkpoint_counts_as_none(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(tmp_path, {"w": np.ones(100)}, {"step": 2})
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut": data[:-10],
            "flipped": data[:-1] + bytes([data[-1] ^ 1]),
            "emptied": b"",
            "foreign": encode_tensors({"w": np.ones(100)}),
        }[damage]
    )
    assert load_checkpoint(tmp_path) is None
    assert capsys.readouterr().err.count("\n") == 1
    assert not path.exists()


@pytest.mark.parametrize("what", ["link", "pipe", "folder", "sparse", "no mapping"])
def test_a_checkpoint_that_a_stranger_left_counts_as_none(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, outside = tmp_path / "resume", tmp_path / "outside"
    save_checkpoint(folder, {"w": np.ones(2)}, {})
    path = folder / FILE_NAME
    content = path.read_bytes()
    outside.write_bytes(content)
    path.unlink()
    match what:
        case "link":
            path.symlink_to(outside)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            (path / "inside").mkdir(parents=True)
        case "sparse":
            with path.open("wb") as file:
                file.truncate(2**40)
        case "no mapping":
            path.write_bytes(content.replace(b'\\"meta\\": {}', b'\\"meta\\": []'))
            assert path.read_bytes() != content
    assert load_checkpoint(folder) is None
    assert capsys.readouterr().err.count("\n") == 1
    assert not os.path.lexists(path) and outside.read_bytes() == content


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / f".file-{os.getpid()}").symlink_to(outside)
    (tmp_path / "file").symlink_to(outside)
    write_atomically(tmp_path / "file", b"new")
    assert outside.read_text() == "mine"
    assert (tmp_path / "file").read_bytes() == b"new" and not (tmp_path / "file").is_symlink()
