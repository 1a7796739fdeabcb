"""Colour patches of two photos that scikit-learn contains, split by photo."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from sklearn.datasets import load_sample_image

from dmdpipe.data.images import describe_dequantisation
from dmdpipe.data.raw import RawData
from dmdpipe.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmdpipe.specs.data import Photos

GREY_LEVELS = 256
TRAIN_PHOTO, HELD_OUT_PHOTO = "china.jpg", "flower.jpg"
SHA256 = {
    TRAIN_PHOTO: "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    HELD_OUT_PHOTO: "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
}


def draw(spec: Photos, rng: np.random.Generator) -> RawData:
    """Return dequantised patches with values in about 0…1: ``train`` of one photo, ``held_out`` of the other.

    Patches lie at distinct random places and may overlap.

    Raises:
        UserError: if a photo is not the published file, or has fewer places than patches are asked for.
    """
    return RawData(
        train=patches(load_photo(TRAIN_PHOTO), spec.n_train, "n_train", spec, rng),
        held_out=patches(load_photo(HELD_OUT_PHOTO), spec.n_held_out, "n_held_out", spec, rng),
        source=f"train: {TRAIN_PHOTO} by danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035; "
        f"held out: {HELD_OUT_PHOTO} by vultilion, https://www.flickr.com/photos/vultilion/6056698931; "
        "both as contained in scikit-learn",
        licence="CC BY 2.0",
        dequantisation=describe_dequantisation(spec.dequantisation, GREY_LEVELS, spec.side),
    )


def load_photo(name: str) -> NDArray[np.uint8]:
    """Return a photo [height, width, 3], levels 0…255, after checking its file's checksum.

    Raises:
        UserError: if the file is another one.
    """
    file = files("sklearn.datasets.images") / name
    actual = hashlib.sha256(file.read_bytes()).hexdigest()
    if actual != SHA256[name]:
        raise UserError(
            f"{file} is damaged or another file: its sha256 should be {SHA256[name]} but is {actual}; "
            "install scikit-learn again"
        )
    photo: NDArray[np.uint8] = load_sample_image(name)
    return photo


def patches(photo: NDArray[np.uint8], n: int, key: str, spec: Photos, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return n patches of ``spec.side``×``spec.side`` pixels at distinct places of a photo, flat: [n, 3·side²].

    ``key`` is the field of the data that says n.

    Raises:
        UserError: if there are fewer places.
    """
    rows, columns = (length - spec.side + 1 for length in photo.shape[:2])
    if n > rows * columns:
        raise UserError(f"data.{key}: a photo has {rows * columns} places for patches, not {n}; take fewer")
    row, column = np.divmod(rng.choice(rows * columns, size=n, replace=False), columns)
    steps = np.arange(spec.side)
    chosen = photo[(row[:, None] + steps)[:, :, None], (column[:, None] + steps)[:, None, :]]
    noise = (rng.random(chosen.shape) - 0.5) * spec.dequantisation
    return ((chosen + noise) / GREY_LEVELS).reshape(n, -1)
