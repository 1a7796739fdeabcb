"""Other coordinates, fewer components, another law: what each keeps and what it changes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.spatial.distance import pdist

from dmdpipe.artifacts.stages import STAGES
from dmdpipe.data.prepare import prepare
from dmdpipe.specs.base import digest
from dmdpipe.specs.data import Ambient, Checkerboard, Digits, Gaussian, Mixture, Ring, data_name, dimension

SIZES = {"n_train": 2000, "n_held_out": 50}


def raw_rows(spec, name="held_out"):
    """The stored rows in raw units."""
    tensors, facts = prepare(spec)
    return tensors[name].astype(float) / facts["scale"] + np.array(facts["raw_mean"])


@pytest.mark.parametrize("axes", ["rotated", "permuted"])
@pytest.mark.parametrize(
    "own", [Checkerboard(**SIZES), Digits(side=2, **SIZES), Mixture(dim=3, **SIZES)], ids=lambda spec: spec.family
)
def test_other_coordinates_keep_all_distances(own, axes):
    moved = own.model_copy(update={"ambient": Ambient(dim=20, axes=axes)})
    before, after = raw_rows(own), raw_rows(moved)
    assert after.shape == (50, 20)
    assert_allclose(pdist(after), pdist(before), rtol=1e-4, atol=1e-5)
    assert np.linalg.matrix_rank(after - after.mean(axis=0), tol=1e-4) == dimension(own)


def test_the_scale_is_that_of_all_coordinates():
    tensors, _ = prepare(Checkerboard(ambient=Ambient(dim=20), **SIZES))
    assert_allclose(tensors["train"].astype(float).var(axis=0).mean(), 0.25, rtol=1e-5)


def test_permuted_images_have_the_same_values_elsewhere():
    own, moved = (raw_rows(Digits(ambient=ambient, **SIZES)) for ambient in (None, Ambient(axes="permuted")))
    assert not np.allclose(own, moved)
    assert_allclose(np.sort(moved, axis=1), np.sort(own, axis=1), atol=1e-6)
    # One permutation for all rows.
    order = [int(np.flatnonzero(np.isclose(own, column[:, None], atol=1e-6).all(axis=0))[0]) for column in moved.T]
    assert sorted(order) == list(range(64))


@pytest.mark.parametrize("own", [Gaussian(dim=3, **SIZES), Ring(**SIZES)], ids=lambda spec: spec.family)
def test_an_exact_distribution_stays_exact(own):
    """Moments and support of the stored mixture, against those that the isometry makes of the family's own."""
    moved = own.model_copy(update={"ambient": Ambient(dim=7)})
    tensors, facts = prepare(moved)
    before, facts_before = prepare(own)
    k = dimension(own)
    assert_allclose(tensors["exact.basis"].T @ tensors["exact.basis"], np.eye(7), atol=1e-12)
    assert_allclose(tensors["exact.variances"][:, k:], 0)
    scale = facts["scale"] / facts_before["scale"]
    assert_allclose(tensors["exact.variances"][:, :k], before["exact.variances"] * scale**2, rtol=1e-12)
    # Coordinates along the stored basis are those along the family's own.
    along, along_before = ((one["held_out"].astype(float) @ one["exact.basis"])[:, :k] for one in (tensors, before))
    assert_allclose(along, along_before * scale, rtol=1e-4, atol=1e-5)
    assert_allclose((tensors["held_out"].astype(float) @ tensors["exact.basis"])[:, k:], 0, atol=1e-5)


@pytest.mark.parametrize("kept", [1, 5, 64])
def test_images_of_k_components_have_rank_k_and_are_the_nearest_such(kept):
    whole, part = (raw_rows(Digits(components=components, **SIZES), "train") for components in (None, kept))
    centred = whole - whole.mean(axis=0)
    assert np.linalg.matrix_rank(part - part.mean(axis=0), tol=1e-2) == kept
    # The singular values that are lost are the smallest ones (Eckart and Young).
    lost = np.linalg.svd(centred, compute_uv=False)[kept:]
    assert_allclose(((whole - part) ** 2).sum(), (lost**2).sum(), rtol=1e-3, atol=1e-6)
    held_out = raw_rows(Digits(components=kept, **SIZES))
    assert np.linalg.matrix_rank(held_out - part.mean(axis=0), tol=1e-2) == min(kept, 50)


@pytest.mark.parametrize("components", [None, 4])
def test_a_gaussian_of_the_images_has_their_mean_and_covariance(components):
    images, _ = prepare(Digits(side=4, components=components, **SIZES))
    tensors, facts = prepare(Digits(side=4, components=components, law="gaussian", **SIZES))
    basis, variances = tensors["exact.basis"], tensors["exact.variances"][0]
    covariance = np.cov(images["train"].astype(float).T, bias=True)
    assert_allclose(basis @ np.diag(variances) @ basis.T, covariance, atol=1e-6)
    assert (variances > 1e-9).sum() == (components or 16)
    assert variances.min() >= 0
    assert facts["n_images"] is None and "images" not in tensors
    # Samples are of that Gaussian and not images: whitened, their fourth moment is 3.
    kept = variances > 1e-9
    white = (tensors["train"].astype(float) @ basis)[:, kept] / np.sqrt(variances[kept])
    assert_allclose((white**4).mean(), 3, atol=0.3)
    assert_allclose(white.var(axis=0), 1, atol=5 * np.sqrt(2 / 2000))


def test_names_say_what_was_done():
    assert data_name(Digits(side=4, components=3, law="gaussian")) == "digits-4x4-pca3-gaussian"
    assert data_name(Gaussian(dim=4, ambient=Ambient(dim=16))) == "rotated-gaussian-4-in-16"
    assert data_name(Ring(ambient=Ambient(axes="permuted"))) == "permuted-ring"
    assert [data_name(Mixture(dim=4, separation=s)) for s in (8, 4)] == ["mixture-4", "mixture-4-separation-4"]


def test_impossible_transformations_are_refused():
    with pytest.raises(ValueError, match="ambient.dim .3. must be at least the family's own dimension, 16"):
        Digits(side=4, ambient=Ambient(dim=3))
    with pytest.raises(ValueError, match="components .17. must be at most the number of coordinates, 16"):
        Digits(side=4, components=17)


def test_data_as_they_were_keep_their_digests():
    # As it was before there were transformations.
    assert digest(Digits()) == "63eea160e15245d0"
    assert STAGES["data"].parse(Digits(law="gaussian").model_dump(mode="json")) == Digits(law="gaussian")
    assert len({digest(spec) for spec in (Digits(), Digits(law="gaussian"), Digits(ambient=Ambient()))}) == 3
