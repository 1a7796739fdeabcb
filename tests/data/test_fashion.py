"""Fashion-MNIST on small synthetic files: where it is looked for, how it is fetched, all that can be wrong with it."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import socket
import struct
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from dmdpipe.data import fashion, fetching
from dmdpipe.data.prepare import prepare
from dmdpipe.errors import UserError
from dmdpipe.specs.data import Digits, Fashion

SIDE = 28


def idx_bytes(images, magic=0x00000803):
    return struct.pack(">4I", magic, *images.shape) + images.tobytes()


def synthetic_images(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE), dtype=np.uint8)


TRAIN, HELD_OUT = synthetic_images(30, 0), synthetic_images(12, 1)
PAYLOADS = {fashion.TRAIN_FILE: idx_bytes(TRAIN), fashion.HELD_OUT_FILE: idx_bytes(HELD_OUT)}


def write_set(folder, compressed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, payload in PAYLOADS.items():
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(payload))
        else:
            (folder / name).write_bytes(payload)
    return folder


@pytest.fixture(autouse=True)
def _sandbox(tmp_path, monkeypatch):
    """No folder of this machine, no mirror, no network, and the checksums of the synthetic files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(fashion.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(fetching, "MIRRORS", ())
    monkeypatch.setattr(socket, "socket", None)
    sums = {name: hashlib.sha256(payload).hexdigest() for name, payload in PAYLOADS.items()}
    monkeypatch.setattr(fashion, "SHA256", sums)


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """A good set in the folder that the environment variable names."""
    folder = write_set(tmp_path / "chosen")
    monkeypatch.setenv(fashion.FOLDER_VARIABLE, str(folder))
    return folder


def one_line_error():
    return pytest.raises(UserError, match=r"^[^\n]*$")


def test_images_come_back_as_written(chosen):
    assert np.array_equal(fashion.load_images(fashion.TRAIN_FILE), TRAIN)
    assert np.array_equal(fashion.load_images(fashion.HELD_OUT_FILE), HELD_OUT)


def test_plain_files_will_do(tmp_path, monkeypatch):
    monkeypatch.setenv(fashion.FOLDER_VARIABLE, str(write_set(tmp_path / "plain", compressed=False)))
    assert np.array_equal(fashion.load_images(fashion.TRAIN_FILE), TRAIN)


def test_the_usual_folder_is_that_of_the_fetched_files(tmp_path):
    write_set(tmp_path / "data/fashion-mnist")
    assert np.array_equal(fashion.load_images(fashion.TRAIN_FILE), TRAIN)


def test_rows_are_the_pooled_images_of_the_right_file(chosen):
    spec = Fashion(side=4, dequantisation=0, n_train=30, n_held_out=12)
    raw = fashion.draw(spec, np.random.default_rng(0))
    for rows, images in ((raw.train, TRAIN), (raw.held_out, HELD_OUT)):
        expected = images.reshape(-1, 4, 7, 4, 7).mean(axis=(2, 4)).reshape(-1, 16) / 256
        assert_allclose(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)], rtol=1e-12)
        assert not np.allclose(rows, expected)  # shuffled: a small pool is a random subset


def test_halves_are_disjoint_and_few_images_are_repeated(chosen):
    sizes = {"side": 4, "n_train": 40, "n_held_out": 12}
    first, second = (prepare_raw(half=half, **sizes) for half in ("first", "second"))
    assert len(first.images) == len(second.images) == 15
    assert not {row.tobytes() for row in first.images} & {row.tobytes() for row in second.images}
    few = prepare_raw(n_images=7, **sizes)
    assert (few.n_images, len(few.train)) == (7, 40)
    assert np.abs(few.train[7:14] - few.images).max() <= 0.5 / 256
    with one_line_error():
        prepare_raw(n_images=31, **sizes)


def prepare_raw(**fields):
    return fashion.draw(Fashion(**fields), np.random.default_rng(0))


@pytest.mark.parametrize("side", [1, 5, 28])
def test_prepared(chosen, side):
    tensors, facts = prepare(Fashion(side=side, n_train=50, n_held_out=20))
    assert tensors["train"].shape == (50, side**2) and tensors["held_out"].shape == (20, side**2)
    assert_allclose(tensors["train"].astype(float).var(axis=0).mean(), 0.25, rtol=1e-5)
    assert facts["n_images"] == 30
    again, _ = prepare(Fashion(side=side, n_train=50, n_held_out=20))
    assert all(np.array_equal(tensors[name], again[name]) for name in tensors)


def test_a_flipped_bit_is_named_with_both_checksums(chosen):
    payload = bytearray(PAYLOADS[fashion.TRAIN_FILE])
    payload[5000] ^= 1
    path = chosen / f"{fashion.TRAIN_FILE}.gz"
    path.write_bytes(gzip.compress(payload))
    with one_line_error() as caught:
        fashion.load_images(fashion.TRAIN_FILE)
    message = str(caught.value)
    assert str(path) in message
    assert fashion.SHA256[fashion.TRAIN_FILE] in message
    assert hashlib.sha256(payload).hexdigest() in message


def test_the_two_files_cannot_be_swapped(chosen):
    (chosen / f"{fashion.HELD_OUT_FILE}.gz").write_bytes(gzip.compress(PAYLOADS[fashion.TRAIN_FILE]))
    with one_line_error() as caught:
        fashion.load_images(fashion.HELD_OUT_FILE)
    assert "damaged or another file" in str(caught.value)


GOOD = PAYLOADS[fashion.TRAIN_FILE]
FAULTS = {
    "truncated gz": (gzip.compress(GOOD)[:-100], "cannot be read"),
    "damaged gz": (gzip.compress(GOOD)[:50] + bytes(60) + gzip.compress(GOOD)[110:], "cannot be read"),
    "no gz": (b"<html>not found</html>", "cannot be read"),
    "empty": (b"", "not an idx file"),
    "header cut": (gzip.compress(GOOD[:10]), "not an idx file"),
    "pixels cut": (gzip.compress(GOOD[:-1]), "claims 30 images of 28x28 but has 23519 bytes"),
    "pixels added": (gzip.compress(GOOD + b"\0"), "claims 30 images of 28x28 but has 23521 bytes"),
    "labels": (gzip.compress(idx_bytes(TRAIN, magic=0x00000801)), "not an idx file of images"),
    "floats": (gzip.compress(idx_bytes(TRAIN, magic=0x00000D03)), "not an idx file of images"),
    "huge claim": (
        gzip.compress(struct.pack(">4I", 0x803, 2**31, 2**16, 2**16) + b"\0"),
        "claims 2147483648",
    ),
    "not square": (gzip.compress(idx_bytes(TRAIN.reshape(30, 14, 56))), "claims 30 images of 14x56"),
    "no images": (gzip.compress(idx_bytes(TRAIN[:0])), "claims 0 images"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_files_are_named(chosen, fault):
    content, complaint = FAULTS[fault]
    path = chosen / f"{fashion.TRAIN_FILE}.gz"
    path.write_bytes(content)
    with one_line_error() as caught:
        fashion.load_images(fashion.TRAIN_FILE)
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)


def test_a_file_that_unpacks_to_too_much_is_not_read_to_the_end(chosen, monkeypatch):
    monkeypatch.setattr(fashion, "MAX_BYTES", 1000)
    with one_line_error() as caught:
        fashion.load_images(fashion.TRAIN_FILE)
    assert "has 984 bytes of pixels" in str(caught.value)


def test_a_missing_folder_is_named(tmp_path, monkeypatch):
    write_set(tmp_path / "data/fashion-mnist")
    monkeypatch.setenv(fashion.FOLDER_VARIABLE, "/no/such/folder")
    with one_line_error() as caught:
        fashion.load_images(fashion.TRAIN_FILE)
    assert "/no/such/folder, which is not a folder" in str(caught.value)


def test_a_missing_file_in_the_chosen_folder_is_named(chosen):
    (chosen / f"{fashion.HELD_OUT_FILE}.gz").unlink()
    with one_line_error() as caught:
        fashion.load_images(fashion.HELD_OUT_FILE)
    assert f"{chosen} (from DMDPIPE_FASHION_MNIST) has no {fashion.HELD_OUT_FILE}.gz" in str(caught.value)


def test_a_file_that_nobody_fetched_is_named_and_no_connection_is_opened_for_it():
    with one_line_error() as caught:
        prepare(Fashion(side=4, n_train=30, n_held_out=12))
    message = str(caught.value)
    assert f"data/fashion-mnist has no {fashion.TRAIN_FILE}.gz" in message and "./run fetches it" in message


# Fetching

TARGETS = [Path("data/fashion-mnist", f"{name}.gz") for name in PAYLOADS]
SPEC = Fashion(side=4, n_train=30, n_held_out=12)


def test_what_is_to_fetch_hangs_on_the_data_and_on_what_the_user_has_put_where(tmp_path, monkeypatch):
    assert fetching.files_to_fetch(SPEC) == TARGETS
    assert fetching.files_to_fetch(Digits(side=4, n_train=30, n_held_out=12)) == []
    write_set(tmp_path / "data/fashion-mnist")
    assert fetching.files_to_fetch(SPEC) == TARGETS  # the same after fetching as before
    for path in TARGETS:
        path.rename(path.with_suffix(""))
        path.with_suffix("").write_bytes(gzip.decompress(path.with_suffix("").read_bytes()))
    assert fetching.files_to_fetch(SPEC) == []
    assert np.array_equal(fashion.load_images(fashion.TRAIN_FILE), TRAIN)


def test_nothing_is_fetched_where_the_user_names_a_folder(monkeypatch):
    monkeypatch.setenv(fashion.FOLDER_VARIABLE, "/anywhere")
    assert fetching.files_to_fetch(SPEC) == []


def test_what_was_fetched_is_what_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "MIRRORS", (write_set(tmp_path / "mirror").as_uri() + "/",))
    for target in fetching.files_to_fetch(SPEC):
        fetching.fetch(target)
    assert np.array_equal(fashion.load_images(fashion.TRAIN_FILE), TRAIN)
    assert np.array_equal(fashion.load_images(fashion.HELD_OUT_FILE), HELD_OUT)
    assert sorted((tmp_path / "data/fashion-mnist").iterdir()) == sorted(tmp_path / target for target in TARGETS)


def test_a_right_file_that_is_there_stays_and_a_wrong_one_is_replaced(tmp_path, monkeypatch):
    """However often it is fetched, as where everything is made again without a network."""
    write_set(tmp_path / "data/fashion-mnist")
    monkeypatch.setattr(fetching, "MIRRORS", ())
    fetching.fetch(TARGETS[0])
    TARGETS[0].write_bytes(b"damaged")
    monkeypatch.setattr(fetching, "MIRRORS", (write_set(tmp_path / "mirror").as_uri() + "/",))
    fetching.fetch(TARGETS[0])
    assert np.array_equal(fashion.load_images(fashion.TRAIN_FILE), TRAIN)


def test_the_next_mirror_is_tried_when_one_fails_or_serves_something_else(tmp_path, monkeypatch):
    absent, wrong, good = (tmp_path / name for name in ("absent", "wrong", "good"))
    write_set(good)
    wrong.mkdir()
    (wrong / TARGETS[0].name).write_bytes(gzip.compress(PAYLOADS[fashion.HELD_OUT_FILE]))
    monkeypatch.setattr(fetching, "MIRRORS", tuple(folder.as_uri() + "/" for folder in (absent, wrong, good)))
    fetching.fetch(TARGETS[0])
    assert np.array_equal(fashion.load_images(fashion.TRAIN_FILE), TRAIN)


class Broken:
    """A connection that ends before the file does; what is read of it is bounded."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, size=-1):
        assert 0 < size <= fashion.MAX_BYTES
        raise http.client.IncompleteRead(b"half of it")


def test_a_connection_that_breaks_off_is_one_mirror_that_failed(tmp_path, monkeypatch):
    good = write_set(tmp_path / "good").as_uri() + "/"
    monkeypatch.setattr(fetching, "MIRRORS", ("http://broken/", good))
    opened = urllib.request.urlopen

    def instead(url, timeout):
        return Broken() if url.startswith("http://broken/") else opened(url, timeout=timeout)

    monkeypatch.setattr(urllib.request, "urlopen", instead)
    fetching.fetch(TARGETS[0])
    assert np.array_equal(fashion.load_images(fashion.TRAIN_FILE), TRAIN)
    monkeypatch.setattr(fetching, "MIRRORS", ("http://broken/",))
    TARGETS[0].unlink()
    with one_line_error() as caught:
        fetching.fetch(TARGETS[0])
    assert "IncompleteRead" in str(caught.value)


def test_a_failed_download_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / TARGETS[0].name).write_bytes(b"<html>log in first</html>")
    monkeypatch.setattr(fetching, "MIRRORS", (wrong.as_uri() + "/", (tmp_path / "absent").as_uri() + "/"))
    with one_line_error() as caught:
        fetching.fetch(TARGETS[0])
    message = str(caught.value)
    assert message.startswith(f"{TARGETS[0]} cannot be fetched (file://")
    assert "Not a gzipped file" in message and "No such file" in message
    assert "dataset-fashion-mnist" in message and fashion.FOLDER_VARIABLE in message
    assert list((tmp_path / "data/fashion-mnist").iterdir()) == []
