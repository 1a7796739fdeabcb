"""Models by their name on the Hugging Face hub: the three files of a folder that describe one, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dmdpipe.errors import UserError

# owner/name, a folder in it or not, a revision or not.
NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)((?:/\w[\w.-]*)*)(?:@([\w.-]+))?")
SECONDS_TO_ANSWER = 10
FILE_SUFFIXES = (".safetensors", ".json", ".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt")


def folder_from_hub(path: Path, names: tuple[str, ...]) -> Path:
    """Return the folder, in the hub's own cache on this machine, that holds those files of a model.

    What lies in the cache at the revision that the hub names now, or that ``path`` does, is not fetched again.

    Args:
        path: owner/name, owner/name/folder, or either with @revision: a branch, a tag or a commit.
        names: the files that may be there.

    Raises:
        UserError: if the path is no such name, begins in a folder that is here, or the hub lacks the first file.
    """
    name = NAME.fullmatch(str(path))
    if name is None or path.suffix in FILE_SUFFIXES or Path(path.parts[0]).exists():
        raise UserError(f"{path}: there is no such file or folder")
    repository, below, revision = name[1], name[2].lstrip("/"), name[3]
    try:
        found = _fetched(repository, revision, [str(Path(below, file)) for file in names])
    except Exception as error:
        # Whatever a network brings up, besides the hub's own refusals.
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"{path}: there is no such file or folder, nor did the hub give a model of that name ({reason}); correct"
            " the name, or fetch it where there is a network and give its folder"
        ) from None
    folder = Path(found, below)
    if not (folder / names[0]).is_file():
        raise UserError(f"{path}: has no {names[0]} on the hub; name the folder that has, as in {repository}/unet")
    return folder


def _fetched(repository: str, revision: str | None, files: list[str]) -> str:
    """Return the folder in the cache that holds these files: the hub's, or if it does not answer, those that are there.

    The hub is asked first whether it is there, once and for no longer than ``SECONDS_TO_ANSWER``: the download itself
    would wait for ever, or repeat its question for half a minute.

    Raises:
        Exception: what kept the hub from answering, if the cache has none of them.
    """
    import huggingface_hub

    def download(**options: Any) -> str:
        return huggingface_hub.snapshot_download(repository, allow_patterns=files, **options)

    try:
        commit = huggingface_hub.HfApi().repo_info(repository, revision=revision, timeout=SECONDS_TO_ANSWER).sha
    except Exception as no_answer:
        try:
            return download(revision=revision, local_files_only=True)
        except Exception:
            raise no_answer from None
    return download(revision=commit)
