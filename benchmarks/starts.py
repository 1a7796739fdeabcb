"""How long a step takes to start: from Snakemake's start of the job to its function, for every step of a finished run.

    ./run --config scale=smoke
    ./run exec python benchmarks/starts.py
    DMDPIPE_FORK_SERVER=none ./run --config scale=smoke --forceall    # without the process that forks steps
    ./run exec python benchmarks/starts.py

By times that lie on the disk: Snakemake records when it started a job, and a step's `run.json` is written when it ends
and says for how many seconds it ran. In seconds, the median of each rule and the longest.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

RECORDS = Path(".snakemake/metadata")


def main() -> None:
    """Print a line for each rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="root of the results (results)")
    options = parser.parse_args()
    of_rule = defaultdict(list)
    for rule, manifest, started in jobs():
        run = manifest.with_name("run.json")
        if manifest.is_relative_to(options.results) and run.exists():
            ended, took = run.stat().st_mtime, json.loads(run.read_text())["seconds"]
            of_rule[rule].append(ended - took - started)
    for rule, seconds in sorted(of_rule.items()):
        print(f"{rule:16} {len(seconds):4} steps, start {median(seconds):5.2f} s, at most {max(seconds):5.2f} s")


def jobs() -> Iterator[tuple[str, Path, float]]:
    """Yield the rule, the manifest and the start of every job that Snakemake has a record of."""
    for path in RECORDS.rglob("*"):
        if path.is_file():
            # A long name is cut into folders that begin with @.
            name = "".join(part.removeprefix("@") for part in path.relative_to(RECORDS).parts)
            output = Path(base64.b64decode(name).decode())
            if output.name == "manifest.json":
                record = json.loads(path.read_text())
                yield record["rule"], output, record["starttime"]


if __name__ == "__main__":
    main()
