"""A disk that fails: one line that says where, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmdpipe.errors import UserError

ADVICE = {
    errno.ENOSPC: "the disk is full: free space and run again",
    errno.EDQUOT: "your quota on this disk is used up: free space and run again",
    errno.EFBIG: "the file is larger than may be written here: raise the limit (ulimit -f) and run again",
    errno.EROFS: "the disk is read-only: mount it for writing or work elsewhere, and run again",
    errno.EACCES: "you may not do this here: get permission or work elsewhere, and run again",
    errno.EPERM: "you may not do this here: get permission or work elsewhere, and run again",
    errno.EIO: "the disk fails: check it, then run again",
}


@contextmanager
def failures_told(place: Path) -> Iterator[None]:
    """Turn what a disk can fail with inside the block into one line for the user.

    Args:
        place: what is named if the failure names no file, as a write to an open one.

    Raises:
        UserError: instead of those ``OSError`` that ``ADVICE`` lists; all others pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in ADVICE:
            raise
        raise UserError(f"{error.filename or place}: {ADVICE[error.errno]}") from None
