"""What a step ran in: the environment class, which bounds what can be equal, and facts about one run."""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dmdpipe.artifacts.checked import Record
from dmdpipe.artifacts.portable import ANY_CPU, INSTRUCTION_SET, is_portable
from dmdpipe.processor import cpu_extensions, processor

# Through these every step writes its files, and their versions show in the bytes.
WRITERS = ("pandas", "pyarrow", "safetensors")
# Packages that are imported by another name than they are installed by.
INSTALLED_AS = {"IPython": "ipython", "sklearn": "scikit-learn"}
UNLOCKED = "unlocked"
# Threads are part of a step's spec; a library must not take more on its own.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
PACKAGE = Path(__file__).resolve().parents[1]


class Environment(Record):
    """An environment class: two runs in equal ones are expected to write the same bytes.

    Attributes:
        python: ``3.11``.
        platform: ``linux-x86_64``.
        libraries: versions of the libraries that the step's code imports or its files are written with.
        device: ``cpu``, or the GPU's name if the step used CUDA.
        cpu: vendor, family and model of the processor, by which BLAS libraries choose their kernels.
        instruction_set: the widest that torch uses on this CPU or, for a step without torch, NumPy.
        threads: the same for the number of threads.
    """

    python: str
    platform: str
    libraries: dict[str, str]
    device: str
    cpu: str
    instruction_set: str
    threads: int

    @property
    def name(self) -> str:
        """One line for people."""
        libraries = ", ".join(f"{name} {number}" for name, number in sorted(self.libraries.items()))
        return (
            f"Python {self.python} on {self.platform}, {libraries}; "
            f"{self.device}, {self.cpu}, {self.instruction_set}, {self.threads} thread(s)"
        )


def current_environment(libraries: Iterable[str]) -> Environment:
    """Return the environment class of this process for code that imports ``libraries``.

    Torch is asked only if that code imports it and has done so: what else this process did doesn't count.
    """
    imported = set(libraries)
    torch = sys.modules.get("torch") if "torch" in imported else None
    on_gpu = torch is not None and torch.cuda.is_initialized()
    return Environment(
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        platform=f"{sys.platform}-{platform.machine()}",
        libraries=installed_versions(imported),
        device=torch.cuda.get_device_name() if torch and on_gpu else "cpu",
        **_processor_class(torch),
        threads=torch.get_num_threads() if torch else _default_threads(),
    )


def expected_environment(libraries: Iterable[str], portable: bool = False) -> Environment:
    """Return what ``current_environment`` would say in a step on this machine's CPU, without importing torch.

    Args:
        libraries: that the step's code imports.
        portable: in the portable mode, instead of as this process was started.
    """
    imported = set(libraries)
    here = current_environment(imported - {"torch"})
    changes: dict[str, Any] = {"libraries": installed_versions(imported)}
    if portable:
        changes |= {"cpu": ANY_CPU, "instruction_set": INSTRUCTION_SET}
    elif "torch" in imported and not is_portable():
        changes["instruction_set"] = instruction_set_of_torch()
    return here.model_copy(update=changes)


def _processor_class(torch: Any) -> dict[str, str]:
    """The processor and the instruction set; in the portable mode neither decides anything."""
    if is_portable():
        return {"cpu": ANY_CPU, "instruction_set": INSTRUCTION_SET}
    capability = torch.backends.cpu.get_cpu_capability() if torch else _instruction_set_of_numpy()
    return {"cpu": processor(), "instruction_set": capability}


def installed_versions(imported: set[str]) -> dict[str, str]:
    """Return the versions of the imported libraries and of those that write files, by the name they are imported by."""
    found = {}
    for name in sorted(imported.union(WRITERS)):
        with suppress(PackageNotFoundError):
            found[name] = version(INSTALLED_AS.get(name, name))
    return found


def instruction_set_of_torch() -> str:
    """Return what ``torch.backends.cpu.get_cpu_capability()`` says on x86, by torch's own rule but without torch."""
    wanted = os.environ.get("ATEN_CPU_CAPABILITY", "").upper()
    # It does what it is told, whether this CPU can do so or not.
    if wanted in ("DEFAULT", "AVX2", "AVX512"):
        return wanted
    flags = cpu_extensions()
    if not {"avx2", "fma"} <= flags:
        return "DEFAULT"
    return "AVX512" if {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= flags else "AVX2"


def _instruction_set_of_numpy() -> str:
    import numpy as np

    extensions: Any = np.show_config(mode="dicts")
    found = extensions["SIMD Extensions"]
    return ([*found.get("baseline", []), *found.get("found", [])] or ["none"])[-1]


def _default_threads() -> int:
    declared = os.environ.get("OMP_NUM_THREADS", "")
    return int(declared) if declared.isdecimal() else os.cpu_count() or 1


def lock_digest() -> str:
    """Return the SHA-256 of the environment's locks, or ``unlocked`` if there are none.

    They are the ``*.txt`` in ``$DMDPIPE_LOCKS`` or, if dmdpipe runs from a checkout, in its ``envs``.
    """
    folder = Path(os.environ.get("DMDPIPE_LOCKS") or PACKAGE.parents[1] / "envs")
    locks = sorted(folder.glob("*.txt"))
    if not locks:
        return UNLOCKED
    listing = [f"{lock.name} {hashlib.sha256(lock.read_bytes()).hexdigest()}\n" for lock in locks]
    return hashlib.sha256("".join(listing).encode()).hexdigest()


def peak_memory_mib() -> float:
    """Return the most memory that this process has held, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def git_state() -> dict[str, Any]:
    """Return the checkout's ``commit`` and whether tracked files are ``dirty``; None outside of git."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(PACKAGE), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def user_name() -> str:
    """Return who runs this: a name, or a number where a container knows none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
