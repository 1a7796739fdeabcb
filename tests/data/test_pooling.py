"""Area pooling against block means, a fine-grid integral and conservation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from dmdpipe.data.pooling import area_pool, pooling_matrix


@pytest.mark.parametrize(("size", "side"), [(8, 1), (8, 2), (8, 4), (28, 4), (28, 7), (28, 14)])
def test_a_divisor_gives_block_means(size, side):
    images = np.random.default_rng(0).random((5, size, size))
    block = size // side
    expected = images.reshape(5, side, block, side, block).mean(axis=(2, 4))
    assert_allclose(area_pool(images, side), expected, rtol=1e-13)


@pytest.mark.parametrize("side", range(1, 29))
def test_any_side_is_the_mean_over_repeated_pixels(side):
    """Independent computation: repeat every pixel side×side times; then blocks of 28×28 fit."""
    images = np.random.default_rng(1).random((2, 28, 28))
    fine = images.repeat(side, axis=1).repeat(side, axis=2)
    expected = fine.reshape(2, side, 28, side, 28).mean(axis=(2, 4))
    assert_allclose(area_pool(images, side), expected, rtol=1e-12)


@pytest.mark.parametrize("side", range(1, 29))
def test_weights_are_shares_and_mass_is_kept(side):
    matrix = pooling_matrix(28, side)
    assert matrix.shape == (side, 28)
    assert matrix.min() >= 0
    assert_allclose(matrix.sum(axis=1), 1, rtol=1e-14)
    assert_allclose(matrix.sum(axis=0), side / 28, rtol=1e-14)


def test_the_same_side_changes_nothing():
    images = np.random.default_rng(2).random((3, 28, 28))
    assert np.array_equal(area_pool(images, 28), images)


def test_pooling_commutes_with_transposing():
    images = np.random.default_rng(3).random((3, 28, 28))
    assert_allclose(area_pool(images.swapaxes(1, 2), 5), area_pool(images, 5).swapaxes(1, 2), rtol=1e-13)


@pytest.mark.parametrize("side", [0, 29])
def test_impossible_sides_are_refused(side):
    with pytest.raises(ValueError, match="cannot pool 28 pixels"):
        pooling_matrix(28, side)
