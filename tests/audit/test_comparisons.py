"""Comparing two files: by content, with the place and the size of the largest difference, whatever the bytes are."""

from __future__ import annotations

import base64
import io
import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dmdpipe.artifacts.tables import encode_table
from dmdpipe.artifacts.tensors import encode_tensors
from dmdpipe.audit.comparisons import CONTENT_TYPES, Comparison, compare_files
from dmdpipe.audit.formats.difference import DECLARED

SUFFIXES = [*CONTENT_TYPES, ".html", ".txt", ""]


def tensors(x: Any, about: Any = None) -> bytes:
    return encode_tensors({"other": np.zeros(3), "x": np.asarray(x)}, about)


def table(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns)


def parquet(**columns: Any) -> bytes:
    return encode_table(table(**columns))


def csv(**columns: Any) -> bytes:
    return table(**columns).to_csv(index=False).encode()


def png(pixels: np.ndarray, level: int = 6) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=level)
    return sink.getvalue()


def grey(changes: dict[tuple[int, int], int] | None = None) -> np.ndarray:
    pixels = np.full((40, 50), 100, np.uint8)
    for place, value in (changes or {}).items():
        pixels[place] = value
    return pixels


def notebook(source: str = "draw()", image: bytes | None = None, html: str = "<b>rho = 0.423</b>") -> bytes:
    data = {"image/png": base64.b64encode(image or png(grey())).decode(), "text/html": html.splitlines(True)}
    output = {"output_type": "display_data", "data": data, "metadata": {}}
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "# Title"},
        {"cell_type": "code", "metadata": {}, "source": source, "outputs": [output]},
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()


def pdf(drawing: str, level: int = 6, font: bytes = b"\0\1\2glyphs", title: str = "rho") -> bytes:
    parts = [b"%PDF-1.4\n"]
    for number, content in ((1, drawing.encode("latin-1")), (2, font)):
        packed = zlib.compress(content, level)
        parts.append(b"%d 0 obj\n<< /Length %d /Filter /FlateDecode >>\nstream\n" % (number, len(packed)))
        parts.append(packed + b"\nendstream\nendobj\n")
    parts.append(f"3 0 obj\n<< /Title ({title}) >>\nendobj\n".encode())
    offset = sum(map(len, parts))
    parts.append(b"xref\n0 1\n%010d 65535 f \ntrailer\n<< /Size 1 >>\nstartxref\n%d\n%%%%EOF\n" % (offset, offset))
    return b"".join(parts)


DRAWING = "1 g\n10.5 20.25 m\n30 40.125 l\nS\n(rho 0.423) Tj\n"


def compared(name: str, a: bytes, b: bytes) -> Comparison:
    """Compare both ways round; what is large one way is as large the other way."""
    forwards, backwards = compare_files(name, a, b), compare_files(name, b, a)
    assert forwards.within_tolerance == backwards.within_tolerance
    assert (forwards.largest is None) == (backwards.largest is None)
    if forwards.largest and backwards.largest:
        assert (forwards.largest.where, forwards.largest.excess) == (backwards.largest.where, backwards.largest.excess)
    return forwards


VALID: dict[str, bytes] = {
    ".safetensors": tensors([1.0, 2.0], {"spec": 1}),
    ".parquet": parquet(x=[1.0, 2.0], name=["a", "b"]),
    ".csv": csv(x=[1.0, 2.0], name=["a", "b"]),
    ".json": b'{"a": [1.5, 2], "b": "text"}',
    ".ipynb": notebook(),
    ".png": png(grey()),
    ".pdf": pdf(DRAWING),
    ".html": b"<p>rho = 0.423</p>",
}


@pytest.mark.parametrize("suffix", VALID)
def test_the_same_bytes_are_identical(suffix: str) -> None:
    found = compare_files(f"file{suffix}", VALID[suffix], bytes(VALID[suffix]))
    assert found.identical and found.within_tolerance and found.first is found.largest is None


# Tensors


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_rounding_difference_of_a_tensor_is_found_where_it_is_and_as_large_as_it_is(dtype: str) -> None:
    x = np.full((3, 4), 2.0, dtype)
    y = x.copy()
    y[0, 3] += 2e-6
    y[1, 2] += 2e-5  # a hundred-thousandth of the rms
    found = compared("file.safetensors", tensors(x), tensors(y))
    assert not found.identical and found.within_tolerance
    assert found.largest is not None
    assert found.largest.where == "tensor 'x'[1, 2]"
    assert found.largest.size == pytest.approx(1e-5, rel=0.03)
    assert found.largest.excess == pytest.approx(found.largest.size / DECLARED.numbers)
    assert found.largest.what.startswith("2.0 → 2.0000")


def test_the_size_is_relative_to_the_rms_whatever_the_unit() -> None:
    x = np.array([3.0, -4.0, 0.0, 0.0])
    for unit in (1e-200, 1.0, 1e200):
        found = compared("file.safetensors", tensors(unit * x), tensors(unit * (x + [0, 0, 0.25, 0])))
        assert found.largest is not None and not found.within_tolerance
        assert found.largest.where == "tensor 'x'[2]"
        assert found.largest.size == pytest.approx(0.25 / np.sqrt((9 + 16 + 0.0625) / 4))


@pytest.mark.parametrize(
    ("a", "b", "where", "what"),
    [
        ([1.0, np.nan], [1.0, 2.0], "tensor 'x'[1]", "nan → 2.0"),
        ([np.inf, 1.0], [-np.inf, 1.0], "tensor 'x'[0]", "inf → -inf"),
        ([np.inf, 1.0], [1e300, 1.0], "tensor 'x'[0]", "inf → 1e+300"),
        ([1, 2], [1, 3], "tensor 'x'[1]", "2 → 3"),
        ([True, False], [True, True], "tensor 'x'[1]", "False → True"),
        (0.5, 0.75, "tensor 'x'", "0.5 → 0.75"),
        ([1.0], [1.0, 2.0], "tensor 'x'", "float64 of shape [1] → float64 of shape [2]"),
        ([1.0], [1], "tensor 'x'", "float64 of shape [1] → int64 of shape [1]"),
    ],
)
def test_real_differences_of_tensors(a: Any, b: Any, where: str, what: str) -> None:
    found = compared("file.safetensors", tensors(a), tensors(b))
    assert not found.within_tolerance
    assert found.largest is not None and (found.largest.where, found.largest.what) == (where, what)


def test_a_nan_equals_a_nan_and_hides_nothing() -> None:
    x = np.array([np.nan, np.inf, 1.0, 1.0])
    found = compared("file.safetensors", tensors(x), tensors(x + [0, 0, 0, 1e-7]))
    assert found.within_tolerance and found.largest is not None
    assert found.largest.where == "tensor 'x'[3]" and found.largest.size == pytest.approx(1e-7, rel=1e-3)


def test_tensors_that_come_and_go_and_headers_are_compared() -> None:
    found = compared("file.safetensors", encode_tensors({"x": np.ones(2)}), tensors([1.0, 1.0]))
    assert found.structural is not None and found.structural.where == "tensor 'other'"
    found = compared("file.safetensors", tensors(1.0, {"seed": 0}), tensors(1.0, {"seed": 1}))
    assert not found.within_tolerance
    assert found.largest is not None and str(found.largest) == "header.seed: 0 → 1"


# Tables


@pytest.mark.parametrize(("name", "encode"), [("file.parquet", parquet), ("file.csv", csv)])
def test_numbers_in_a_table_are_found_by_column_and_row(name: str, encode: Callable[..., bytes]) -> None:
    before = {"d": [2, 4, 8], "value": [0.5, 0.5, 0.5]}
    found = compared(name, encode(**before), encode(**{**before, "value": [0.5, 0.5, 0.5 + 5e-7]}))
    assert found.within_tolerance and found.largest is not None
    assert found.largest.where == "column 'value', row 2"
    assert found.largest.size == pytest.approx(1e-6, rel=1e-5)
    found = compared(name, encode(**before), encode(**{**before, "d": [2, 5, 8]}))
    assert not found.within_tolerance
    assert found.largest is not None and str(found.largest) == "column 'd', row 1: 4 → 5"


@pytest.mark.parametrize(("name", "encode"), [("file.parquet", parquet), ("file.csv", csv)])
def test_a_large_metric_does_not_hide_a_small_one_in_the_same_column(name: str, encode: Callable[..., bytes]) -> None:
    metrics = ["loss", "rho", "loss", "rho"]
    found = compared(
        name,
        encode(metric=metrics, value=[1e6, 0.5, 2e6, 0.5]),
        encode(metric=metrics, value=[1e6, 0.5, 2e6, 0.75]),
    )
    assert not found.within_tolerance
    assert found.largest is not None and found.largest.where == "column 'value', row 3"


@pytest.mark.parametrize(("name", "encode"), [("file.parquet", parquet), ("file.csv", csv)])
def test_other_text_columns_and_rows_are_real_differences(name: str, encode: Callable[..., bytes]) -> None:
    a = encode(claim=["C1", "C2"], verdict=["supported", "supported"])
    found = compared(name, a, encode(claim=["C1", "C2"], verdict=["supported", "refuted"]))
    assert found.largest is not None and not found.within_tolerance
    assert found.largest.where == "column 'verdict', row 1" and found.structural is None
    found = compared(name, a, encode(claim=["C1"], verdict=["supported"]))
    assert found.structural is not None and str(found.structural) == "rows: 2 → 1"
    found = compared(name, a, encode(claim=["C1", "C2"], word=["supported", "supported"]))
    assert found.structural is not None and str(found.structural) == "columns: not in both: verdict, word"


def test_lists_in_a_table_are_compared_as_tensors() -> None:
    found = compared("file.parquet", parquet(x=[[3.0, 4.0], [1.0, 0.0]]), parquet(x=[[3.0, 4.0], [1.0, 1e-7]]))
    assert found.within_tolerance and found.largest is not None
    assert found.largest.where == "column 'x', row 1.1"
    assert found.largest.size == pytest.approx(1e-7 * np.sqrt(2))


def test_a_table_with_a_missing_number_differs_from_one_that_has_it() -> None:
    assert compared("file.csv", b"x\n1.5\n\n", b"x\n1.5\n\n\n").largest is None
    assert not compared("file.csv", b"x,y\n1.5,1\n,1\n", b"x,y\n1.5,1\n2.5,1\n").within_tolerance


# JSON and text


def test_the_first_and_the_largest_difference_of_json_are_named_by_their_path() -> None:
    a = {"a": {"x": 1.0}, "cells": [{"seed": 0}, {"value": 2.0}]}
    b = {"a": {"x": 1.000001}, "cells": [{"seed": 0}, {"value": 3.0}]}
    found = compared("file.json", json.dumps(a).encode(), json.dumps(b).encode())
    assert found.first is not None and found.largest is not None and not found.within_tolerance
    assert found.first.where == "a.x" and found.first.size == pytest.approx(1e-6, rel=1e-3)
    assert found.largest.where == "cells.1.value" and found.largest.size == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("a", "b", "where"),
    [
        ({"seed": 0}, {"seed": 1}, "seed"),
        ({"seed": 1}, {"seed": True}, "seed"),
        ({"seed": 1}, {"seed": None}, "seed"),
        ({"a": 1}, {"b": 1}, "a"),
        ({"a": [1, 2]}, {"a": [1]}, "a"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "a.1"),
        ({"a": "x"}, {"a": "y"}, "a"),
    ],
)
def test_whatever_is_no_number_must_be_the_same_in_json(a: Any, b: Any, where: str) -> None:
    found = compare_files("file.json", json.dumps(a).encode(), json.dumps(b).encode())
    assert not found.within_tolerance
    assert found.largest is not None and found.largest.where == where


def test_json_of_another_layout_has_the_same_content() -> None:
    found = compared("file.json", b'{"a": 1, "b": 2}', b'{"b":2,"a":1}')
    assert not found.identical and found.within_tolerance and found.largest is None


@pytest.mark.parametrize(
    ("a", "b", "within"),
    [
        ("rho = 0.423", "rho = 0.424", True),  # one unit of the last digit that is printed
        ("rho = 0.423", "rho = 0.425", False),
        ("rho = 0.1", "rho = 0.2", False),  # as well, but not a small share of the number
        ("p = 1.00e-5", "p = 1.01e-5", True),
        ("p = 1e-5", "p = 1e-6", False),
        ("seed 4", "seed 5", False),
        ("rho = 0.001", "rho = -0.001", False),
        ("4.0000001 of 7", "4.0000002 of 7", True),
        ("4.0 of 7", "4.0 of 8", False),
        ("supported", "refuted", False),
        ("9" * 400 + ".0", "1" * 400 + ".0", False),
    ],
)
def test_only_the_last_digit_of_a_printed_number_may_differ(a: str, b: str, within: bool) -> None:
    found = compared("file.html", f"<p>\n{a}\n</p>".encode(), f"<p>\n{b}\n</p>".encode())
    assert found.within_tolerance is within
    assert found.largest is not None and found.largest.where == "line 2"


def test_a_line_more_is_named() -> None:
    found = compare_files("file.txt", b"a\nb\n", b"a\nb\nc\n")
    assert found.largest is not None and str(found.largest) == "line 3: '' → 'c'"


# Notebooks and pictures


def test_notebooks_are_compared_cell_by_cell() -> None:
    found = compared("file.ipynb", notebook(), notebook(source="draw(1)"))
    assert not found.within_tolerance
    assert found.largest is not None and found.largest.where == "cell 2, source, line 1"
    found = compared("file.ipynb", notebook(), notebook(image=png(grey({(7, 9): 101}))))
    assert found.within_tolerance and found.largest is not None
    assert found.largest.where == "cell 2, output 1, image/png, pixel [7, 9], red"
    assert found.largest.size == 1
    found = compared("file.ipynb", notebook(), notebook(html="<b>rho = 0.424</b>"))
    assert found.within_tolerance and found.largest is not None
    assert found.largest.where == "cell 2, output 1, text/html"
    assert not compared("file.ipynb", notebook(), notebook(html="<b>rho = 0.523</b>")).within_tolerance
    assert not compared("file.ipynb", notebook(), notebook(image=png(grey({(7, 9): 255})))).within_tolerance


def test_pictures_in_a_page_are_compared_by_their_pixels() -> None:
    def page(image: bytes) -> bytes:
        return f'<p>\n<img src="data:image/png;base64,{base64.b64encode(image).decode()}">\n'.encode()

    found = compared("file.html", page(png(grey())), page(png(grey({(1, 2): 103}))))
    assert found.within_tolerance and found.largest is not None
    assert found.largest.where == "image 1, pixel [1, 2], red" and found.largest.size == 3
    assert not compared("file.html", page(png(grey())), page(png(grey({(1, 2): 203})))).within_tolerance


def test_png_are_compared_by_their_pixels() -> None:
    found = compared("file.png", png(grey()), png(grey(), level=0))
    assert not found.identical and found.within_tolerance and found.largest is None
    found = compared("file.png", png(grey()), png(grey({(3, 4): 116, (0, 0): 99})))
    assert found.within_tolerance and found.largest is not None
    assert found.largest.where == "pixel [3, 4], red" and found.largest.size == 16
    assert "0.001 of all pixels" in found.largest.what  # 2 of 2,000
    assert not compared("file.png", png(grey()), png(grey({(3, 4): 117}))).within_tolerance
    faint = np.full((40, 50), 101, np.uint8)
    assert not compared("file.png", png(grey()), png(faint)).within_tolerance
    found = compared("file.png", png(grey()), png(np.full((40, 51), 100, np.uint8)))
    assert found.largest is not None and str(found.largest) == "50 × 40 → 51 × 40 pixels"


def test_pdf_are_compared_by_what_they_draw() -> None:
    a = pdf(DRAWING)
    found = compared("file.pdf", a, pdf(DRAWING, level=0))
    assert not found.identical and found.within_tolerance and found.largest is None
    found = compared("file.pdf", a, pdf(DRAWING.replace("40.125", "40.135")))
    assert found.within_tolerance and found.largest is not None
    assert found.largest.where == "stream 1, line 3" and found.largest.size == pytest.approx(0.01)
    for old, new in (("40.125", "41"), ("40.125 l", "40.125 m"), ("rho 0.423", "rho 0.523"), ("1 g", "0.5 g")):
        assert not compared("file.pdf", a, pdf(DRAWING.replace(old, new))).within_tolerance, new
    assert not compared("file.pdf", a, pdf(DRAWING, font=b"\0\1\2glyphz")).within_tolerance
    assert not compared("file.pdf", a, pdf(DRAWING, title="sigma")).within_tolerance


def test_glyph_numbers_are_text_and_not_coordinates() -> None:
    drawing = DRAWING + "(\x00\x13\x00\x14) Tj\n"
    found = compared("file.pdf", pdf(drawing), pdf(drawing.replace("20.25", "20.26")))
    assert found.within_tolerance and found.largest is not None and found.largest.where == "stream 1, line 2"
    assert not compared("file.pdf", pdf(drawing), pdf(drawing.replace("\x14", "\x15"))).within_tolerance


# Files that are damaged or mean


@pytest.mark.parametrize("suffix", [suffix for suffix in VALID if suffix not in (".html", ".csv")])
def test_a_file_that_is_cut_off_is_a_difference_that_says_so(suffix: str) -> None:
    whole = VALID[suffix]
    for side, a, b in (("B", whole, whole[: len(whole) // 2]), ("A", b"", whole)):
        found = compare_files(f"file{suffix}", a, b)
        assert not found.within_tolerance
        assert found.structural is not None and found.structural.what.startswith(f"{side} cannot be read: ")
        assert found.structural.what.isprintable()


def test_text_that_is_none_is_a_difference_that_says_so() -> None:
    for name in ("file.html", "file.csv"):
        found = compare_files(name, b"a\n1\n", b"\xff\xfe\n1\n")
        assert found.structural is not None and found.structural.what.startswith("B cannot be read: ")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_small_file_that_unpacks_to_a_huge_one_is_refused_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmdpipe.audit.formats.pdf.MOST_BYTES", 2**22)
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    huge_png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    zeros = zlib.compress(bytes(2**26))
    huge_pdf = b"%PDF-1.4\n1 0 obj\n<< /Filter /FlateDecode >>\nstream\n" + zeros + b"\nendstream\n%%EOF\n"
    for name, huge in (("file.png", huge_png), ("file.pdf", huge_pdf)):
        tracemalloc.start()
        found = compare_files(name, VALID[name[4:]], huge)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.structural is not None and "more than" in found.structural.what
        assert peak < 2**24


@pytest.mark.parametrize(
    "text",
    [b"[" * 100_000, b"1" * 5_000, b'{"a": 1e999}', b'{"a": NaN}', b"[0.5, 1" + b"0" * 400 + b"]", b"[1.5, 2.5]"],
)
def test_mean_json_is_compared_or_refused(text: bytes) -> None:
    for other in (b"[1.5, 2]", b'{"a": 2}'):
        assert not compare_files("file.json", text, other).within_tolerance


mutations = st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 255)), min_size=1, max_size=4)
few = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@few
@given(suffix=st.sampled_from(SUFFIXES), a=st.binary(max_size=200), b=st.binary(max_size=200))
def test_any_two_files_can_be_compared(suffix: str, a: bytes, b: bytes) -> None:
    found = compare_files(f"file{suffix}", a, b)
    assert found.identical == (a == b)
    assert str(found.largest).isprintable()


@few
@given(suffix=st.sampled_from(list(VALID)), changes=mutations)
def test_a_file_with_changed_bytes_can_be_compared(suffix: str, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(VALID[suffix])
    for place, value in changes:
        changed[place % len(changed)] = value
    found = compare_files(f"file{suffix}", VALID[suffix], bytes(changed))
    assert found.identical == (bytes(changed) == VALID[suffix])
    assert str(found.largest).isprintable()
