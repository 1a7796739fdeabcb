"""The portable mode: variables under which results on x86-64 agree to the byte whatever the CPU's maker and model.

Torch, NumPy, MKL, oneDNN and OpenBLAS each look at the CPU and choose among several versions of a kernel, which add
in other orders, fuse other multiplications with additions and approximate with other polynomials. These variables
fix every choice to one that each CPU with AVX2 and FMA can run: an AVX-512 machine then computes as any other.

Each library reads its variable once, while it is loaded or first used: they must be in the environment of the process
before it starts. What they cost, and the evidence: ``docs/portable.md``.
"""

from __future__ import annotations

import os

# What an environment class says of the processor in this mode.
ANY_CPU = "any x86-64 with AVX2"
INSTRUCTION_SET = "AVX2"
SWITCH = "DMDPIPE_PORTABLE"
VARIABLES = {
    # Torch's own kernels: the softmax and, on a CPU without AVX2, nearly everything else.
    "ATEN_CPU_CAPABILITY": "avx2",
    # MKL, which is torch's matrix product, factorisations, exp, log, sin and square root. It distinguishes Intel's
    # CPUs from others even where the instruction set is the same. Its branches above COMPATIBLE are for Intel only.
    "MKL_CBWR": "COMPATIBLE",
    # Torch's convolutions, which U-Nets have.
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    # NumPy's and SciPy's matrix products and factorisations.
    "OPENBLAS_CORETYPE": "Haswell",
    # NumPy's own loops: exp, log, power and more are other functions with AVX-512, and ties sort in another order.
    "NPY_DISABLE_CPU_FEATURES": "X86_V4,AVX512_ICL,AVX512_SPR",
}


def is_portable() -> bool:
    """Whether this process was started in the portable mode."""
    return VARIABLES.items() <= os.environ.items()
