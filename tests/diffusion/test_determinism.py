"""The square root that every CPU takes alike."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dmdpipe.diffusion.determinism import square_root

SOURCES = Path(__file__).resolve().parents[2] / "src" / "dmdpipe"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_square_root_is_made_of_correctly_rounded_operations(dtype):
    """IEEE 754 rounds √ and ÷, which NumPy takes from the CPU as they are, in one way only."""
    x = np.random.default_rng(0).lognormal(-10, 8, 10_007).astype(dtype)
    one = dtype(1)
    assert square_root(torch.from_numpy(x)).numpy().tobytes() == (one / (one / np.sqrt(x))).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_square_root_is_that_to_two_units_in_the_last_place(dtype):
    x = np.random.default_rng(1).lognormal(-10, 8, 10_007).astype(dtype)
    exact = np.sqrt(x.astype(np.longdouble))
    error = np.abs(square_root(torch.from_numpy(x)).numpy() - exact) / np.spacing(exact.astype(dtype))
    assert error.max() <= 2
    assert square_root(torch.zeros(3)).tolist() == [0, 0, 0]


def test_no_code_takes_a_root_from_torch():
    taken = [path for path in SOURCES.rglob("*.py") if re.search(r"torch\.sqrt\(|\.sqrt_?\(\)", path.read_text())]
    assert taken == []
