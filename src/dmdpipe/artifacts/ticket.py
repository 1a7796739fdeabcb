"""Who may publish a step: the job that started last, and nobody once a new run has begun.

A job whose controller was lost, as on a cluster, can end long after another job has made the same step by other code.
It must not put its result in place of the newer one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = ".tickets"


class Ticket:
    """A job's right to publish one step, taken from every job that had it before.

    Args:
        results: the root of the results.
        name: of the step, unique below that root and fit for a file name.
    """

    def __init__(self, results: Path, name: str):
        self._folder = results / FOLDER
        self._path = self._folder / name
        self._number = secrets.token_hex(16).encode()
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{secrets.token_hex(8)}"
        try:
            temporary.write_bytes(self._number)
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)

    @property
    def is_valid(self) -> bool:
        """Whether no other job has taken the step over, and no new run has begun, since."""
        try:
            return self._path.read_bytes() == self._number
        except OSError:
            return False

    @contextmanager
    def publishing(self) -> Iterator[bool]:
        """Say whether the ticket is valid, and let nobody else publish before the block is left."""
        try:
            folder = os.open(self._folder, os.O_RDONLY)
        except FileNotFoundError:
            yield False
            return
        try:
            _lock(folder)
            yield self.is_valid
        finally:
            os.close(folder)

    def give_back(self) -> None:
        """Remove the ticket if it is still this job's."""
        if self.is_valid:
            self._path.unlink(missing_ok=True)


def void_tickets(results: Path) -> None:
    """Take the right to publish from every job below the root of the results; one that is publishing ends that first.

    Args:
        results: the root of the results.
    """
    try:
        folder = os.open(results / FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        _lock(folder)
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):  # just given back
                os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)


def _lock(folder: int) -> None:
    with suppress(OSError):  # on file systems without locks, what a ticket says still holds
        fcntl.flock(folder, fcntl.LOCK_EX)
