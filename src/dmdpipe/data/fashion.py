"""Fashion-MNIST: found on this machine or downloaded, and checked byte by byte either way."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import tempfile
import urllib.request
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

# Of the decompressed bytes: the gz files differ from source to source.
SHA256 = {
    TRAIN_FILE: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    HELD_OUT_FILE: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
}

FOLDER_VARIABLE = "DMDPIPE_FASHION_MNIST"
DOWNLOAD_FOLDER = Path("data/fashion-mnist")
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
TIMEOUT_S = 60

_IDX_IMAGES_MAGIC = 0x00000803
_IDX_HEADER_BYTES = 16
_MAX_BYTES = 2**26  # no file of the set is larger, compressed or not; a bound on what a wrong one can cost


def draw(spec: Fashion, rng: np.random.Generator) -> RawData:
    """Return dequantised, pooled Fashion-MNIST with values in about 0…1.

    ``train`` is from the 60,000 training images, ``held_out`` from the 10,000 test images, in random order.

    Raises:
        UserError: if a file is missing, damaged or cannot be downloaded (see ``load_images``).
    """
    train, held_out = load_images(TRAIN_FILE), load_images(HELD_OUT_FILE)
    train, held_out = train[rng.permutation(len(train))], held_out[rng.permutation(len(held_out))]
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


def load_images(name: str) -> NDArray[np.uint8]:
    """Return the images [n, size, size] of one file of the set, ``TRAIN_FILE`` or ``HELD_OUT_FILE``.

    The file is looked for, plain or as .gz, in the folder that the environment variable DMDPIPE_FASHION_MNIST
    names or, where that is not set, in ./data/fashion-mnist and in the folder of Debian's package; failing
    these it is downloaded to ./data/fashion-mnist.

    Raises:
        UserError: if the folder named is missing or lacks the file, if the file is no idx file of images or
            its decompressed bytes are not those published, or if no mirror has the file.
    """
    path = _find(name) or _download(name)
    return _read_checked(path, name)


def _find(name: str) -> Path | None:
    """Return the path of a file on this machine, None where it has to be downloaded."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    folders = [Path(chosen)] if chosen else [DOWNLOAD_FOLDER, SYSTEM_FOLDER]
    for path in (folder / file for folder in folders for file in (f"{name}.gz", name)):
        if path.is_file():
            return path
    if chosen and not Path(chosen).is_dir():
        raise UserError(f"{FOLDER_VARIABLE} names {chosen}, which is not a folder: correct or unset the variable")
    if chosen:
        raise UserError(f"{chosen} (from {FOLDER_VARIABLE}) has no {name}.gz: put it there or unset the variable")
    return None


def _read_checked(path: Path, name: str) -> NDArray[np.uint8]:
    """Return the images of a file after checking its header and its checksum."""
    payload = _read_decompressed(path)
    images = parse_idx_images(payload, path)
    actual = hashlib.sha256(payload).hexdigest()
    if actual != SHA256[name]:
        raise UserError(
            f"{path} is damaged or another file: sha256 of its decompressed bytes should be {SHA256[name]} "
            f"but is {actual}; delete it or replace it"
        )
    return images


def _read_decompressed(path: Path) -> bytes:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(_MAX_BYTES)
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


def _download(name: str) -> Path:
    """Fetch a file from the first mirror that has the right one, into the download folder; return its path.

    The file gets its name only after its content was checked, so an interrupted download leaves nothing
    behind that could be mistaken for it, and two processes may do this at once.
    """
    DOWNLOAD_FOLDER.mkdir(parents=True, exist_ok=True)
    target = DOWNLOAD_FOLDER / f"{name}.gz"
    failures = []
    for mirror in MIRRORS:
        url = f"{mirror}{name}.gz"
        with tempfile.TemporaryDirectory(dir=DOWNLOAD_FOLDER, prefix=".download-") as folder:
            part = Path(folder) / target.name
            try:
                with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
                    part.write_bytes(response.read(_MAX_BYTES))
                _read_checked(part, name)
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{url}: {error}")
            except UserError as error:
                failures.append(f"{url}: {str(error).removeprefix(f'{part} ')}")
            else:
                return part.replace(target)
    raise UserError(
        f"Fashion-MNIST cannot be downloaded ({'; '.join(failures)}): install Debian's dataset-fashion-mnist "
        f"or put {TRAIN_FILE}.gz and {HELD_OUT_FILE}.gz into {DOWNLOAD_FOLDER} or the folder named by "
        f"{FOLDER_VARIABLE}"
    )
