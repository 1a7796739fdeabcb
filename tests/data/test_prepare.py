"""Preparation: the common scale, what is stored, and that only the spec decides it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from dmdpipe.data.prepare import prepare, prepare_data
from dmdpipe.errors import UserError
from dmdpipe.specs.base import canonical_json
from dmdpipe.specs.data import (
    Checkerboard,
    Digits,
    Gaussian,
    Mixture,
    Moons,
    Ring,
    SwissRoll,
    data_name,
    dimension,
)

SIZES = {"n_train": 4000, "n_held_out": 1500}
SPECS = [
    *(Digits(side=side, **SIZES) for side in (1, 2, 4, 8)),
    Ring(**SIZES),
    Moons(**SIZES),
    Checkerboard(**SIZES),
    SwissRoll(**SIZES),
    Gaussian(**SIZES),
    Gaussian(dim=100, spectrum="isotropic", rotated=False, **SIZES),
    Mixture(**SIZES),
    Mixture(dim=64, modes=3, separation=2, **SIZES),
]
EXACT = [spec for spec in SPECS if spec.family in ("ring", "gaussian", "mixture")]
SAMPLED = [spec for spec in SPECS if spec not in EXACT]


@pytest.mark.parametrize("spec", SPECS, ids=data_name)
def test_shapes_types_and_scale(spec):
    tensors, facts = prepare(spec)
    d = dimension(spec)
    for name, n in (("train", 4000), ("held_out", 1500)):
        assert tensors[name].shape == (n, d)
        assert tensors[name].dtype == np.float32
    assert facts["dim"] == d
    assert facts["scale"] == 0.5 / facts["raw_spread"]
    assert len(facts["raw_mean"]) == d
    assert facts["n_images"] == (1437 if spec.family == "digits" else None)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    # The variance of d correlated coordinates: judged by the spread of the rows' own mean squares.
    for rows in (tensors["train"], tensors["held_out"]):
        squares = (rows.astype(float) ** 2).mean(axis=1)
        error = squares.std() / np.sqrt(min(len(rows), 360 if spec.family == "digits" else len(rows)))
        assert abs(squares.mean() - 0.25) < 5 * error


@pytest.mark.parametrize("spec", SAMPLED, ids=data_name)
def test_the_training_pool_sets_the_scale_where_nothing_better_is_known(spec):
    train = prepare(spec)[0]["train"].astype(float)
    assert_allclose(train.mean(axis=0), 0, atol=1e-6)
    assert_allclose(train.var(axis=0).mean(), 0.25, rtol=1e-6)


@pytest.mark.parametrize("spec", EXACT, ids=data_name)
def test_the_exact_distribution_sets_the_scale_where_it_is_known(spec):
    tensors, _ = prepare(spec)
    exact = {name: tensors[f"exact.{name}"] for name in ("weights", "means", "basis", "variances")}
    d, k = dimension(spec), len(exact["weights"])
    assert {array.dtype for array in exact.values()} == {np.dtype(np.float64)}
    assert exact["means"].shape == exact["variances"].shape == (k, d)
    assert_allclose(exact["basis"].T @ exact["basis"], np.eye(d), atol=1e-12)
    assert_allclose(exact["weights"].sum(), 1)
    assert_allclose(exact["weights"] @ exact["means"], 0, atol=1e-12)
    second_moment = exact["weights"] @ (exact["means"] ** 2 + exact["variances"])
    assert_allclose(second_moment.mean(), 0.25, rtol=1e-12)
    if k > 1:
        assert_allclose(tensors["modes"], exact["means"], rtol=1e-6)
        assert tensors["modes"].dtype == np.float32


@pytest.mark.parametrize("spec", EXACT, ids=data_name)
def test_the_scaled_distribution_fits_the_scaled_samples(spec):
    """Whitened by the nearest mode's own covariance, samples of well-separated modes are standard normal."""
    tensors, _ = prepare(spec.model_copy(update={"separation": 60.0} if spec.family == "mixture" else {}))
    samples, means = tensors["held_out"].astype(float), tensors["exact.means"]
    mode = np.linalg.norm(samples[:, None] - means, axis=2).argmin(axis=1)
    white = (samples - means[mode]) @ tensors["exact.basis"] / np.sqrt(tensors["exact.variances"][mode])
    assert_allclose(white.mean(axis=0), 0, atol=5 / np.sqrt(len(white)))
    assert_allclose(white.var(axis=0), 1, atol=5 * np.sqrt(2 / len(white)))
    counts = np.bincount(mode, minlength=len(means)) / len(samples)
    assert_allclose(counts, 1 / len(means), atol=5 * 0.5 / np.sqrt(len(samples)))


def test_facts_give_back_the_raw_units():
    tensors, facts = prepare(Checkerboard(**SIZES))
    raw = tensors["train"] / facts["scale"] + np.array(facts["raw_mean"])
    assert_allclose([raw.min(), raw.max()], [0, 4], atol=0.01)
    assert_allclose(tensors["modes"] / facts["scale"] + np.array(facts["raw_mean"]) - 0.5, [
        [i, j] for i in range(4) for j in range(4) if (i + j) % 2 == 0
    ], atol=1e-6)  # fmt: skip


def test_long_means_are_left_out():
    assert "raw_mean" not in prepare(Mixture(dim=785, n_train=5, n_held_out=5))[1]


@pytest.mark.parametrize("spec", SPECS, ids=data_name)
def test_train_and_held_out_share_no_row(spec):
    tensors, _ = prepare(spec)
    train, held_out = ({row.tobytes() for row in tensors[name]} for name in ("train", "held_out"))
    assert not train & held_out


def test_the_split_of_the_digits_does_not_depend_on_sizes():
    small = prepare(Digits(dequantisation=0, n_train=1437, n_held_out=360))
    large = prepare(Digits(dequantisation=0, n_train=2 * 1437, n_held_out=720))
    assert np.array_equal(large[0]["held_out"][:360], small[0]["held_out"])


def test_data_without_spread_are_refused():
    with pytest.raises(UserError, match=r"data.n_train: all rows of digits-8x8 are equal"):
        prepare(Digits(n_train=1))


def test_unknown_families_are_refused():
    with pytest.raises(UserError, match=r"'moon' is unknown \(did you mean 'moons'\?\)"):
        prepare(SimpleNamespace(family="moon"))


def test_the_step_writes_what_prepare_returns():
    written = {}
    step = SimpleNamespace(
        spec=Ring(n_train=10, n_held_out=5),
        write_tensors=lambda name, tensors: written.update({name: tensors}),
        write_json=lambda name, value: written.update({name: value}),
    )
    prepare_data(step)
    tensors, facts = prepare(step.spec)
    assert written.keys() == {"data.safetensors", "facts.json"}
    assert written["facts.json"] == facts
    assert written["data.safetensors"].keys() == tensors.keys()
    assert all(np.array_equal(written["data.safetensors"][name], tensors[name]) for name in tensors)


def fingerprint():
    """Return a digest of everything that the specs of this file prepare."""
    digest = hashlib.sha256()
    for spec in SPECS:
        tensors, facts = prepare(spec)
        digest.update(canonical_json(facts).encode())
        for name in tensors:
            digest.update(name.encode() + tensors[name].tobytes())
    return digest.hexdigest()


def test_another_process_prepares_the_same_bytes_and_imports_only_what_it_needs():
    code = (
        "import sys, test_prepare as t; from dmdpipe.specs.data import FAMILIES; t.prepare(t.Ring());"
        "others = {f'dmdpipe.data.{family}' for family in FAMILIES} & sys.modules.keys();"
        "print(t.fingerprint(), *others, 'torch' in sys.modules)"
    )
    hash_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.path.dirname(__file__)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [fingerprint(), "dmdpipe.data.ring", "False"]
