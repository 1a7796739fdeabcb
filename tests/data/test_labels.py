"""Labels stand beside the rows that they are of, and change nothing else."""

from __future__ import annotations

import gzip
import hashlib
import struct

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_digits

from dmdpipe.artifacts.stages import find_stage
from dmdpipe.data import fashion, fetching
from dmdpipe.data.prepare import prepare
from dmdpipe.errors import UserError
from dmdpipe.specs.data import Digits, Fashion, Mixture, Ring, class_count

FEW = {"n_train": 50, "n_held_out": 20}


@pytest.mark.parametrize(
    "spec",
    [
        Digits(**FEW, side=8, dequantisation=0),
        Digits(**FEW, side=8, dequantisation=0, half="second", n_images=17),
        Digits(n_train=3_000, n_held_out=500, side=8, dequantisation=0),
    ],
    ids=["all", "seventeen of a half", "rows repeat"],
)
def test_a_digits_label_is_its_images(spec):
    """Each row is looked up among scikit-learn's images."""
    tensors, facts = prepare(spec.model_copy(update={"labels": True}))
    digits = load_digits()
    known = {image.astype(np.uint8).tobytes(): label for image, label in zip(digits.images, digits.target, strict=True)}
    for rows, labels in (("train", "labels"), ("held_out", "labels_held_out")):
        images = np.rint((tensors[rows] / facts["scale"] + facts["raw_mean"]) * 16).astype(np.uint8)
        assert tensors[labels].tolist() == [known[image.tobytes()] for image in images.reshape(-1, 8, 8)]
        assert tensors[labels].dtype == np.int64
    assert len(set(tensors["labels"])) > 5


@pytest.mark.parametrize("family", [Digits(**FEW, side=2), Ring(**FEW), Mixture(**FEW, dim=3)])
def test_labels_change_nothing_else(family):
    with_labels = family.model_copy(update={"labels": True})
    without, _ = prepare(family)
    found, _ = prepare(with_labels)
    assert found.keys() - without.keys() == {"labels", "labels_held_out"}
    assert all(np.array_equal(found[name], without[name]) for name in without)
    assert "labels" not in family.model_dump(mode="json")
    stage = find_stage("data")
    assert stage.digest(with_labels) != stage.digest(family)
    assert "dmdpipe.data.labels" in stage.code(with_labels).modules
    assert "dmdpipe.data.labels" not in stage.code(family).modules


def test_the_label_of_a_mixture_is_its_nearest_mode():
    tensors, _ = prepare(Ring(n_train=500, n_held_out=40, modes=5, labels=True, ambient={"dim": 3}))
    for rows, labels in (("train", "labels"), ("held_out", "labels_held_out")):
        distances = np.linalg.norm(tensors[rows][:, None] - tensors["modes"][None], axis=2)
        assert tensors[labels].tolist() == distances.argmin(axis=1).tolist()
    counts = np.bincount(tensors["labels"], minlength=5)
    assert abs(counts - 100).max() < 5 * np.sqrt(500 * 0.2 * 0.8)


@pytest.mark.parametrize(
    ("family", "fields", "says"),
    [(Digits, {"digit": 3}, "digit"), (Digits, {"law": "gaussian"}, "law"), (Fashion, {"law": "gaussian"}, "law")],
)
def test_labels_need_images_of_all_classes(family, fields, says):
    with pytest.raises(ValidationError, match=says):
        family(labels=True, **fields)


def test_classes_are_counted_where_labels_are_stored():
    assert [class_count(spec) for spec in (Digits(labels=True), Fashion(labels=True), Ring(labels=True, modes=5))] == [
        *(10, 10, 5)
    ]
    assert class_count(Digits()) == class_count(Ring()) == 0


# Fashion-MNIST, of small synthetic files


def idx(array, magic):
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Images whose every pixel is their label times 20; a class's own number of times."""
    payloads = {}
    for seed, n, names in ((0, 30, 0), (1, 12, 1)):
        labels = np.random.default_rng(seed).integers(0, 10, n).astype(np.uint8)
        images = np.broadcast_to(20 * labels[:, None, None], (n, 28, 28)).astype(np.uint8)
        payloads[(fashion.TRAIN_FILE, fashion.HELD_OUT_FILE)[names]] = idx(images, 0x803)
        payloads[fashion.LABEL_FILES[names]] = idx(labels, 0x801)
    for name, payload in payloads.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(payload))
    monkeypatch.setattr(fashion, "SHA256", {name: hashlib.sha256(own).hexdigest() for name, own in payloads.items()})
    monkeypatch.setenv(fashion.FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("fields", [{}, {"half": "first"}, {"n_images": 7}], ids=["all", "half", "seven"])
def test_an_image_of_fashion_has_its_own_label(files, fields):
    spec = Fashion(**FEW, side=2, dequantisation=0, labels=True, **fields)
    tensors, facts = prepare(spec)
    for rows, labels in (("train", "labels"), ("held_out", "labels_held_out")):
        grey = (tensors[rows] / facts["scale"] + facts["raw_mean"]) * 256
        assert np.rint(grey[:, 0] / 20).astype(int).tolist() == tensors[labels].tolist()


@pytest.mark.parametrize(
    "payload",
    [
        idx(np.zeros(12, np.uint8), 0x803),
        idx(np.zeros(12, np.uint8), 0x801)[:-1],
        idx(np.full(12, 10, np.uint8), 0x801),
        b"",
        idx(np.zeros(0, np.uint8), 0x801),
    ],
    ids=["of images", "cut off", "an eleventh class", "empty", "none"],
)
def test_files_that_are_no_labels_are_refused(files, payload):
    (files / f"{fashion.LABEL_FILES[1]}.gz").write_bytes(gzip.compress(payload))
    with pytest.raises(UserError, match=r"^[^\n]*t10k-labels[^\n]*$"):
        prepare(Fashion(**FEW, side=2, labels=True))


def test_other_labels_than_the_published_ones_are_refused(files):
    (files / f"{fashion.LABEL_FILES[0]}.gz").write_bytes(gzip.compress(idx(np.zeros(30, np.uint8), 0x801)))
    with pytest.raises(UserError, match=r"^[^\n]*train-labels[^\n]*sha256[^\n]*$"):
        prepare(Fashion(**FEW, side=2, labels=True))


def test_labels_are_fetched_only_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(fashion.FOLDER_VARIABLE, raising=False)
    without, with_labels = (
        {path.stem for path in fetching.files_to_fetch(Fashion(labels=labels))} for labels in (False, True)
    )
    assert with_labels - without == set(fashion.LABEL_FILES) and len(without) == 2
