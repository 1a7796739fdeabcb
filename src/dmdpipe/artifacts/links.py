"""Links that a stranger left in a tree of results: nothing is written or deleted through them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dmdpipe.errors import UserError


def refuse_links(root: Path) -> None:
    """Check that below ``root``, which may be a link itself, there are only folders and ordinary files.

    Raises:
        UserError: naming the first symbolic link, pipe, socket or device, if it can be read at all.
    """
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except FileNotFoundError:  # a step that another run has just ended
            continue
        except OSError as error:
            raise UserError(f"{folder}: cannot be read ({error.strerror}); see to it and run again") from None
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):
                raise _irregular(Path(entry.path))


def refuse_links_on_the_way(root: Path, path: Path) -> None:
    """Check that what exists of ``path``, and of its parents below ``root``, is a folder or an ordinary file.

    Raises:
        UserError: naming the first that is not.
    """
    here = root
    for part in path.relative_to(root).parts:
        here = here / part
        try:
            mode = here.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise _irregular(here)


def _irregular(path: Path) -> UserError:
    kind = "is a link" if path.is_symlink() else "is neither a folder nor an ordinary file"
    return UserError(f"{path}: {kind}, which no run of ours makes; remove it and run again")
