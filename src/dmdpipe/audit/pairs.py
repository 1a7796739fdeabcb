"""Two trees of results, folder by folder: what the two artifacts of one folder hold, byte for byte or how far apart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dmdpipe.artifacts.checked import inside, read_bytes
from dmdpipe.artifacts.manifest import FILE_NAME, RUN_FILE_NAME
from dmdpipe.artifacts.stages import STAGES
from dmdpipe.audit.comparisons import Comparison, compare_files, different
from dmdpipe.audit.differences import environment_differences, few, spec_differences
from dmdpipe.audit.tree import Artifact, read_artifact
from dmdpipe.errors import UserError

LARGEST_FILE = 2**31
# From what a run elsewhere can be held to most strictly to least.
STRICTNESS = ("bitwise", "tolerance", "statistical")


@dataclass(frozen=True)
class Pair:
    """The two artifacts of one folder, and how their files compare.

    Attributes:
        folder: below the root of both results.
        a: the artifact in A.
        b: the artifact in B.
        files: a comparison for each file of either, by name.
        damage: one line for each file that is not what its manifest says.
    """

    folder: str
    a: Artifact
    b: Artifact
    files: tuple[Comparison, ...]
    damage: tuple[str, ...]

    @property
    def stage(self) -> str:
        """The stage of A's artifact."""
        return self.a.manifest.result.stage

    @property
    def identical(self) -> bool:
        """Whether all files are the same bytes."""
        return all(file.identical for file in self.files)

    @property
    def within_tolerance(self) -> bool:
        """Whether no file differs by more than rounding."""
        return all(file.within_tolerance for file in self.files)

    @property
    def largest(self) -> Comparison | None:
        """The file with the largest difference; one with equal content if there is none; None if all are identical."""
        changed = [file for file in self.files if not file.identical]
        return max(changed, key=lambda file: file.largest.excess if file.largest else 0, default=None)

    @cached_property
    def spec_change(self) -> str:
        """What ``spec_change`` says of the two."""
        return spec_change(self.a, self.b)

    @property
    def equality(self) -> str:
        """What the step can be held to, given the same inputs; neither manifest can claim less than the stage does."""
        claims = [side.manifest.provenance.equality.kind for side in (self.a, self.b)]
        return min([*claims, STAGES[self.stage].equality.kind], key=STRICTNESS.index)

    @property
    def changed_parents(self) -> dict[str, str]:
        """The folders of the parents of A's artifact whose results are not those of B's, by role."""
        parents = [side.manifest.result.parents for side in (self.a, self.b)]
        return {role: parent.folder for role, parent in parents[0].items() if parents[1].get(role) != parent}

    @cached_property
    def circumstances(self) -> str:
        """What differs between the two runs of the step: environment, code, inputs."""
        a, b = self.a.manifest.provenance, self.b.manifest.provenance
        found = [f"environment: {change}" for change in environment_differences(a.environment, b.environment)]
        if a.environment_lock != b.environment_lock:
            found.append("another lock file")
        if a.code != b.code:
            found.append("other code")
        if roles := sorted(self.changed_parents):
            inputs = ", ".join(roles) if len(roles) <= 4 else f"{len(roles)} of {len(self.a.manifest.result.parents)}"
            found.append(f"other inputs: {inputs}")
        return "; ".join(found) or "same code, environment and inputs, which should give the same bytes"


def spec_change(a: Artifact, b: Artifact) -> str:
    """Return what differs between two artifacts' specs, ``cells.3.seed: 0 → 1``; empty if nothing does."""
    x, y = ({"stage": side.manifest.result.stage, **side.manifest.result.spec} for side in (a, b))
    return few(spec_differences(x, y), 1)


def read_pair(a: Path, b: Path, folder: str) -> Pair:
    """Return the pair of the artifacts in one folder of two trees, their files compared; memory for two files at most.

    Every file is read, whatever the manifests say.

    Raises:
        UserError: if a manifest is damaged.
    """
    artifacts = [_read_side(side, root, folder) for side, root in (("A", a), ("B", b))]
    names = {name for artifact in artifacts for name in (*artifact.manifest.result.payload, *_names(artifact.path))}
    damage: list[str] = []
    files = tuple(_compare(artifacts, name, damage) for name in sorted(names))
    return Pair(folder, artifacts[0], artifacts[1], files, tuple(damage))


def _read_side(side: str, root: Path, folder: str) -> Artifact:
    try:
        return read_artifact(root / folder)
    except UserError as error:
        raise UserError(f"{side}: {error}") from None


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()} - {FILE_NAME, RUN_FILE_NAME}


def _compare(artifacts: list[Artifact], name: str, damage: list[str]) -> Comparison:
    paths: list[Path] = []
    digests: list[str] = []
    for side, artifact in zip("AB", artifacts, strict=True):
        described = artifact.manifest.result.payload.get(name)
        try:
            path = inside(artifact.path, name)
            digest = _sha256(path)
        except UserError as error:
            damage.append(f"{side}: {error}")
            continue
        if digest is None and described is not None:
            damage.append(f"{side}: {name} is missing")
        elif digest is not None and described is None:
            damage.append(f"{side}: the manifest lists no {name}")
        elif digest is not None and described is not None and digest != described.sha256:
            damage.append(f"{side}: {name} was changed after it was made")
        if digest is not None:
            paths.append(path)
            digests.append(digest)
    if len(paths) < 2:
        return different(name, "not a file on both sides")
    if digests[0] == digests[1]:
        return Comparison(name, identical=True)
    if max(path.stat().st_size for path in paths) > LARGEST_FILE:
        return different(name, f"other bytes, and too large to look inside (more than {LARGEST_FILE} bytes)")
    return compare_files(name, read_bytes(paths[0], LARGEST_FILE), read_bytes(paths[1], LARGEST_FILE))


def _sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file, None if there is none; raises UserError if it cannot be read."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
