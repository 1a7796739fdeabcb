"""Running one step again in a scratch folder, from its manifest and its parents alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from dmdpipe.artifacts.checked import inside, one_line
from dmdpipe.artifacts.environment import ONE_THREAD
from dmdpipe.artifacts.manifest import FILE_NAME, Manifest, read_manifest, verify_payload
from dmdpipe.artifacts.plan import Order, ParentOrder
from dmdpipe.artifacts.portable import ANY_CPU, VARIABLES
from dmdpipe.artifacts.stages import find_stage
from dmdpipe.artifacts.step import run_step
from dmdpipe.audit.tree import Artifact
from dmdpipe.errors import UserError
from dmdpipe.specs.base import canonical_json


def order_of(artifact: Artifact) -> str:
    """Return the canonical order of a step, from its manifest and its parents' alone; its code is today's.

    Raises:
        UserError: if the spec is none of today's, or a parent has no whole manifest.
    """
    result = artifact.manifest.result
    stage = find_stage(result.stage)
    spec = stage.parse(result.spec)
    parents = {
        role: ParentOrder(folder=result.parents[role].folder, digest=parent.result.digest, code=parent.provenance.code)
        for role, parent in parents_of(artifact).items()
    }
    code = stage.code(spec).digest
    return canonical_json(Order(stage=stage.name, spec=result.spec, code=code, parents=parents))


def parents_of(artifact: Artifact) -> dict[str, Manifest]:
    """Return the manifests of a step's parents by role, as they lie on disk now.

    Raises:
        UserError: if one is missing or damaged.
    """
    parents = artifact.manifest.result.parents
    return {
        role: read_manifest(inside(artifact.results, parent.folder) / FILE_NAME) for role, parent in parents.items()
    }


def check_intact(artifact: Artifact) -> None:
    """Check the payload of a step and of its parents.

    Raises:
        UserError: naming the first file that is missing or not what its manifest says.
    """
    problems = verify_payload(artifact.path, artifact.manifest)
    for role, parent in parents_of(artifact).items():
        problems = problems or verify_payload(artifact.results / artifact.manifest.result.parents[role].folder, parent)
    if problems:
        raise UserError(f"{problems[0]}; only a whole artifact with whole parents can be rerun")


def rerun(artifact: Artifact, scratch: Path) -> Path:
    """Run a step again in a process of its own, with one thread, and return its new folder.

    Its parents are put, as hard links where the file system has them and as copies elsewhere, at the same places below
    ``scratch``. The step's notebook, if it has one, is that of the working directory.

    Args:
        artifact: the step.
        scratch: an empty folder that stands for the root of the results.

    Raises:
        UserError: if a parent has no whole manifest, or the step fails; it reads no file that is not its manifest's.
    """
    order = order_of(artifact)
    for role, parent in parents_of(artifact).items():
        folder = artifact.manifest.result.parents[role].folder
        for name in (FILE_NAME, *parent.result.payload):
            _link_or_copy(artifact.results / folder / name, inside(scratch, folder) / name)
    # -P: no file that happens to lie in the working directory stands in for a library.
    command = [sys.executable, "-P", "-m", __name__, str(scratch)]
    variables = {**os.environ, **ONE_THREAD}
    # As the step was made: in the portable mode, or not.
    if artifact.manifest.provenance.environment.cpu == ANY_CPU:
        variables |= VARIABLES
    done = subprocess.run(command, input=order, capture_output=True, text=True, env=variables, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise UserError(f"{artifact.path}: the rerun failed: {one_line(said[-1]).removeprefix('dmdpipe: ')}")
    return Path(done.stdout.splitlines()[-1])


def _link_or_copy(source: Path, target: Path) -> None:
    if target.exists():  # two roles may share a parent
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        os.link(source.resolve(), target)
        return
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be a copy of {source} ({error.strerror}); make room, or set TMPDIR"
        ) from None


def main() -> None:
    """Run the order on stdin below the folder that the command line names, and print the step's new folder."""
    try:
        print(run_step(sys.stdin.read(), Path(sys.argv[1])))
    except UserError as error:
        sys.exit(f"dmdpipe: {error}")
    except Exception as error:
        sys.exit(f"dmdpipe: {type(error).__name__}: {one_line(error)}")


if __name__ == "__main__":
    main()
