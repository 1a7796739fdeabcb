"""Fashion-MNIST, from files that ``dmdpipe.data.fetching`` or the user put here; checked byte by byte."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.data.images import chosen, describe_dequantisation, distinct_rows, image_rows
from dmdpipe.data.raw import RawData
from dmdpipe.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmdpipe.specs.data import Fashion

GREY_LEVELS = 256
TRAIN_FILE = "train-images-idx3-ubyte"
HELD_OUT_FILE = "t10k-images-idx3-ubyte"
LABEL_FILES = "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"
CLASSES = 10

# Of the decompressed bytes: the gz files differ from source to source.
SHA256 = {
    TRAIN_FILE: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    HELD_OUT_FILE: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    LABEL_FILES[0]: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    LABEL_FILES[1]: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

FOLDER_VARIABLE = "DMDPIPE_FASHION_MNIST"
FOLDER = Path("data/fashion-mnist")

_IDX_IMAGES_MAGIC = 0x00000803
_IDX_HEADER_BYTES = 16
_IDX_LABELS_MAGIC = 0x00000801
_IDX_LABELS_HEADER_BYTES = 8
MAX_BYTES = 2**26  # no file of the set is larger, compressed or not; a bound on what a wrong one can cost


def draw(spec: Fashion, rng: np.random.Generator) -> RawData:
    """Return dequantised, pooled Fashion-MNIST with values in about 0…1.

    ``train`` is from the 60,000 training images, ``held_out`` from the 10,000 test images, in random order.

    Raises:
        UserError: if a file is missing or damaged (see ``load_images``).
    """
    train, held_out = in_random_order(load_images(TRAIN_FILE), load_images(HELD_OUT_FILE), rng)
    train = chosen(train, spec)
    settings = (spec.side, GREY_LEVELS, spec.dequantisation, rng)
    return RawData(
        train=image_rows(train, spec.n_train, *settings),
        held_out=image_rows(held_out, spec.n_held_out, *settings),
        source="Xiao, Rasul and Vollgraf (2017), Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist",
        licence="MIT",
        dequantisation=describe_dequantisation(spec.dequantisation, GREY_LEVELS, train.shape[-1]),
        n_images=min(len(train), spec.n_train),
        images=distinct_rows(train, spec.n_train, spec.side, GREY_LEVELS),
    )


def in_random_order(train: NDArray, held_out: NDArray, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Return the entries of both sets in an order that depends on the stream alone, and on how many there are."""
    return train[rng.permutation(len(train))], held_out[rng.permutation(len(held_out))]


def split_labels(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the class of each image, 0…9, in the order of ``draw``, from a stream at its beginning.

    Raises:
        UserError: as ``load_images``.
    """
    train, held_out = (read_checked(_find(name), name) for name in LABEL_FILES)
    return in_random_order(train, held_out, rng)


def load_images(name: str) -> NDArray[np.uint8]:
    """Return the images [n, size, size] of one file of the set, ``TRAIN_FILE`` or ``HELD_OUT_FILE``.

    The file is looked for, plain or as .gz, in the folder that the environment variable DMDPIPE_FASHION_MNIST
    names or, where that is not set, in ./data/fashion-mnist.

    Raises:
        UserError: if the folder named is missing, if the file is not there, if it is no idx file of images, or if its
            decompressed bytes are not those published.
    """
    return read_checked(_find(name), name)


def _find(name: str) -> Path:
    """Return the path of a file on this machine."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    folder = Path(chosen) if chosen else FOLDER
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    if not chosen:
        raise UserError(f"{folder} has no {name}.gz: ./run fetches it where there is a network, or put it there")
    if not folder.is_dir():
        raise UserError(f"{FOLDER_VARIABLE} names {chosen}, which is not a folder: correct or unset the variable")
    raise UserError(f"{chosen} (from {FOLDER_VARIABLE}) has no {name}.gz: put it there or unset the variable")


def read_checked(path: Path, name: str) -> NDArray[np.uint8]:
    """Return the images [n, size, size] or labels [n] of a file, its header and checksum checked; raises as above."""
    payload = _read_decompressed(path)
    entries = (parse_idx_labels if name in LABEL_FILES else parse_idx_images)(payload, path)
    actual = hashlib.sha256(payload).hexdigest()
    if actual != SHA256[name]:
        raise UserError(
            f"{path} is damaged or another file: sha256 of its decompressed bytes should be {SHA256[name]} "
            f"but is {actual}; delete it or replace it"
        )
    return entries


def _read_decompressed(path: Path) -> bytes:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(MAX_BYTES)
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it or replace it") from None


def parse_idx_images(payload: bytes, path: Path) -> NDArray[np.uint8]:
    """Return square images [n, size, size] from the bytes of an idx3-ubyte file, whatever they claim.

    Args:
        payload: the decompressed bytes.
        path: the file that they are from, for error messages.

    Raises:
        UserError: if the header is not that of 8-bit square images, or does not fit the number of bytes.
    """
    magic, n, height, width = (
        int.from_bytes(payload[start : start + 4], "big") for start in range(0, _IDX_HEADER_BYTES, 4)
    )
    if len(payload) < _IDX_HEADER_BYTES or magic != _IDX_IMAGES_MAGIC:
        raise UserError(f"{path} is not an idx file of images (it starts with {payload[:4]!r}): replace it")
    if height != width or n * height * width != len(payload) - _IDX_HEADER_BYTES or n * height == 0:
        raise UserError(
            f"{path} claims {n} images of {height}x{width} but has {len(payload) - _IDX_HEADER_BYTES} bytes "
            "of pixels: replace it"
        )
    return np.frombuffer(payload, np.uint8, offset=_IDX_HEADER_BYTES).reshape(n, height, width)


def parse_idx_labels(payload: bytes, path: Path) -> NDArray[np.uint8]:
    """Return labels [n], 0…9, from the bytes of an idx1-ubyte file, whatever they claim.

    Args:
        payload: the decompressed bytes.
        path: the file that they are from, for error messages.

    Raises:
        UserError: if the header is not that of 8-bit labels, does not fit the number of bytes, or a label is above 9.
    """
    magic, n = (int.from_bytes(payload[start : start + 4], "big") for start in (0, 4))
    labels = np.frombuffer(payload[_IDX_LABELS_HEADER_BYTES:], np.uint8)
    if len(payload) < _IDX_LABELS_HEADER_BYTES or magic != _IDX_LABELS_MAGIC or n != len(labels) or not n:
        raise UserError(f"{path} is not an idx file of labels (it starts with {payload[:4]!r}): replace it")
    if labels.max() >= CLASSES:
        raise UserError(f"{path} has a label {labels.max()}, but classes are 0 to {CLASSES - 1}: replace it")
    return labels
