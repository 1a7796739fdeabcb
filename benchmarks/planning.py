"""How long `./run -n` takes, and how much memory, on a study of ten thousand steps that were never made.

    ./run exec python benchmarks/planning.py

In a copy of the checkout the default studies get a scale with many seeds. What is timed is the whole command: planning,
asking every manifest, and Snakemake's dry run of all that is to be made.
"""

from __future__ import annotations

import argparse
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("config", "envs", "profiles", "reports", "rules", "workflow", "Snakefile")


def main() -> None:
    """Print the number of steps, the seconds and the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=57, help="seeds a point (57: 10,139 steps)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="planning-") as folder:
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
            copy(ROOT / part, Path(folder, part))
        smoke = Path(folder, "config/scales/smoke.yaml").read_text()
        many = re.sub("^seeds: .*$", f"seeds: {options.seeds}", smoke, flags=re.MULTILINE)
        Path(folder, "config/scales/many.yaml").write_text(many)
        command = [str(Path(sys.executable).with_name("dmdpipe")), "run", "-n", "--config", "scale=many"]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - started
    (steps,) = re.findall(r"^ *(\d+)  steps to do$", done.stdout + done.stderr, re.MULTILINE)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    print(f"{steps} steps planned and shown in {seconds:.1f} s, {memory:.0f} MiB in the largest process")


if __name__ == "__main__":
    main()
