"""PNG, by their pixels."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from dmdpipe.audit.formats.difference import Difference, Tolerance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_PIXELS = 2**25
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_CHANNELS = ("red", "green", "blue", "opacity")


class Picture(NamedTuple):
    """A PNG: its pixels [height, width, RGBA], 0–255, and its text (title, description, …) by keyword."""

    pixels: NDArray[np.uint8]
    text: dict[str, str]


def read_png(data: bytes) -> Picture:
    """Return a PNG with at most 8 bits a channel.

    Raises:
        ValueError: if it has more than 2²⁵ pixels, or more bits. Pillow raises errors of many other kinds for damaged
            files.
    """
    import numpy as np
    from PIL import Image

    # From the header, before anything is made of that size.
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if width * height > MOST_PIXELS:
        raise ValueError(f"claims {width} × {height} pixels, more than {MOST_PIXELS}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.mode not in _MODES:
                raise ValueError(f"has pixels of the kind {image.mode}, not of 8 bits a channel")
            image.load()
            text = {key: str(value) for key, value in getattr(image, "text", {}).items()}
            return Picture(np.asarray(image.convert("RGBA")), text)


def picture_differences(a: Picture, b: Picture, tolerance: Tolerance, where: str = "") -> Iterator[Difference]:
    """Yield the largest difference of two pictures' pixels, by row and column from 0, and that of their text."""
    import numpy as np

    place = f"{where}, " if where else ""
    if a.pixels.shape != b.pixels.shape:
        sizes = " → ".join(f"{picture.pixels.shape[1]} × {picture.pixels.shape[0]}" for picture in (a, b))
        yield Difference(where, f"{sizes} pixels")
    else:
        gaps = np.abs(a.pixels.astype(np.int16) - b.pixels)
        share = float((gaps > 0).any(axis=-1).mean())
        if share > 0:
            row, column, channel = (int(i) for i in np.unravel_index(gaps.argmax(), gaps.shape))
            largest = int(gaps[row, column, channel])
            values = f"{a.pixels[row, column, channel]} → {b.pixels[row, column, channel]}"
            yield Difference(
                f"{place}pixel [{row}, {column}], {_CHANNELS[channel]}",
                f"{values}, and {share:.3g} of all pixels differ",
                max(largest / tolerance.grey_levels, share / tolerance.pixels),
                largest,
                "of 255 levels",
            )
    for key in sorted({*a.text, *b.text}):
        if a.text.get(key) != b.text.get(key):
            yield Difference(f"{place}text '{key}'", f"{a.text.get(key)!r} → {b.text.get(key)!r}")
