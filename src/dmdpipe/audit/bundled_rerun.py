"""Rerun the step of this bundle and say whether it gives the recorded bytes.

    python rerun.py

Exit status 0: reproduced bitwise. 1: it differs, or a file of the bundle is not the one that was packed.
"""

from __future__ import annotations

import os
import sys

# Python puts this folder first; a stray file in it must not stand in for a library.
sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != os.path.dirname(os.path.abspath(__file__))]

import hashlib  # noqa: E402
import json  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

HERE = Path(__file__).resolve().parent
CONTENTS = "bundle.json"


def damage(contents: dict[str, str]) -> list[str]:
    """Return one line for each file that is missing, changed or not part of the bundle.

    Args:
        contents: SHA-256 of every file by its path in the bundle.
    """
    problems = []
    for name, sha256 in contents.items():
        try:
            with (HERE / name).open("rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == sha256
            problems += [] if same else [f"{name}: was changed after it was packed"]
        except OSError as error:
            problems.append(f"{name}: cannot be read ({error.strerror})")
    # A stray file could be imported in place of the packed ones.
    found = {path.relative_to(HERE).as_posix() for path in HERE.rglob("*") if not path.is_dir()}
    problems += [f"{name}: is not part of the bundle; remove it" for name in found - contents.keys() - {CONTENTS}]
    return sorted(problems)


def main() -> int:
    """Check the bundle, rerun its step, print what came out, and return the exit status."""
    try:
        if not (HERE / CONTENTS).is_file():
            raise FileNotFoundError
        bundle = json.loads((HERE / CONTENTS).read_text(encoding="utf-8"))
        files, step, is_newer = dict(bundle["files"]), str(bundle["step"]), bool(bundle["today"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        print(f"the bundle is damaged:\n  {CONTENTS}: is missing, or not what was packed")
        return 1
    problems = damage(files)
    if problems:
        print("the bundle is damaged:", *problems, sep="\n  ")
        return 1
    print(f"{len(files)} files checked")

    # Before any import of the library: this bundle's sources, for child processes and notebooks too, and no caches.
    os.environ.update({"PYTHONPATH": str(HERE / "src"), "PYTHONDONTWRITEBYTECODE": "1"})
    os.environ.pop("DMDPIPE_LOCKS", None)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(HERE / "src"))
    os.chdir(HERE)
    import dmdpipe
    from dmdpipe.artifacts.manifest import read_manifest
    from dmdpipe.audit.reproduce import compare
    from dmdpipe.audit.rerun import rerun
    from dmdpipe.audit.tree import read_artifact
    from dmdpipe.errors import UserError

    print(f"code: {Path(str(dmdpipe.__file__)).parent}")
    if is_newer:
        print("packed with --today: the code is newer than the recorded step")
    print(f"rerunning {step}")
    try:
        artifact = read_artifact(HERE / "results" / step)
        with tempfile.TemporaryDirectory(prefix="dmdpipe-rerun-") as scratch:
            now = read_manifest(rerun(artifact, Path(scratch)) / "manifest.json")
    except UserError as error:
        print(error)
        return 1
    outcome = compare(step, artifact.manifest, now)
    print(outcome.outcome)
    return 0 if outcome.reproduced else 1


if __name__ == "__main__":
    sys.exit(main())
