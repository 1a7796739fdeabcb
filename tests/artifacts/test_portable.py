"""The portable mode's variables: each library obeys its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from dmdpipe.artifacts.portable import VARIABLES

PROGRAM = """
import numpy, scipy.linalg, torch
from threadpoolctl import threadpool_info
torch.rand(64, 64) @ torch.rand(64, 64)
torch.conv2d(torch.rand(2, 16, 16, 16), torch.rand(16, 16, 3, 3))
print("torch", torch.backends.cpu.get_cpu_capability())
print("numpy", *numpy.show_config(mode="dicts")["SIMD Extensions"].get("found", []))
print("openblas", *{pool["architecture"] for pool in threadpool_info() if pool["internal_api"] == "openblas"})
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the portable mode is one of x86-64")
def test_every_library_does_what_its_variable_says():
    talkative = {"MKL_VERBOSE": "1", "ONEDNN_VERBOSE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **VARIABLES, **talkative}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "torch AVX2" in said
    assert "numpy X86_V3" in said
    assert "openblas Haswell" in said
    assert [line for line in said if "GEMM" in line and "CNR:COMPATIBLE" in line], done.stdout
    assert [line for line in said if line.endswith("isa:Intel AVX2")], done.stdout
