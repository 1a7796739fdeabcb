"""Opening files that a stranger may have put there: only ordinary ones, and never more of them than is meant."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_ordinary(path: Path) -> BufferedReader:
    """Open an ordinary file for reading; never waits, as a pipe would make it.

    Raises:
        OSError: if it cannot be opened, or is a link, a folder, a pipe, a socket or a device.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    return os.fdopen(descriptor, "rb")


def read_ordinary(path: Path, largest: int) -> bytes:
    """Return the content of an ordinary file of at most ``largest`` bytes.

    Raises:
        OSError: as ``open_ordinary``, or if it is larger.
    """
    with open_ordinary(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise OSError(errno.EFBIG, f"it has {size} bytes, more than the {largest} that it may have", str(path))
        return file.read(largest)
