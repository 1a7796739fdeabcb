"""PDF, by what it draws: its objects and its streams, decompressed with the standard library."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from itertools import zip_longest
from typing import NamedTuple

from dmdpipe.audit.formats.difference import Difference, Tolerance
from dmdpipe.audit.formats.text import line_differences, text_differences

MOST_BYTES = 2**28

# Follow from how well the streams were compressed: their lengths, objects that hold a length only, and offsets.
_LENGTHS = re.compile(rb"/Length \d+(?: 0 R)?|\d+ 0 obj\s+\d+\s+endobj|startxref\s+\d+|\nxref\n[\d\s fn]*")
_LITERAL = re.compile(r"\((?:\\.|[^()\\])*\)", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")


class Stream(NamedTuple):
    """A stream, decompressed, and the text of the objects that stand before it."""

    before: bytes
    content: bytes

    @property
    def is_image(self) -> bool:
        """Whether its object says that it holds pixels."""
        return b"/Subtype /Image" in self.before[self.before.rfind(b" obj") :]

    @property
    def is_text(self) -> bool:
        """Whether it holds drawing commands or other text; only what is drawn in a font may be any bytes."""
        commands = _LITERAL.sub("()", self.content.decode("latin-1"))
        return commands.isascii() and "\0" not in commands


def read_pdf(data: bytes) -> list[Stream]:
    """Return the streams of a PDF in the order of the file; the last one is what stands after them, without content.

    Raises:
        ValueError or zlib.error: if it is none, is damaged, or its streams hold more than 2²⁸ bytes.
    """
    if not data.startswith(b"%PDF-"):
        raise ValueError("is no PDF")
    if b"%%EOF" not in data[-1024:]:
        raise ValueError("is cut off")
    streams, end, left = [], 0, MOST_BYTES
    while (start := data.find(b"stream", end)) >= 0:
        before = data[end:start]
        start = data.index(b"\n", start) + 1
        stop = data.index(b"endstream", start)
        content = data[start:stop]
        if b"/FlateDecode" in before[before.rfind(b" obj") :]:
            unpacker = zlib.decompressobj()
            content = unpacker.decompress(content, left)
            if not unpacker.eof:
                raise ValueError(f"a stream is cut off, or all together hold more than {MOST_BYTES} bytes")
        left -= len(content)
        if left <= 0:
            raise ValueError(f"its streams hold more than {MOST_BYTES} bytes")
        streams.append(Stream(_LENGTHS.sub(b"", before), content))
        end = stop + len(b"endstream")
    return [*streams, Stream(_LENGTHS.sub(b"", data[end:]), b"")]


def pdf_differences(a: list[Stream], b: list[Stream], tolerance: Tolerance) -> Iterator[Difference]:
    """Yield every difference of two PDF by stream and line or text, each counted from 1.

    Images are compared byte by byte, as pixels are; other binary streams, such as fonts, must be the same.
    """
    for count, (x, y) in enumerate(zip_longest(a, b), start=1):
        if x is None or y is None:
            yield Difference("streams", f"{len(a) - 1} → {len(b) - 1}")
            return
        yield from _drawing_differences(x.before, y.before, tolerance, f"objects before stream {count}")
        if x.content == y.content:
            continue
        where = f"stream {count}"
        if x.is_text and y.is_text:
            yield from _drawing_differences(x.content, y.content, tolerance, where)
        elif x.is_image and y.is_image and len(x.content) == len(y.content):
            yield _image_difference(x.content, y.content, tolerance, where)
        else:
            yield Difference(where, f"other content, {len(x.content)} → {len(y.content)} bytes")


def _drawing_differences(a: bytes, b: bytes, tolerance: Tolerance, where: str) -> Iterator[Difference]:
    """Yield differences of drawing commands; text that is drawn stands in brackets and is compared as text."""
    if a == b:
        return
    texts = [part.decode("latin-1") for part in (a, b)]
    literals = [_LITERAL.findall(text) for text in texts]
    commands = [_LITERAL.sub("()", text) for text in texts]

    def excess(x: str, y: str) -> float:
        return abs(float(x) - float(y)) / tolerance.points

    for found in line_differences(commands[0], commands[1], _NUMBER, excess, where):
        points = found.excess * tolerance.points
        yield Difference(found.where, found.what, found.excess, points, "points")
    for count, (x, y) in enumerate(zip(*literals, strict=False), start=1):
        if x != y:
            yield from text_differences(x, y, tolerance, f"{where}, text {count}")


def _image_difference(a: bytes, b: bytes, tolerance: Tolerance, where: str) -> Difference:
    import numpy as np

    x, y = (np.frombuffer(content, np.uint8).astype(np.int16) for content in (a, b))
    # PNG's predictors store differences modulo 256, in which 255 is next to 0.
    gaps = np.minimum((x - y) % 256, (y - x) % 256)
    i, share = int(gaps.argmax()), float((gaps > 0).mean())
    largest = int(gaps[i])
    excess = max(largest / tolerance.grey_levels, share / tolerance.pixels)
    what = f"{x[i]} → {y[i]}, and {share:.3g} of all bytes differ"
    return Difference(f"{where}, byte {i}", what, excess, largest, "of 255 levels")
