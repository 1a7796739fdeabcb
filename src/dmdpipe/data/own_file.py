"""Data of the user's own: found by the name that config.yaml gives them, known by their checksum."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.errors import UserError, did_you_mean
from dmdpipe.files import read_ordinary
from dmdpipe.seeds import derive_seed
from dmdpipe.specs.config import CONFIG_FOLDER
from dmdpipe.specs.problems import parse, read_yaml
from dmdpipe.specs.study import Config

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmdpipe.specs.data import OwnImages, OwnVectors

LARGEST_SIDE = 4_096  # pixels of a PNG: a small file may claim any number of them
TRAIN_SHARE = 0.8
FEWEST = 3
ARRAYS = (".npy", ".npz")


def load_own(spec: OwnImages | OwnVectors) -> NDArray:
    """Return the array of a user's file, checked: [n, h, w], [n, h, w, 3] or [n, d]; uint8 or finite floats.

    Raises:
        UserError: if config.yaml does not name the file, its checksum is not the spec's, or it is no such array.
    """
    path = own_path(spec.name)
    parts = _read_parts(path)
    actual = checksum(parts, is_folder=path.is_dir())
    if spec.sha256 is None:
        raise UserError(f"data.sha256: missing; that of {path} is {actual}: put it into the study")
    if spec.sha256 != actual:
        raise UserError(
            f"data.sha256: {path} is other data: its sha256 is {actual}, the study says {spec.sha256};"
            " put the file back, or the new checksum into the study"
        )
    if path.is_dir():
        return _stacked([(path / name, _pixels(data, path / name)) for name, data in parts.items()])
    return array_in(parts[path.name], path)


def own_path(name: str) -> Path:
    """Return where ``own_data`` in config.yaml says that the data of this name lie.

    Raises:
        UserError: if it names none, or nothing is there.
    """
    source = CONFIG_FOLDER / "config.yaml"
    known = parse(Config, read_yaml(source), str(source)).own_data
    if name not in known:
        raise UserError(
            f"{source}: own_data: there is no '{name}'{did_you_mean(name, known)}; say there where the data lie"
        )
    path = Path(known[name])
    if not path.exists():
        raise UserError(f"{source}: own_data.{name}: {path} does not exist; correct the path")
    return path.resolve()


def checksum(parts: dict[str, bytes], *, is_folder: bool) -> str:
    """Return the SHA-256 of a file, or of a folder: of what ``LC_ALL=C sha256sum *.png`` prints there."""
    if not is_folder:
        (data,) = parts.values()
        return hashlib.sha256(data).hexdigest()
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in parts.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_parts(path: Path) -> dict[str, bytes]:
    """Return the content of a file, or of a folder's PNG files in the order of their names' bytes."""
    names = [path]
    if path.is_dir():
        names = sorted((p for p in path.glob("*.png") if p.name[0] != "."), key=lambda p: p.name.encode())
        if not names:
            raise UserError(f"{path}: has no file that ends in .png; put the images there, not below")
    elif path.suffix not in ARRAYS:
        raise UserError(f"{path}: own data are a folder of .png files, or one .npy or .npz file; convert it")
    try:
        return {name.name: read_whole(name) for name in names}
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read ({error.strerror})") from None


def read_whole(path: Path) -> bytes:
    """Return the content of an ordinary file of any size.

    Raises:
        OSError: if it cannot be read, or is a link, a folder, a pipe or a device.
    """
    # Its own size as the bound: a reader takes memory for as much as it is allowed.
    return read_ordinary(path, path.lstat().st_size)


def array_in(data: bytes, where: Path) -> NDArray:
    """Return the one array of a .npy or .npz file: uint8 or finite floats; nothing is unpickled.

    Raises:
        UserError: if the bytes are no such file, hold several arrays, or other numbers.
    """
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            if len(loaded.files) != 1:
                held = ", ".join(loaded.files[:5]) or "none"
                raise UserError(f"{where}: holds {len(loaded.files)} arrays ({held}); save the one that is meant alone")
            loaded = loaded[loaded.files[0]]
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: is no .npy or .npz file of plain numbers ({reason}); save it anew") from None
    array = np.asarray(loaded)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UserError(f"{where}: holds numbers of type {array.dtype}; convert them to uint8 or floats")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(f"{where}: holds numbers that are not finite; mend or drop those rows")
    return array


def _pixels(data: bytes, where: Path) -> NDArray[np.uint8]:
    """Return the pixels of a PNG file: [h, w] if it is grey, [h, w, 3] if it has colours."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if max(image.size) > LARGEST_SIDE:
                raise UserError(f"{where}: has {image.size[0]}x{image.size[1]} pixels; make it smaller")
            if image.mode not in ("L", "RGB"):
                raise UserError(f"{where}: its mode is {image.mode}; convert it to 8-bit grey (L) or colour (RGB)")
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError, zlib.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: is no PNG image ({reason}); replace it") from None


def _stacked(images: list[tuple[Path, NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    (first, pixels), *others = images
    for path, other in others:
        if other.shape != pixels.shape:
            raise UserError(f"{path}: has shape {other.shape}, but {first.name} has {pixels.shape}; make them alike")
    return np.stack([pixels for _, pixels in images])


def split(rows: NDArray, where: str) -> tuple[NDArray, NDArray]:
    """Return four fifths of the entries for training and the rest to hold out, in an order that depends on n alone.

    Raises:
        UserError: if there are fewer than three.
    """
    if len(rows) < FEWEST:
        raise UserError(f"{where}: {len(rows)} are too few; give {FEWEST} or more")
    rng = np.random.Generator(np.random.Philox(key=derive_seed(0, "data", "own", "split")))
    order = rng.permutation(len(rows))
    n_train = int(TRAIN_SHARE * len(rows))
    return rows[order[:n_train]], rows[order[n_train:]]
