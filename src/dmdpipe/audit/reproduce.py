"""Whether a step, run again from its manifest and its parents alone, gives the same bytes, and if not, why."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmdpipe.artifacts.manifest import FILE_NAME, Manifest, read_manifest
from dmdpipe.audit.differences import code_differences, environment_differences, few
from dmdpipe.audit.rerun import check_intact, rerun
from dmdpipe.audit.tree import Artifact, read_artifact, step_folders
from dmdpipe.errors import UserError


@dataclass(frozen=True)
class Reproduction:
    """What became of a rerun. Each difference is between the recorded step and the rerun.

    Attributes:
        folder: the step's folder below the root of the results.
        files: the payload files that differ, or that only one of the two has.
        parents: the roles whose parent is no longer the recorded one.
        code: the definitions whose code changed, as ``code: distill/dmd.py::dm_gradient changed``.
        environment: what differs in the environment class or its lock, as ``field: recorded → now``.
        failure: why the rerun gave nothing; None if it ran to its end.
    """

    folder: str
    files: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    failure: str | None = None

    @property
    def reproduced(self) -> bool:
        """Whether every byte and the result digest are the recorded ones."""
        return not (self.files or self.parents or self.failure)

    @property
    def outcome(self) -> str:
        """One line: ``reproduced bitwise``, or what differs; and what changed since."""
        if self.failure:
            return self.failure
        found = "reproduced bitwise"
        if not self.reproduced:
            groups = {"file": self.files, "parent not the recorded one:": self.parents}
            found = "differs: " + "; ".join(f"{what} {', '.join(names)}" for what, names in groups.items() if names)
        since = [few(list(self.code))] if self.code else []
        since += [f"environment: {few(list(self.environment))}"] if self.environment else []
        return f"{found} ({'; '.join(since)})" if since else found

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        return {**asdict(self), "reproduced": self.reproduced, "outcome": self.outcome}


def reproduce(artifact: Artifact, scratch: Path) -> Reproduction:
    """Run a step again below ``scratch``, an empty folder, and compare what comes out with the artifact.

    Raises:
        UserError: if the artifact or a parent is damaged; a rerun that fails is an outcome.
    """
    check_intact(artifact)
    try:
        folder = rerun(artifact, scratch)
    except UserError as error:
        return Reproduction(artifact.folder, failure=str(error))
    return compare(artifact.folder, artifact.manifest, read_manifest(folder / FILE_NAME))


def compare(folder: str, recorded: Manifest, now: Manifest) -> Reproduction:
    """Return how the manifest of a rerun differs from the recorded one of the step in ``folder``."""
    before, after = recorded.provenance, now.provenance
    locks = [f"locks: {before.environment_lock[:12]} → {after.environment_lock[:12]}"]
    return Reproduction(
        folder,
        files=_differing(recorded.result.payload, now.result.payload),
        parents=_differing(recorded.result.parents, now.result.parents),
        code=tuple(code_differences(before.modules, after.modules)),
        environment=(
            *environment_differences(before.environment, after.environment),
            *(locks if before.environment_lock != after.environment_lock else []),
        ),
    )


def sample_steps(results: Path, count: int, seed: int) -> list[Artifact]:
    """Return ``count`` random steps of a tree, or all if it has fewer; every stage once before any stage again.

    Raises:
        UserError: if the tree has no step, or a chosen one has a damaged manifest.
    """
    generator = random.Random(seed)
    by_stage: dict[str, list[str]] = {}
    for folder in step_folders(results):
        by_stage.setdefault(folder.partition("/")[0], []).append(folder)
    if not by_stage:
        raise UserError(f"{results}: holds no artifact; run ./run first, or name the results with --results")
    for folders in by_stage.values():
        generator.shuffle(folders)
    chosen: list[str] = []
    while len(chosen) < count and any(by_stage.values()):
        stages = [stage for stage, folders in by_stage.items() if folders]
        generator.shuffle(stages)
        chosen += [by_stage[stage].pop() for stage in stages[: count - len(chosen)]]
    return [read_artifact(results / folder) for folder in chosen]


def scratch_folder() -> Path:
    """Make and return an empty folder for reruns, where temporary files go."""
    return Path(tempfile.mkdtemp(prefix="dmdpipe-rerun-"))


def _differing(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(key for key in {*recorded, *now} if recorded.get(key) != now.get(key)))
