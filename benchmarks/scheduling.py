"""What Snakemake itself costs while steps run: its processor time with and without its limit of jobs a second.

    ./run exec python benchmarks/scheduling.py
    ./run exec python benchmarks/scheduling.py --jobs 1000

Two jobs at a time: a few hundred that are done at once, then some that wait a second each. Printed is the time of the
processor that Snakemake needs for it, children included. "as it comes" is Snakemake's default, "as here" how
`dmdpipe run` starts it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RULES = """
rule all:
    input: [f"done/{{i}}" for i in range({jobs})], [f"slow/{{i}}" for i in range(2 * {seconds})]

rule slow:
    output: "slow/{{i}}"
    shell: "sleep 1; echo > {{output}}"

rule done:
    output: "done/{{i}}"
    priority: 1
    shell: "echo > {{output}}"
"""
WAYS = {"as it comes": ["snakemake"], "as here": ["dmdpipe.snakemake_process", "--scheduler", "greedy"]}


def main() -> None:
    """Print a line for each way, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=300, help="number of short jobs (300)")
    parser.add_argument("--seconds", type=int, default=30, help="about how long the others take (30)")
    options = parser.parse_args()
    taken = []
    for name, (module, *arguments) in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "Snakefile").write_text(RULES.format(jobs=options.jobs, seconds=options.seconds))
            before, started = processor_seconds(), time.perf_counter()
            command = [sys.executable, "-m", module, "--cores", "2", "--quiet", "all", *arguments]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            taken.append(processor_seconds() - before)
            print(f"{name:12} {taken[-1]:6.1f} s of processor time, {time.perf_counter() - started:6.1f} s", flush=True)
    print(f"{taken[0] / taken[1]:.1f} × as much")


def processor_seconds() -> float:
    """Return the processor time of all children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
