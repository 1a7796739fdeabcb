"""Writes that are on the disk completely or not at all."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path


def write_synced(path: Path, data: bytes) -> None:
    """Write a file that must not exist, and wait until the disk has it."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` at once: a reader, also after a crash, sees the old or the new file.

    A link at ``path`` is replaced, never followed.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        write_synced(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's list of files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(new: Path, target: Path) -> None:
    """Move the folder ``new`` to ``target`` on the same file system; what stood at ``target`` is deleted.

    A crash leaves the old folder, the new one, or none: never a mixture. If the move fails, the old one stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    old = new.with_name(f"{new.name}-old")
    with suppress(FileNotFoundError):
        os.rename(target, old)
    try:
        os.rename(new, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.rename(old, target)
        raise
    try:
        sync_folder(target.parent)
    finally:
        shutil.rmtree(old, ignore_errors=True)
