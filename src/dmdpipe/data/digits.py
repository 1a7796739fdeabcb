"""The 8×8 handwritten digits that scikit-learn contains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.datasets import load_digits

from dmdpipe.data.images import chosen, describe_dequantisation, distinct_rows, image_rows
from dmdpipe.data.pooling import area_pool
from dmdpipe.data.raw import RawData
from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmdpipe.specs.data import Digits

GREY_LEVELS = 16
TRAIN_SHARE = 0.8


def split_images() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 1,437 images for training and the 360 held out, [n, 8, 8], grey levels 0…16.

    The split is the same for every spec.
    """
    return split(load_digits().images)


def split_labels(rng: np.random.Generator | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which digit each of the images of ``split_images`` shows, 0…9. Nothing is random."""
    return split(load_digits().target)


def split(all_of_them: NDArray) -> tuple[NDArray, NDArray]:
    """Return the entries for training and those held out, in the order that is the same for every spec."""
    rng = np.random.Generator(np.random.Philox(key=derive_seed(0, "data", "digits", "split")))
    order = rng.permutation(len(all_of_them))
    n_train = int(TRAIN_SHARE * len(all_of_them))
    return all_of_them[order[:n_train]], all_of_them[order[n_train:]]


def class_means(images: NDArray, side: int) -> NDArray[np.float64]:
    """Return the ten digits' means over training images [n, 8, 8], pooled and in 0…1: [10, side²]."""
    labels = split_labels()[0]
    means = np.stack([images[labels == digit].mean(axis=0) for digit in range(10)])
    return area_pool(means / GREY_LEVELS, side).reshape(10, -1)


def draw(spec: Digits, rng: np.random.Generator) -> RawData:
    """Return dequantised, pooled digits with values in about 0…1.

    The images are split before anything else, so no held-out row shows a training image.
    """
    train, held_out = split_images()
    modes = class_means(train, spec.side) if spec.class_means else None
    if spec.digit is not None:
        train, held_out = (
            images[labels == spec.digit] for images, labels in zip((train, held_out), split_labels(), strict=True)
        )
    train = chosen(train, spec)
    settings = (spec.side, GREY_LEVELS, spec.dequantisation, rng)
    return RawData(
        train=image_rows(train, spec.n_train, *settings),
        held_out=image_rows(held_out, spec.n_held_out, *settings),
        source="Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, "
        "https://archive.ics.uci.edu/dataset/80; its test set, as contained in scikit-learn",
        licence="CC BY 4.0",
        dequantisation=describe_dequantisation(spec.dequantisation, GREY_LEVELS, train.shape[-1]),
        n_images=min(len(train), spec.n_train),
        modes=modes,
        images=distinct_rows(train, spec.n_train, spec.side, GREY_LEVELS),
    )
