"""How fast `dmdpipe audit verify` is, against `sha256sum` on the same files in the same minute.

    ./run exec python benchmarks/verify.py --gigabytes 2

Makes a tree of noise steps with random payload and true manifests in a temporary folder, reads it once so that both
find it in memory, and times both commands in turn. Prints the ratio of their speeds, above 1 where verify is faster,
and the most memory that verify held.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dmdpipe.artifacts.checked import json_text
from dmdpipe.artifacts.environment import expected_environment, lock_digest
from dmdpipe.artifacts.manifest import sealed, seeds_in
from dmdpipe.artifacts.plan import plan
from dmdpipe.artifacts.stages import STAGES
from dmdpipe.specs.diffusion import NoiseBankSpec

MIB = 2**20
FILE_SIZE = 64 * MIB


def make_tree(results: Path, size: int) -> list[Path]:
    """Make steps with ``size`` bytes of payload in all; return the payload files."""
    files = []
    for seed in range(max(1, size // FILE_SIZE)):
        step = plan("noise", NoiseBankSpec(dim=2, seed=seed))
        folder = results / step.folder
        folder.mkdir(parents=True)
        content = os.urandom(FILE_SIZE)
        (folder / "noise.safetensors").write_bytes(content)
        spec = step.spec.model_dump(mode="json")
        payload = {"noise.safetensors": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}}
        result = {"stage": "noise", "spec": spec, "digest": step.digest, "seeds": seeds_in(spec)}
        provenance = {
            "code": step.code.digest,
            "modules": step.code.modules,
            "environment_lock": lock_digest(),
            "environment": expected_environment(step.code.libraries).model_dump(),
            "equality": STAGES["noise"].equality.model_dump(),
            "parents": {},
        }
        manifest = {
            "schema_version": 2,
            "result": sealed({**result, "payload": payload, "parents": {}}, "result_digest"),
            "provenance": sealed(provenance, "provenance_digest"),
        }
        (folder / "manifest.json").write_text(json_text(manifest))
        files.append(folder / "noise.safetensors")
    return files


def seconds(command: list[str]) -> float:
    """Run a command and return how long it took."""
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    return time.perf_counter() - started


def main() -> None:
    """Make the tree, time both commands, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="payload in all (2)")
    parser.add_argument("--repeats", type=int, default=5, help="of each command (5)")
    parser.add_argument("--folder", type=Path, help="where to put the tree; the system's temporary folder if left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        files = make_tree(Path(folder, "results"), int(options.gigabytes * 2**30))
        verify = [str(Path(sys.executable).with_name("dmdpipe")), "audit", "verify", f"{folder}/results"]
        sha256sum = ["sha256sum", *map(str, files)]
        seconds(sha256sum)
        pairs = [(seconds(verify), seconds(sha256sum)) for _ in range(options.repeats)]
    size = len(files) * FILE_SIZE / MIB
    ratios = sorted(theirs / ours for ours, theirs in pairs)
    print(f"{size:.0f} MiB in {len(files)} steps, {os.cpu_count()} cores, {options.repeats} times each in turn")
    for name, times in zip(("audit verify", "sha256sum"), zip(*pairs, strict=True), strict=True):
        print(f"{name:13} median {statistics.median(times):5.2f} s = {size / statistics.median(times):6.0f} MiB/s")
    print(
        f"speed, verify / sha256sum: median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}"
    )
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"most memory of either: {most:.0f} MiB")


if __name__ == "__main__":
    main()
