"""The digits: split, repetition, dequantisation and pooling, against scikit-learn's own array."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits

from dmdpipe.data.digits import draw, split_images, split_labels
from dmdpipe.errors import UserError
from dmdpipe.specs.data import Digits, data_name


def rng():
    return np.random.Generator(np.random.Philox(key=1))


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_without_noise_rows_are_block_means_of_the_images(side):
    raw = draw(Digits(side=side, dequantisation=0, n_train=1437, n_held_out=360), rng())
    block = 8 // side
    pooled = load_digits().images.reshape(1797, side, block, side, block).mean(axis=(2, 4)).reshape(1797, -1) / 16
    rows = np.concatenate([raw.train, raw.held_out])
    assert_allclose(rows[np.lexsort(rows.T)], pooled[np.lexsort(pooled.T)], atol=1e-14)


def test_every_image_is_on_one_side_of_the_split():
    train, held_out = (images.reshape(-1, 64) for images in split_images())
    assert (len(train), len(held_out)) == (1437, 360)
    both = np.concatenate([train, held_out])
    everything = load_digits().data
    assert np.array_equal(both[np.lexsort(both.T)], everything[np.lexsort(everything.T)])
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in held_out}


def test_no_held_out_row_shows_a_training_image():
    raw = draw(Digits(n_train=3000, n_held_out=1000), rng())
    train, held_out = ({row.tobytes() for row in np.rint(rows * 16).astype(int)} for rows in (raw.train, raw.held_out))
    assert (len(train), len(held_out)) == (1437, 360)
    assert not train & held_out


def test_images_are_repeated_evenly():
    raw = draw(Digits(n_train=5000, n_held_out=10), rng())
    _, counts = np.unique(np.rint(raw.train * 16), axis=0, return_counts=True)
    assert set(counts) == {3, 4}
    assert raw.n_images == 1437


def test_a_small_pool_counts_its_images():
    assert draw(Digits(n_train=100, n_held_out=10), rng()).n_images == 100


def test_noise_is_uniform_of_the_stated_width_and_independent():
    width = 0.5
    raw = draw(Digits(n_train=4000, n_held_out=10, dequantisation=width), rng())
    noise = raw.train * 16 - np.rint(raw.train * 16)
    assert np.abs(noise).max() <= width / 2 + 1e-12
    assert_allclose(noise.mean(), 0, atol=5 * width / np.sqrt(12 * noise.size))
    assert_allclose(noise.var(), width**2 / 12, rtol=0.01)
    correlation = np.corrcoef(noise.T) - np.eye(64)
    assert np.abs(correlation).max() < 5.5 / np.sqrt(4000)
    repeated = np.corrcoef(noise[:1437].ravel(), noise[1437 : 2 * 1437].ravel())[0, 1]
    assert abs(repeated) < 5 / np.sqrt(1437 * 64)


def test_lower_resolutions_show_the_same_rows():
    fine, coarse = (draw(Digits(side=side, n_train=5000, n_held_out=10), rng()) for side in (8, 2))
    blocks = fine.train.reshape(-1, 2, 4, 2, 4).mean(axis=(2, 4)).reshape(-1, 4)
    assert_allclose(coarse.train, blocks, atol=1e-14)


@pytest.mark.parametrize(("side", "spread"), [(2, 0.10), (4, 0.18), (8, 0.27)])
def test_raw_spread(side, spread):
    raw = draw(Digits(side=side), rng())
    assert round(float(np.sqrt(raw.train.var(axis=0).mean())), 2) == spread


def test_halves_are_disjoint_and_together_all_images():
    both, first, second = (draw(Digits(half=half), rng()).images for half in ("both", "first", "second"))
    assert (len(first), len(second)) == (718, 719)
    assert np.array_equal(np.concatenate([first, second]), both)
    rows = {half.tobytes() for half in first} & {half.tobytes() for half in second}
    assert not rows


@pytest.mark.parametrize("half", ["both", "first", "second"])
def test_few_images_are_the_first_of_those_there_are(half):
    few, all_ = draw(Digits(half=half, n_images=30), rng()), draw(Digits(half=half), rng())
    assert np.array_equal(few.images, all_.images[:30])
    assert few.n_images == 30
    # Twenty thousand rows of thirty images, each with noise of its own.
    assert len(few.train) == len(all_.train) == len(np.unique(few.train, axis=0))
    assert np.abs(few.train[:30] - few.images).max() <= 0.5 / 16
    assert np.abs(few.train[30:60] - few.images).max() <= 0.5 / 16


def test_subsets_change_neither_the_held_out_rows_nor_the_noise():
    whole, part = draw(Digits(), rng()), draw(Digits(half="second", n_images=7), rng())
    assert np.array_equal(whole.held_out, part.held_out)
    assert_allclose(whole.train[0] - whole.images[0], part.train[0] - part.images[0], atol=1e-12)


def test_more_images_than_there_are_is_one_line():
    with pytest.raises(UserError, match=r"data.n_images: 719, but digits-8x8-first-half-n719 has 718; take fewer"):
        draw(Digits(half="first", n_images=719), rng())


def test_names_tell_subsets_apart():
    assert data_name(Digits()) == "digits-8x8"
    assert data_name(Digits(half="second", n_images=50)) == "digits-8x8-second-half-n50"


def test_a_single_digit_is_the_images_with_its_label_and_class_means_are_means_over_them():
    """Against scikit-learn's own order: an image's label is that of the image that it equals."""
    label_of = {image.tobytes(): label for image, label in zip(*load_digits(return_X_y=True), strict=True)}
    images, labels = split_images()[0].reshape(-1, 64), split_labels()[0]
    assert [label_of[image.tobytes()] for image in images] == labels.tolist()
    rng = np.random.Generator(np.random.Philox(0))
    only = draw(Digits(digit=3, n_train=400, n_held_out=20, dequantisation=0), rng)
    assert_allclose(only.images, images[labels == 3] / 16)
    assert only.n_images == (labels == 3).sum() and only.modes is None
    held_out, held_out_labels = split_images()[1].reshape(-1, 64), split_labels()[1]
    assert_allclose(only.held_out, held_out[held_out_labels == 3][:20] / 16)
    modes = draw(Digits(class_means=True, n_images=5, n_train=5, n_held_out=1), rng).modes
    assert_allclose(modes, np.stack([images[labels == digit].mean(0) for digit in range(10)]) / 16)
