"""Square images of the user's own, from a folder of PNG files or one array."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np

from dmdpipe.data.images import chosen, describe_dequantisation, distinct_rows, image_rows
from dmdpipe.data.own_file import load_own, split
from dmdpipe.data.raw import RawData
from dmdpipe.errors import UserError
from dmdpipe.specs.data import data_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmdpipe.specs.data import Fashion, OwnImages

GREY_LEVELS = 256


def draw(spec: OwnImages, rng: np.random.Generator) -> RawData:
    """Return pooled images: of uint8 dequantised with values in about 0…1, of floats as they are.

    The images are split before anything else, so no held-out row shows a training image.

    Raises:
        UserError: if the file is not the one that the spec means, or its images don't fit the spec.
    """
    images = load_own(spec)
    _check(images.shape, spec)
    levels, width = (GREY_LEVELS, spec.dequantisation) if images.dtype == np.uint8 else (1, 0.0)
    said = describe_dequantisation(width, levels, images.shape[1])
    train, held_out = split(images, f"own_data.{spec.name}")
    # Naming OwnImages where the function is would change the code of every digits step, and so run all of them again.
    train = chosen(train, cast("Fashion", spec))

    def rows(some: NDArray, n: int) -> NDArray[np.float64]:
        return _by_channel(some, lambda channel: image_rows(channel, n, spec.side, levels, width, rng))

    return RawData(
        train=rows(train, spec.n_train),
        held_out=rows(held_out, spec.n_held_out),
        source=f"own data '{spec.name}', sha256 {spec.sha256}",
        licence="not known to dmdpipe",
        dequantisation=said,
        n_images=min(len(train), spec.n_train),
        images=_by_channel(train, lambda channel: distinct_rows(channel, spec.n_train, spec.side, levels)),
    )


def _check(shape: tuple[int, ...], spec: OwnImages) -> None:
    place = f"own_data.{spec.name}"
    if len(shape) not in (3, 4) or shape[3:] not in ((), (3,)) or 0 in shape:
        raise UserError(f"{place}: has shape {shape}; images are [n, side, side] or [n, side, side, 3]")
    if shape[1] != shape[2]:
        raise UserError(f"{place}: the images have {shape[1]}x{shape[2]} pixels; crop them to squares")
    if spec.colour != (len(shape) == 4):
        channels = "three channels" if len(shape) == 4 else "one channel"
        raise UserError(f"data.colour: {str(spec.colour).lower()}, but the images of {data_name(spec)} have {channels}")
    if spec.side > shape[1]:
        raise UserError(f"data.side: {spec.side}, but the images have {shape[1]}x{shape[1]} pixels; take no more")


def _by_channel(images: NDArray, rows_of: Callable[[NDArray], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return rows [n, side²], or [n, 3·side²] with a pixel's three channels side by side, as photos have them."""
    channels = [images] if images.ndim == 3 else [images[..., channel] for channel in range(3)]
    rows = np.stack([rows_of(channel) for channel in channels], axis=-1)
    return rows.reshape(len(rows), -1)
