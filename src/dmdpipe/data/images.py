"""From integer images to rows of real numbers: repeat, dequantise, pool, flatten."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.data.pooling import area_pool
from dmdpipe.errors import UserError
from dmdpipe.specs.data import data_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmdpipe.specs.data import Digits, Fashion

_CHUNK = 4096


def image_rows(
    images: NDArray, n: int, side: int, grey_levels: int, dequantisation: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return n rows [n, side²]: row i is image ``i mod m``, dequantised, brought to 0…1 and pooled.

    Every row has noise of its own, uniform on ±dequantisation/2 grey levels (so the mean stays) and
    independent in each pixel of the full-size image.

    Args:
        images: [m, size, size], grey levels 0…grey_levels.
        n: number of rows; each image appears ⌊n/m⌋ or ⌈n/m⌉ times.
        side: side of the pooled image.
        grey_levels: the level that becomes 1.
        dequantisation: width of the noise in grey levels.
        rng: source of the noise. Its use does not depend on ``side``, so the same stream gives the same
            images at every resolution.
    """
    rows = np.empty((n, side**2))
    for start in range(0, n, _CHUNK):  # in chunks: 28×28 full-size noise for 60,000 rows takes 0.4 GB
        stop = min(start + _CHUNK, n)
        chunk = images[np.arange(start, stop) % len(images)]
        noise = (rng.random(chunk.shape) - 0.5) * dequantisation
        rows[start:stop] = area_pool((chunk + noise) / grey_levels, side).reshape(stop - start, -1)
    return rows


def chosen(images: NDArray, spec: Digits | Fashion) -> NDArray:
    """Return those training images [n, size, size] that ``spec.half`` and ``spec.n_images`` name, in their order.

    Raises:
        UserError: if there are fewer.
    """
    middle = len(images) // 2
    half = {"both": images, "first": images[:middle], "second": images[middle:]}[spec.half]
    if spec.n_images is not None and spec.n_images > len(half):
        raise UserError(f"data.n_images: {spec.n_images}, but {data_name(spec)} has {len(half)}; take fewer")
    return half[: spec.n_images]


def distinct_rows(images: NDArray, n: int, side: int, grey_levels: int) -> NDArray[np.float64]:
    """Return the images behind n rows of ``image_rows`` without their noise, each once: [min(n, m), side²]."""
    shown = images[:n]
    return area_pool(shown / grey_levels, side).reshape(len(shown), -1)


def describe_dequantisation(dequantisation: float, grey_levels: int, size: int) -> str:
    """Return the sentence for ``facts.json``."""
    if dequantisation == 0:
        return "none"
    return (
        f"independent uniform noise of {dequantisation:g} grey levels (1/{grey_levels} each), centred, "
        f"added at {size}x{size} before pooling"
    )
