"""The whole smoke run on the test cluster against the same run without SLURM, artifact by artifact.

    python tests/slurm/whole_run.py [options of ./run for the run on SLURM]

Needs root and SLURM, as tests/slurm/cluster.py does, and takes half an hour on two cores. The exit status is 0 if the
two trees of results are the same to the byte, and both runs ended with the same verdicts and the same audit.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from cluster import Cluster, NoSlurmError, running_cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from checkouts import Checkout, copy_checkout
from toy_study import Tree, published

SMOKE = ("run", "--config", "scale=smoke")
ON_SLURM = ("--profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "2")
SECONDS = 7200


def ending_of(checkout: Checkout, *arguments: str) -> str:
    """Run, say how long that took, and return what the run said of verdicts and audit in the end."""
    began = time.monotonic()
    with (checkout / "output").open("w") as output:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("dmdpipe")), *arguments],
            cwd=checkout.folder,
            env=checkout.environment(),
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    print(f"{' '.join(arguments)}: status {done.returncode} after {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode:
        sys.exit((checkout / "output").read_text()[-5000:])
    return done.stdout.partition("\nverdicts (")[2]


def compare(cluster: Cluster, folder: Path, options: list[str]) -> int:
    """Make both runs, print how they compare, and return 0 if they are the same."""
    alone, on_slurm = (copy_checkout(folder / name) for name in ("alone", "on_slurm"))
    endings = ending_of(alone, *SMOKE), ending_of(on_slurm, *SMOKE, *ON_SLURM, *options)
    print("jobs of SLURM by their end:", dict(Counter(cluster.jobs().values())))
    print(endings[1])
    print(alone.dmdpipe("audit", "diff", "results", str(on_slurm / "results")).stdout)
    same_bytes = published(Tree(alone)) == published(Tree(on_slurm))
    print(f"{len(published(Tree(alone)))} published files are", "the same" if same_bytes else "not the same")
    same_ending = endings[0] == endings[1]
    print("verdicts and audit are", "the same" if same_ending else f"others than without SLURM:\n{endings[0]}")
    return 0 if same_bytes and same_ending else 1


def main() -> int:
    """Bring the cluster up and compare."""
    try:
        with running_cluster() as cluster, tempfile.TemporaryDirectory() as folder:
            return compare(cluster, Path(folder), sys.argv[1:])
    except NoSlurmError as reason:
        sys.exit(str(reason))


if __name__ == "__main__":
    sys.exit(main())
