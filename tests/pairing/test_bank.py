"""The noise bank: every row on its own, all of them standard normal, the rotation uniform."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import kstest

from dmdpipe.pairing.bank import haar_rotation, make_noise_bank, noise_rows
from dmdpipe.specs.diffusion import NoiseBankSpec


def bank(**fields):
    written = {}
    spec = NoiseBankSpec(**fields)
    make_noise_bank(SimpleNamespace(spec=spec, write_tensors=lambda name, value: written.update({name: value})))
    assert written.keys() == {"noise.safetensors"}
    return written["noise.safetensors"]


def test_row_i_does_not_depend_on_how_many_rows_there_are():
    few, many = noise_rows(7, 3, 0, "paired"), noise_rows(7, 300, 0, "paired")
    assert np.array_equal(few, many[:3])


def test_a_row_is_the_stream_of_its_own_key():
    """Pinned to the construction in NumPy's documentation: one Philox per (purpose, row)."""
    text = b"5/noise/paired"
    stream = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
    key = stream + (41 << 64)
    expected = np.random.Generator(np.random.Philox(key=key)).standard_normal(9).astype(np.float32)
    assert np.array_equal(noise_rows(9, 42, 5, "paired")[41], expected)


def test_noise_is_standard_normal():
    noise = noise_rows(50, 4000, 0, "paired").astype(float)
    n = noise.size
    assert_allclose(noise.mean(), 0, atol=5 / np.sqrt(n))
    assert_allclose(noise.var(), 1, atol=5 * np.sqrt(2 / n))
    assert_allclose((noise**3).mean(), 0, atol=5 * np.sqrt(15 / n))
    assert_allclose((noise**4).mean(), 3, atol=5 * np.sqrt(96 / n))
    assert kstest(noise.ravel(), "norm").pvalue > 1e-3
    covariance = noise.T @ noise / len(noise)
    assert np.abs(covariance - np.eye(50)).max() < 5.5 * np.sqrt(2 / len(noise))


def test_the_first_coordinates_of_successive_rows_are_independent():
    first = noise_rows(2, 20_000, 0, "paired").astype(float)
    for lag in (1, 2, 3):
        for a in (0, 1):
            for b in (0, 1):
                assert abs((first[:-lag, a] * first[lag:, b]).mean()) < 5 / np.sqrt(20_000 - lag)


def test_seeds_purposes_and_reference_sets_are_unrelated():
    size = {"dim": 6, "n_paired": 3000, "n_held_out": 3000, "n_reference_sets": 3}
    sets = []
    for seed in (0, 1):
        tensors = bank(seed=seed, **size)
        sets += [tensors["paired"], tensors["held_out"], *tensors["reference"]]
    correlations = np.corrcoef([noise.ravel() for noise in sets])
    assert np.abs(correlations - np.eye(len(sets))).max() < 5 / np.sqrt(18_000)


def test_shapes_and_types():
    tensors = bank(dim=5, n_paired=20, n_held_out=30, n_reference_sets=2)
    assert {name: array.shape for name, array in tensors.items()} == {
        "paired": (20, 5),
        "held_out": (30, 5),
        "reference": (2, 20, 5),
        "rotation": (5, 5),
    }
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float32)}


def test_a_larger_bank_contains_the_smaller_one():
    small = bank(dim=4, n_paired=10, n_held_out=10, n_reference_sets=2)
    large = bank(dim=4, n_paired=25, n_held_out=40, n_reference_sets=3)
    assert np.array_equal(large["paired"][:10], small["paired"])
    assert np.array_equal(large["held_out"][:10], small["held_out"])
    assert np.array_equal(large["reference"][:2, :10], small["reference"])
    assert np.array_equal(large["rotation"], small["rotation"])


def test_the_stored_rotation_is_the_bank_seeds_own_and_orthogonal():
    tensors = bank(dim=16, n_paired=2, n_held_out=32, seed=3)
    assert np.array_equal(tensors["rotation"], haar_rotation(16, 3).astype(np.float32))
    assert not np.allclose(tensors["rotation"], haar_rotation(16, 0))
    rotation = tensors["rotation"].astype(float)
    assert_allclose(rotation @ rotation.T, np.eye(16), atol=1e-6)


@pytest.mark.parametrize("dim", [1, 2, 64])
def test_rotations_are_orthogonal_and_proper(dim):
    rotation = haar_rotation(dim, 0)
    assert rotation.dtype == np.float64
    assert_allclose(rotation @ rotation.T, np.eye(dim), atol=1e-13)
    assert_allclose(np.linalg.det(rotation), 1)


def test_rotations_over_seeds_are_uniform():
    angles = [np.arctan2(q[1, 0], q[0, 0]) for q in (haar_rotation(2, seed) for seed in range(1000))]
    assert kstest(np.array(angles) / (2 * np.pi) + 0.5, "uniform").pvalue > 1e-3


def test_other_processes_make_the_same_bytes_without_torch():
    code = (
        "import sys, hashlib; from dmdpipe.pairing.bank import noise_rows, haar_rotation;"
        "bytes_ = noise_rows(6, 50, 2, 'paired').tobytes() + haar_rotation(6, 2).tobytes();"
        "print(hashlib.sha256(bytes_).hexdigest(), 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = hashlib.sha256(noise_rows(6, 50, 2, "paired").tobytes() + haar_rotation(6, 2).tobytes())
    assert result.stdout.split() == [expected.hexdigest(), "False"]


def test_ten_thousand_rows_are_quick():
    started = time.process_time()
    noise_rows(64, 10_000, 0, "paired")
    assert time.process_time() - started < 2  # takes 0.15 s
