"""Files that data are made from and that dmdpipe does not bring along: fetched before the steps that read them.

Steps open no connection, so that they can run where there is no network, as on many a cluster's nodes.
"""

from __future__ import annotations

import http.client
import os
import tempfile
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dmdpipe.data import fashion
from dmdpipe.errors import UserError

if TYPE_CHECKING:
    from dmdpipe.specs.data import DataSpec

MIRRORS = (
    "file:///usr/share/datasets/fashion-mnist/",  # Debian's package dataset-fashion-mnist
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
TIMEOUT_S = 60


def files_to_fetch(spec: DataSpec) -> list[Path]:
    """Return the files that making these data reads and that ``fetch`` gets; none where the user names a folder."""
    if spec.family != "fashion" or os.environ.get(fashion.FOLDER_VARIABLE):
        return []
    names = [fashion.TRAIN_FILE, fashion.HELD_OUT_FILE, *(fashion.LABEL_FILES if spec.labels else ())]
    return [fashion.FOLDER / f"{name}.gz" for name in names if not (fashion.FOLDER / name).is_file()]


def fetch(target: Path) -> None:
    """Fetch one of ``files_to_fetch`` from the first mirror that has the right one, if it isn't there already.

    The file gets its name only after its content was checked, so an interrupted download leaves nothing behind that
    could be mistaken for it, and two processes may do this at once.

    Raises:
        UserError: if no mirror has the published file.
    """
    name = target.stem
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        with suppress(UserError):
            fashion.read_checked(target, name)
            return
    failures = []
    for mirror in MIRRORS:
        url = f"{mirror}{target.name}"
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            part = Path(folder) / target.name
            try:
                with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
                    part.write_bytes(response.read(fashion.MAX_BYTES))
                fashion.read_checked(part, name)
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{url}: {error}")
            except UserError as error:
                failures.append(f"{url}: {str(error).removeprefix(f'{part} ')}")
            else:
                part.replace(target)
                return
    raise UserError(
        f"{target} cannot be fetched ({'; '.join(failures)}): install Debian's dataset-fashion-mnist, or put "
        f"{fashion.TRAIN_FILE}.gz and {fashion.HELD_OUT_FILE}.gz (and for labels "
        f"{' and '.join(f'{name}.gz' for name in fashion.LABEL_FILES)}) into {target.parent} or the folder named by "
        f"{fashion.FOLDER_VARIABLE}"
    )
