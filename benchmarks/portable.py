"""Which steps write the same bytes under which settings and on which CPUs, and what the portable mode costs.

A tiny chain (data, noise, teacher, its samples, student, pairs, metrics) runs once as this machine runs it. Then every
step runs again under each setting, on those same parents: what differs is the step's own arithmetic. In the table
equal letters in a column are equal bytes. "portable less X" leaves one variable out: where it gets the letter of
"portable", that variable does nothing for the step on this machine.

An emulated CPU (--emulate) is another CPU for all that a program can ask, and much slower. qemu 7.2 knows no AVX-512,
and computes exactly what real CPUs approximate, each in its own way, such as 1/√x.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dmdpipe.artifacts.dag import steps_below
from dmdpipe.artifacts.manifest import FILE_NAME, read_manifest
from dmdpipe.artifacts.plan import PlannedStep, plan
from dmdpipe.artifacts.portable import VARIABLES
from dmdpipe.artifacts.step import run_step
from dmdpipe.specs.pairs import MetricsSpec

EMULATOR = "qemu-x86_64"
# This machine as one without AVX-512. MKL heeds its variable on Intel's CPUs only.
AS_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4,AVX512_ICL,AVX512_SPR",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD",
}
SETTINGS: dict[str, dict[str, str]] = {
    "native": {},
    "as AVX2": AS_AVX2,
    "portable": VARIABLES,
    "portable as AVX2": {**AS_AVX2, **VARIABLES},
    **{
        f"portable less {left_out}": {name: value for name, value in VARIABLES.items() if name != left_out}
        for left_out in VARIABLES
    },
}
STEPS_TO_COMPARE = 4
STEPS_TO_TIME = 60


def chain(generator_steps: int) -> list[PlannedStep]:
    """Return the steps of one student of the usual width and batch, parents first; the rest grows with its steps."""
    teacher = {
        "data": {"family": "digits", "side": 4, "n_train": 500, "n_held_out": 200},
        "score": {
            "kind": "trained",
            "network": {"kind": "mlp", "width": 64, "depth": 2},
            "steps": 10 * generator_steps,
        },
    }
    student = {
        "teacher": teacher,
        "network": {"kind": "mlp", "width": 64, "depth": 2},
        "generator_steps": generator_steps,
        "snapshots": 3,
    }
    samples = {
        "teacher": teacher,
        "bank": {"dim": 16, "n_paired": 20 * generator_steps, "n_held_out": 40 * generator_steps},
        "sampler": {"steps": 8},
    }
    spec = {"pairs": {"student": student, "teacher_samples": samples}}
    return list(steps_below(plan("metrics", MetricsSpec.model_validate(spec))))


def run_each(results: Path, generator_steps: int) -> dict[str, dict[str, Any]]:
    """Run every step below ``results`` twice; return the digests of its files and the second run's seconds, by stage.

    The first run also imports. On finished results children run before their parents: so no step reads what another
    one has just written.
    """
    steps = chain(generator_steps)
    made = {}
    for step in steps[::-1] if (results / steps[-1].folder).exists() else steps:
        run_step(step.canonical(), results)
        started = time.perf_counter()
        folder = run_step(step.canonical(), results)
        seconds = time.perf_counter() - started
        payload = read_manifest(folder / FILE_NAME).result.payload
        made[step.stage] = {"files": {name: file.sha256 for name, file in payload.items()}, "seconds": seconds}
    return made


def run_under(variables: dict[str, str], results: Path, generator_steps: int, cpu: str = "") -> dict[str, Any]:
    """Return what ``run_each`` does in a process with these variables, on an emulated CPU if one is named.

    Empty, and said on stderr, if the emulated process dies: an emulator may not know every instruction.
    """
    settled = {name for setting in SETTINGS.values() for name in setting}
    environment = {name: value for name, value in os.environ.items() if name not in settled}
    environment |= {"OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, __file__, "--worker", str(results), str(generator_steps)]
    if cpu:
        command = [EMULATOR, "-cpu", cpu, *command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode and not cpu:
        raise SystemExit(f"a run under {variables} failed:\n{done.stderr}")
    if done.returncode:
        print(f"{cpu} under {variables}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return {}
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def compare(emulated: list[str]) -> None:
    """Print a line for each setting, a column for each stage."""
    runs = [(name, variables, "") for name, variables in SETTINGS.items()]
    for cpu in emulated:
        runs += [(f"{name} on {cpu}", SETTINGS[name], cpu) for name in ("native", "portable")]
    stages = [step.stage for step in chain(STEPS_TO_COMPARE)]
    seen: dict[str, list[Any]] = {stage: [] for stage in stages}
    print(f"{'':42}" + " ".join(stages))
    with tempfile.TemporaryDirectory() as folder:
        reference, again = Path(folder, "reference"), Path(folder, "again")
        run_under({}, reference, STEPS_TO_COMPARE)
        for name, variables, cpu in runs:
            shutil.copytree(reference, again)
            made = run_under(variables, again, STEPS_TO_COMPARE, cpu)
            shutil.rmtree(again)
            letters = [letter(made.get(stage), seen[stage]).center(len(stage)) for stage in stages]
            print(f"{name:42}" + " ".join(letters), flush=True)


def letter(made: dict[str, Any] | None, seen: list[Any]) -> str:
    """Return A for the first bytes of a stage, B for the next ones that differ, and so on; - if there are none."""
    if made is None:
        return "-"
    if made["files"] not in seen:
        seen.append(made["files"])
    return chr(ord("A") + seen.index(made["files"]))


def measure_cost(repeats: int) -> None:
    """Print the portable mode's time over the native one's, stage by stage, the two run in turn."""
    compared, pairs = ("native", "portable"), []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            pairs.append([run_under(SETTINGS[name], Path(folder, name), STEPS_TO_TIME) for name in compared])
    print("\nportable / native    best   median   native seconds")
    for stage in pairs[0][0]:
        native, portable = ([made[stage]["seconds"] for made in side] for side in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in zip(native, portable, strict=True))
        print(f"{stage:18} {min(portable) / min(native):7.2f}  {ratio:7.2f}  {min(native):15.3f}")


def main() -> None:
    """Read the command line, compare, and measure the cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--emulate",
        metavar="CPU",
        nargs="*",
        default=[],
        help=f"also run on these CPUs under {EMULATOR}, a minute or two each: Haswell (Intel's, AVX2), EPYC (AMD's, "
        f"AVX2), or others that '{EMULATOR} -cpu help' lists and that have AVX2",
    )
    parser.add_argument("--repeats", type=int, default=5, help="pairs of timed runs; 0 measures no cost")
    parser.add_argument("--worker", nargs=2, metavar=("RESULTS", "STEPS"), help="how the script starts itself")
    arguments = parser.parse_args()
    if arguments.worker:
        results, generator_steps = arguments.worker
        print(json.dumps(run_each(Path(results), int(generator_steps))))
        return
    if arguments.emulate and shutil.which(EMULATOR) is None:
        parser.error(f"--emulate needs {EMULATOR} on PATH; on Debian it comes with the package qemu-user")
    compare(arguments.emulate)
    if arguments.repeats:
        measure_cost(arguments.repeats)


if __name__ == "__main__":
    main()
