"""A small archive that reruns one step on another machine, without Snakemake and without the checkout."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

from dmdpipe.artifacts.checked import json_text, read_bytes
from dmdpipe.artifacts.environment import PACKAGE
from dmdpipe.artifacts.manifest import FILE_NAME, read_payload
from dmdpipe.artifacts.stages import find_stage
from dmdpipe.audit.bundled_rerun import CONTENTS
from dmdpipe.audit.rerun import check_intact, parents_of
from dmdpipe.audit.tree import Artifact
from dmdpipe.errors import UserError

README = """# One step of dmdpipe, to be rerun

Step: `{folder}` (stage `{stage}`), recorded in: {environment}.
{code}
This archive holds the step's manifest, its parents with their files, the sources, and the locks of the environment.

Needed: Linux or macOS, Python 3.11 to 3.13, and the locked packages, for example in a new virtual environment:

    python -m pip install --no-deps --require-hashes -r envs/base.txt
    python -m pip install --no-deps --require-hashes -r envs/torch-cpu.txt --extra-index-url INDEX

INDEX is PyTorch's own index for CPU. For a step that was recorded on a GPU take `envs/torch-cuda.txt`, without INDEX.

Run: `python rerun.py`. It checks the SHA-256 of every file here, runs the step in a scratch folder, and compares.

- `reproduced bitwise`, exit status 0: every byte that the step writes is the recorded one.
- `differs: file …`, exit status 1: these files came out otherwise. What changed since, if anything, follows in
  brackets; with another instruction set, device or library version, equal bytes are not promised.
- a line that names a file, exit status 1: the archive was changed after it was packed; nothing was run.
"""
AS_RECORDED = "The sources are those that made it."
NEWER = "The sources are NOT those that made it but newer ones (packed with --today)."


def write_bundle(artifact: Artifact, archive: Path, checkout: Path = Path(), today: bool = False) -> None:
    """Write a ``.tar.gz`` from which ``artifact`` can be rerun; the same artifact and sources give the same bytes.

    Args:
        artifact: the step.
        archive: the file to write.
        checkout: where ``envs`` and ``reports`` lie.
        today: pack today's code even if it is not the step's.

    Raises:
        UserError: if the artifact or a parent is damaged, if its code is no longer what is on disk (unless ``today``),
            if its notebook is not, or if the archive cannot be written.
    """
    check_intact(artifact)
    stage = find_stage(artifact.manifest.result.stage)
    spec = stage.parse(artifact.manifest.result.spec)
    newer = stage.code(spec).digest != artifact.manifest.provenance.code
    if newer and not today:
        raise UserError(
            f"{artifact.path}: its code was edited since; check out the commit that made it, or add --today"
        )
    files = _packed(artifact, checkout)
    files["README.md"] = README.format(
        folder=artifact.folder,
        stage=stage.name,
        environment=artifact.manifest.provenance.environment.name,
        code=NEWER if newer else AS_RECORDED,
    ).encode()
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[CONTENTS] = json_text({"step": artifact.folder, "today": newer, "files": sums}).encode()
    _write_archive(archive, bundle_name(artifact), files)


def bundle_name(artifact: Artifact) -> str:
    """Return the name of the bundle's folder, and of its archive without ``.tar.gz``."""
    return artifact.folder.replace("/", "_")


def _packed(artifact: Artifact, checkout: Path) -> dict[str, bytes]:
    """Return the content of every file by its path in the bundle, apart from the README and the list of contents."""
    results = {f"{artifact.folder}/{FILE_NAME}": read_bytes(artifact.path / FILE_NAME)}
    for role, parent in parents_of(artifact).items():
        folder = artifact.manifest.result.parents[role].folder
        results[f"{folder}/{FILE_NAME}"] = read_bytes(artifact.results / folder / FILE_NAME)
        for name, described in parent.result.payload.items():
            results[f"{folder}/{name}"] = read_payload(artifact.results / folder, name, described)
    files = {f"results/{path}": content for path, content in results.items()}
    for source in (path for pattern in ("*.py", "*.c", "*.h") for path in PACKAGE.rglob(pattern)):
        files[f"src/{PACKAGE.name}/{source.relative_to(PACKAGE).as_posix()}"] = read_bytes(source)
    # Where code digests look for a rule's script: it counts as code.
    script = f"workflow/scripts/{artifact.manifest.result.stage}.py"
    files[script] = read_bytes(PACKAGE.parents[1] / script)
    for lock in (checkout / "envs").glob("*.txt"):
        files[f"envs/{lock.name}"] = read_bytes(lock)
    files |= _notebook(artifact, checkout)
    files["rerun.py"] = read_bytes(PACKAGE / "audit" / "bundled_rerun.py")
    return files


def _notebook(artifact: Artifact, checkout: Path) -> dict[str, bytes]:
    result = artifact.manifest.result
    if result.stage != "figures":
        return {}
    name = f"reports/{result.spec['notebook']}.ipynb"
    content = read_bytes(checkout / name)
    if hashlib.sha256(content).hexdigest() != result.spec["source_sha256"]:
        raise UserError(f"{checkout / name}: is not the notebook of {artifact.path}; check out the commit that made it")
    return {name: content}


def _write_archive(archive: Path, top: str, files: dict[str, bytes]) -> None:
    if archive.is_dir():
        raise UserError(f"{archive}: is a folder; name a file with --output, e.g. {archive / top}.tar.gz")
    temporary = archive.with_name(f".{archive.name}-{os.getpid()}")
    try:
        with (
            temporary.open("wb") as raw,
            gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name, content in sorted(files.items()):
                entry = tarfile.TarInfo(f"{top}/{name}")  # owner 0, mode 644, time 0
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        os.replace(temporary, archive)
    except OSError as error:
        raise UserError(f"{archive}: cannot be written ({error.strerror}); name another file with --output") from None
    finally:
        temporary.unlink(missing_ok=True)
