"""Patches of photos: split by photo, where they lie, and that another file is refused."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from dmdpipe.data import photos
from dmdpipe.data.prepare import prepare
from dmdpipe.errors import UserError
from dmdpipe.specs.data import Photos, data_name, dimension

SMALL = Photos(side=6, dequantisation=0, n_train=300, n_held_out=40)


def every_patch(name, side=6):
    photo = load_sample_image(name)
    windows = np.lib.stride_tricks.sliding_window_view(photo, (side, side), axis=(0, 1))
    # Flat in the order row, column, colour.
    return {np.ascontiguousarray(w).tobytes() for w in windows.transpose(0, 1, 3, 4, 2).reshape(-1, side * side * 3)}


def levels(rows):
    return {np.rint(row * 256).astype(np.uint8).tobytes() for row in rows}


def test_rows_are_patches_of_one_photo_and_held_out_rows_of_the_other():
    raw = photos.draw(SMALL, np.random.default_rng(0))
    assert raw.train.shape == (300, 108) and raw.held_out.shape == (40, 108)
    assert levels(raw.train) <= every_patch("china.jpg")
    assert levels(raw.held_out) <= every_patch("flower.jpg")
    assert not levels(raw.train) & levels(raw.held_out)
    assert len(levels(raw.train)) > 200  # many places, not one


def test_32_pixels_have_3072_coordinates_and_a_declared_licence():
    spec = Photos(n_train=8, n_held_out=4)
    tensors, facts = prepare(spec)
    assert dimension(spec) == 3072 and tensors["train"].shape == (8, 3072)
    assert data_name(Photos(components=16)) == "photos-32x32-pca16"
    assert facts["licence"] == "CC BY 2.0" and "danielbuechele" in facts["source"] and "vultilion" in facts["source"]


def test_places_are_distinct():
    photo = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    rows = photos.patches(photo, 24, "n_train", Photos(side=2, dequantisation=0), np.random.default_rng(0))
    assert len(levels(rows)) == 24
    with pytest.raises(UserError, match="has 24 places for patches, not 25"):
        photos.patches(photo, 25, "n_train", Photos(side=2), np.random.default_rng(0))


def test_another_file_is_refused_with_both_checksums(monkeypatch):
    monkeypatch.setitem(photos.SHA256, "china.jpg", "0" * 64)
    with pytest.raises(UserError, match=r"china.jpg is damaged or another file.*should be 0{64} but is 8378025a"):
        photos.load_photo("china.jpg")
