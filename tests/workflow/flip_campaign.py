"""Damage random files of results in random ways; an audit must notice every time, and no step may read on.

    ./run exec python tests/workflow/flip_campaign.py results --flips 1000

Every trial takes one file that is under a manifest's promise, payload or manifest, each type as often as any other. It
changes one byte, cuts the file, swaps it with another of its type, or deletes it; then it verifies the step, asks every
step that reads the file to read it, and puts the file back. The results themselves are copied first and not touched.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from dmdpipe.artifacts.manifest import RUN_FILE_NAME
from dmdpipe.artifacts.plan import PlannedStep
from dmdpipe.artifacts.step import Step
from dmdpipe.audit.tree import step_folders
from dmdpipe.audit.verify import todays_steps, verify_tree
from dmdpipe.errors import UserError

WAYS = ("a byte changed", "cut", "swapped", "deleted")


def main() -> int:
    """Run the campaign; 0 if everything was noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results whose verify finds nothing wrong")
    parser.add_argument("--flips", type=int, default=1000, help="number of trials (1000)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the choices")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.flips} flips", flush=True)
    with tempfile.TemporaryDirectory(prefix="flips-") as folder:
        results = Path(folder, "results")
        shutil.copytree(options.results, results, symlinks=True)
        missed = campaign(results, options.flips, random.Random(options.seed))
    for line in missed:
        print(f"MISSED: {line}")
    print(f"{options.flips - len(missed)} of {options.flips} were noticed by verify and refused by the steps that read")
    return int(bool(missed))


def campaign(results: Path, flips: int, choices: random.Random) -> list[str]:
    """Make the trials on ``results``, which are changed and restored; print what was tried; return what was missed."""
    folders = step_folders(results)
    planned = todays_steps(results, folders)
    first = verify_tree(results)
    assert not first.problems, f"these results have problems already: {first.problems[0]}"
    by_type: dict[str, list[Path]] = {}
    for folder in folders:
        for path in sorted((results / folder).iterdir()):
            if path.name != RUN_FILE_NAME:
                kind = path.name if path.name == "manifest.json" else path.suffix
                by_type.setdefault(kind, []).append(path)
    missed = []
    tried: Counter[str] = Counter()
    while tried.total() < flips:
        kind = choices.choice(sorted(by_type))
        path = choices.choice(by_type[kind])
        before = path.read_bytes()
        way = damage(path, choices.choice(WAYS), by_type[kind], choices)
        if path.exists() and path.read_bytes() == before:
            continue  # a file swapped with an equal one
        tried[f"{kind} {way}"] += 1
        folder = path.parent.relative_to(results).as_posix()
        name = f"{path.relative_to(results)} {way}"
        if not any(problem.where.startswith(folder) for problem in verify_tree(results, [folder]).problems):
            missed.append(f"verify: {name}")
        missed += [f"{reader}: {name}" for reader in those_who_read_on(path, folder, planned, results)]
        path.write_bytes(before)
    assert not verify_tree(results).problems
    for what, count in sorted(tried.items()):
        print(f"{count:5}  {what}")
    print(f"{sum(tried.values()):5}  in all")
    return missed


def damage(path: Path, way: str, others: list[Path], choices: random.Random) -> str:
    """Damage one file and return how in words."""
    content = path.read_bytes()
    if way == "deleted":
        path.unlink()
    elif way == "cut":
        path.write_bytes(content[: choices.randrange(len(content))])
    elif way == "swapped":
        path.write_bytes(choices.choice(others).read_bytes())
    else:
        changed = bytearray(content)
        changed[choices.randrange(len(changed))] ^= 1 << choices.randrange(8)
        path.write_bytes(changed)
    return way


def those_who_read_on(path: Path, folder: str, planned: dict[str, PlannedStep], results: Path) -> list[str]:
    """Return the steps made from this one that read the damaged file without complaint."""
    silent = []
    for child in planned.values():
        for role, parent in child.parents.items():
            if parent.folder != folder:
                continue
            try:
                step = Step(child.canonical(), results)
                if path.name != "manifest.json":
                    step.parent_file(role, path.name)
            except UserError:
                continue
            silent.append(child.folder)
    return silent


if __name__ == "__main__":
    sys.exit(main())
