"""A tree of results as it lies on disk: its steps, and every file in it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmdpipe.artifacts.checked import one_line, read_bytes
from dmdpipe.artifacts.manifest import FILE_NAME, RUN_FILE_NAME, Manifest, read_manifest, read_payload
from dmdpipe.artifacts.stages import STAGES
from dmdpipe.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Artifact:
    """What one step made: a folder whose manifest is whole. Its payload is not yet checked.

    Attributes:
        results: the root of the results.
        folder: the step's folder below it.
        manifest: its manifest, its own digests checked.
    """

    results: Path
    folder: str
    manifest: Manifest

    @property
    def path(self) -> Path:
        """The step's folder."""
        return self.results / self.folder

    def read(self, name: str) -> bytes:
        """Return a payload file's content.

        Raises:
            UserError: if the manifest lists no such file, or the file is not the one that it describes.
        """
        described = self.manifest.result.payload.get(name)
        if described is None:
            raise UserError(f"{self.path}: its manifest lists no file {one_line(name)!r}")
        return read_payload(self.path, name, described)

    def run_facts(self) -> dict[str, Any]:
        """Return what run.json says: when, where, how long. It is outside every promise; empty if it is no JSON."""
        try:
            facts = json.loads(read_bytes(self.path / RUN_FILE_NAME))
        except (UserError, ValueError, RecursionError):
            return {}
        return facts if isinstance(facts, dict) else {}


def read_artifact(path: Path) -> Artifact:
    """Return the artifact at ``path``: a step's folder, its manifest, or any other file in it.

    Raises:
        UserError: if there is none, or its manifest is damaged.
    """
    folder = path if path.is_dir() else path.parent
    if not os.path.lexists(folder / FILE_NAME):
        raise UserError(f"{path}: is no artifact; name a folder with a {FILE_NAME}, or a file in one")
    manifest = read_manifest(folder / FILE_NAME)
    if path != folder and not os.path.lexists(path) and path.name not in manifest.result.payload:
        raise UserError(f"{path}: there is no such file, and the manifest beside it lists none")
    if manifest.result.stage not in STAGES:
        raise UserError(f"{folder / FILE_NAME}: of a stage '{one_line(manifest.result.stage)}' that is not known here")
    results = results_above(folder, STAGES[manifest.result.stage].folder)
    return Artifact(results, Path(os.path.abspath(folder)).relative_to(results).as_posix(), manifest)


def read_table(path: Path, columns: Collection[str] = ()) -> pd.DataFrame:
    """Return a parquet or CSV table of the results, as its step made it.

    Args:
        path: a file in the folder of a step.
        columns: those that it must have.

    Raises:
        UserError: if the file is not the one that the manifest beside it describes, or is damaged.
    """
    import pandas as pd

    from dmdpipe.artifacts.tables import decode_table

    data = read_artifact(path).read(path.name)
    if path.suffix == ".csv":
        try:
            table = pd.read_csv(io.BytesIO(data))
        except ValueError as error:
            raise UserError(f"{path}: is damaged ({' '.join(str(error).split())}); delete it and run again") from None
    else:
        table = decode_table(data, str(path))
    if missing := [column for column in columns if column not in table]:
        raise UserError(f"{path}: has no column '{missing[0]}'; delete it and run again")
    return table


def results_above(folder: Path, stage_folder: str) -> Path:
    """Return the root of the results in which ``folder`` lies below the folder of its stage.

    Raises:
        UserError: if it lies in no such folder.
    """
    for parent in Path(os.path.abspath(folder)).parents:
        if parent.name == stage_folder:
            return parent.parent
    raise UserError(f"{folder}: does not lie in a folder '{stage_folder}/', where steps of its kind belong")


def step_folders(results: Path) -> list[str]:
    """Return every folder with a manifest below the root of the results, sorted; links are not followed.

    Raises:
        UserError: if a folder cannot be read: what is in it would go unseen.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise UserError(f"{error.filename}: cannot be read ({error.strerror}); get permission first")

    found = []
    for here, folders, files in os.walk(results, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if FILE_NAME in files:
            found.append(Path(here).relative_to(results).as_posix())
    return sorted(found)
