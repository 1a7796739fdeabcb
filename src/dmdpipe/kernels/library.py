"""Compiling the C files of this package, once for each version of them, and loading what came out.

The compiler is that of the package ``ziglang``, or else the machine's ``cc``. Which one it is, and for which CPU it
compiles, shows in no result: see ``arithmetic.h``.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dmdpipe.errors import UserError
from dmdpipe.processor import cpu_extensions

FOLDER = Path(__file__).parent
# One rounding more or less is decided by the source alone: no contraction, nothing that "fast math" allows.
FLAGS = ("-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-falign-loops=64", "-fPIC", "-shared")
# What x86-64's fourth level has beyond the third, as Linux spells it.
WIDE = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@cache
def library(name: str) -> ctypes.CDLL:
    """Return the functions of ``name.c``; compiled at the first use on this machine, which takes about two seconds.

    Raises:
        UserError: if there is no compiler, or it fails.
    """
    sources = sources_of(FOLDER / f"{name}.c")
    contents = b"".join(source.read_bytes() for source in sources)
    known = hashlib.sha256(repr((FLAGS, *compiler())).encode() + contents).hexdigest()[:16]
    built = cache_folder() / f"{name}-{known}.so"
    if not built.exists():
        compile_to(built, sources[0])
    return ctypes.CDLL(str(built))


@cache
def function(file: str, name: str, result: type | None, *arguments: type) -> Callable[..., Any]:
    """Return a function of ``file.c`` with its ctypes: of its result, and of its arguments in order."""
    found = library(file)[name]
    found.restype, found.argtypes = result, arguments
    return found


def sources_of(file: Path) -> list[Path]:
    """Return a C file and the headers of its folder that it includes, directly or not, each once."""
    found = [file]
    for source in found:
        included = re.findall(r'^#include "([\w.]+)"', source.read_text(encoding="utf-8"), re.MULTILINE)
        found += [path for path in (file.parent / header for header in included) if path not in found]
    return found


@cache
def compiler() -> tuple[str, ...]:
    """Return the command that compiles C for this machine, without flags that are common to all machines.

    On x86 that is for CPUs with AVX2 and fused multiply-add (2013 and later), or with AVX-512 where this one has it
    and ``ATEN_CPU_CAPABILITY``, by which PyTorch goes, holds nothing back.

    Raises:
        UserError: if there is none.
    """
    held_back = os.environ.get("ATEN_CPU_CAPABILITY", "").upper() in ("DEFAULT", "AVX2")
    wide = cpu_extensions() >= WIDE and not held_back
    on_x86 = platform.machine() in ("x86_64", "AMD64")
    if find_spec("ziglang"):
        target = ["-mcpu=x86_64_v4-prefer_256_bit" if wide else "-mcpu=x86_64_v3"]
        return (sys.executable, "-m", "ziglang", "cc", *(target if on_x86 else []))
    for name in ("clang", "gcc", "cc"):
        if path := shutil.which(name):
            target = ["-march=skylake-avx512", "-mprefer-vector-width=512"] if wide else ["-march=haswell"]
            return (path, *(target if on_x86 else []))
    raise UserError("no C compiler: training needs the Python package 'ziglang' (envs/base.txt) or a 'cc'")


def cache_folder() -> Path:
    """Return where compiled files are kept: in the Python environment or, if that is read-only, the user's cache."""
    inside = Path(sys.prefix) / "share" / "dmdpipe"
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmdpipe"
    for folder in (inside, user):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise UserError(f"compiled files can be kept neither in {inside} nor in {user}: make one of them writable")


def compile_to(built: Path, source: Path) -> None:
    """Compile one C file; whoever else does so at the same time writes the same.

    Raises:
        UserError: with the compiler's first complaint.
    """
    with tempfile.TemporaryDirectory(dir=built.parent, prefix=".compiling-") as scratch:
        place = {"ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch}
        fresh = Path(scratch) / built.name
        # What little a C file needs of the C library every process has loaded already.
        flags = [*FLAGS, *(["-nostdlib"] if sys.platform == "linux" else [])]
        command = [*compiler(), *flags, "-o", str(fresh), str(source)]
        done = subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True)
        if done.returncode != 0 or not fresh.exists():
            complaint = next(iter(done.stderr.strip().splitlines()), f"exit status {done.returncode}")
            raise UserError(f"{source.name} can't be compiled by {' '.join(compiler())}: {complaint}")
        fresh.replace(built)
