"""Own data on small files: the rows against plain NumPy, the checksum against coreutils, and all that can be wrong."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.testing import assert_allclose
from PIL import Image

from dmdpipe.artifacts.plan import plan
from dmdpipe.artifacts.step import run_step
from dmdpipe.data import own_file, own_images, own_vectors
from dmdpipe.data.prepare import prepare
from dmdpipe.errors import UserError
from dmdpipe.specs.data import OwnImages, OwnVectors, dimension

RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (20, 8, 8), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
VECTORS = RNG.standard_normal((15, 3))
SIZES = {"n_train": 16, "n_held_out": 4}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config").mkdir()
    register({})


def register(own_data):
    Path("config/config.yaml").write_text(yaml.safe_dump({"studies": ["mine"], "own_data": own_data}))


def saved(array, name="own.npy"):
    """Save an array, name it in config.yaml, and return its checksum."""
    np.save(name, array) if name.endswith(".npy") else np.savez(name, array)
    register({"own": name})
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


def pngs(images, folder="pictures"):
    Path(folder).mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(f"{folder}/{i:03}.png")
    register({"own": folder})
    return Path(folder)


def printed_checksum(folder):
    """What the command in the documentation prints."""
    command = "sha256sum *.png | sha256sum"
    done = subprocess.run(
        command, shell=True, cwd=folder, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=True
    )
    return done.stdout.split()[0]


def one_line(*parts):
    return pytest.raises(UserError, match=r"^(?=[^\n]*$)" + "".join(rf"(?=.*{part})" for part in parts))


def sorted_rows(rows):
    return rows[np.lexsort(rows.T)]


def drawn(spec):
    return own_images.draw(spec, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["own.npy", "own.npz"])
def test_rows_are_the_pooled_images_each_once(name):
    spec = OwnImages(side=4, dequantisation=0, sha256=saved(GREY, name), **SIZES)
    raw = drawn(spec)
    expected = GREY.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16) / 256
    both = np.concatenate([raw.train, raw.held_out])
    assert_allclose(sorted_rows(both), sorted_rows(expected), rtol=1e-12)
    assert_allclose(raw.images, raw.train)
    assert raw.n_images == 16


def test_colours_lie_side_by_side_at_full_size():
    spec = OwnImages(side=6, colour=True, dequantisation=0, sha256=saved(COLOUR), **SIZES)
    raw = drawn(spec)
    both = np.concatenate([raw.train, raw.held_out])
    assert_allclose(sorted_rows(both), sorted_rows(COLOUR.reshape(20, -1) / 256), rtol=1e-12)
    assert dimension(spec) == both.shape[1] == 108


def test_noise_is_uniform_over_a_grey_level_and_none_is_added_to_floats():
    sizes = {"n_train": 400, "n_held_out": 4}
    noisy = drawn(OwnImages(side=8, sha256=saved(GREY), **sizes))
    errors = (noisy.train - np.tile(noisy.images, (25, 1))) * 256
    assert np.abs(errors).max() <= 0.5 and errors.std() == pytest.approx(12**-0.5, rel=0.02)
    floats = drawn(OwnImages(side=8, sha256=saved(GREY / 7 - 3), **sizes))
    assert_allclose(np.unique(floats.train, axis=0), np.unique(floats.images, axis=0))
    assert "none" in floats.dequantisation and floats.train.min() == pytest.approx(GREY.min() / 7 - 3)


@pytest.mark.parametrize(("images", "colour"), [(GREY, False), (COLOUR, True)])
def test_a_folder_of_png_files_is_the_array_of_its_images(images, colour):
    folder = pngs(images)
    (folder / ".hidden.png").write_bytes(b"no image")
    (folder / "readme.txt").write_text("no image")
    fields = {"side": 3, "colour": colour, **SIZES}
    of_folder = drawn(OwnImages(sha256=printed_checksum(folder), **fields))
    of_array = drawn(OwnImages(sha256=saved(images), **fields))
    assert np.array_equal(of_folder.train, of_array.train)
    assert np.array_equal(of_folder.held_out, of_array.held_out)


def test_halves_are_disjoint():
    sha256 = saved(GREY)
    first, second = (drawn(OwnImages(side=4, half=half, sha256=sha256, **SIZES)).images for half in ("first", "second"))
    assert len(first) == len(second) == 8
    assert not {row.tobytes() for row in first} & {row.tobytes() for row in second}


def test_vectors_are_scaled_to_the_common_spread_and_repeated():
    spec = OwnVectors(dim=3, sha256=saved(VECTORS), n_train=24, n_held_out=3)
    raw = own_vectors.draw(spec, np.random.default_rng(0))
    both = np.concatenate([raw.train[:12], raw.held_out])
    assert_allclose(sorted_rows(both), sorted_rows(VECTORS))
    assert np.array_equal(raw.train[12:], raw.train[:12])
    tensors, facts = prepare(spec)
    assert_allclose(tensors["train"].var(axis=0).mean(), 0.25, rtol=1e-5)
    assert_allclose(tensors["train"].mean(axis=0), 0, atol=1e-6)
    assert facts["name"] == "own_vectors-own-3" and spec.sha256 in facts["source"]


def test_the_place_is_no_part_of_the_step_and_a_move_gives_the_same_bytes():
    spec = OwnImages(side=2, sha256=saved(GREY), **SIZES)
    step = plan("data", spec)
    assert "own.npy" not in step.canonical()
    before = run_step(step.canonical(), "a")
    Path("own.npy").rename("elsewhere.npy")
    register({"own": str(Path("elsewhere.npy").resolve())})
    after = run_step(step.canonical(), "b")
    for name in ("data.safetensors", "facts.json"):
        assert (before / name).read_bytes() == (after / name).read_bytes()


def test_a_missing_or_wrong_checksum_is_answered_with_the_right_one():
    actual = saved(GREY)
    with one_line("data.sha256: missing", actual, "into the study"):
        drawn(OwnImages(side=4))
    with one_line("data.sha256", "other data", actual, "0" * 64):
        drawn(OwnImages(side=4, sha256="0" * 64))
    folder = pngs(GREY)
    with one_line("data.sha256: missing", printed_checksum(folder)):
        drawn(OwnImages(side=4))


def test_another_order_or_name_of_images_is_other_data():
    folder = pngs(GREY)
    before = printed_checksum(folder)
    (folder / "000.png").rename(folder / "100.png")
    with one_line("other data", printed_checksum(folder)):
        drawn(OwnImages(side=4, sha256=before))


def test_a_name_that_config_does_not_know_is_told():
    register({"faces": "faces.npy"})
    with one_line("config.yaml", "own_data", "no 'face'", "did you mean 'faces'"):
        own_file.own_path("face")
    with one_line("config.yaml", "own_data.faces", "does not exist"):
        own_file.own_path("faces")


def npz_of(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy_of(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (npy_of(np.array([{}], dtype=object), allow_pickle=True), "plain numbers"),
        (b"", "plain numbers"),
        (b"\x80\x04K\x01.", "plain numbers"),
        (npy_of(GREY)[:200], "plain numbers"),
        (npz_of(a=GREY)[:-30], "plain numbers"),
        (npz_of(a=GREY, b=GREY), r"2 arrays \(a, b\)"),
        (npz_of(), "0 arrays"),
        (npy_of(np.arange(6)), "int64"),
        (npy_of(np.array([[1.0, np.nan]])), "not finite"),
    ],
)
def test_files_that_hold_no_array_of_numbers_are_refused(data, says):
    with one_line("there", says):
        own_file.array_in(data, Path("there.npy"))


@pytest.mark.parametrize(
    ("array", "spec", "says"),
    [
        (GREY, {"side": 9}, "data.side: 9, .*8x8"),
        (GREY, {"side": 4, "colour": True}, "data.colour: true, .*one channel"),
        (COLOUR, {"side": 4}, "data.colour: false, .*three channels"),
        (GREY[:, :, :4], {"side": 2}, "8x4 pixels; crop"),
        (GREY[0], {"side": 2}, r"shape \(8, 8\)"),
        (GREY[:2], {"side": 2}, "2 are too few"),
        (GREY, {"side": 2, "n_images": 17}, "n_images: 17"),
    ],
)
def test_images_that_do_not_fit_the_spec_are_refused(array, spec, says):
    sha256 = saved(array)
    with one_line(says):
        drawn(OwnImages(sha256=sha256, **spec))


def test_vectors_of_another_length_are_refused():
    with one_line("data.dim: 4", r"\(15, 3\)"):
        own_vectors.draw(OwnVectors(dim=4, sha256=saved(VECTORS)), np.random.default_rng(0))


def test_folders_that_hold_no_alike_png_images_are_refused():
    folder = pngs(GREY)

    def refused(*says):
        with one_line(*says):
            drawn(OwnImages(side=2, sha256=printed_checksum(folder)))

    Image.fromarray(GREY[0, :4, :4]).save(folder / "zz.png")
    refused("zz.png", r"\(4, 4\)", "alike")
    Image.fromarray(GREY[0]).convert("RGBA").save(folder / "zz.png")
    refused("zz.png", "RGBA")
    Image.fromarray(GREY[0]).save(folder / "zz.png", format="JPEG")
    refused("zz.png", "no PNG")
    Image.new("L", (5000, 1)).save(folder / "zz.png")
    refused("zz.png", "5000x1")
    (folder / "zz.png").unlink()
    (folder / "zz.png").symlink_to("/dev/zero")
    with one_line("zz.png", "link"):
        drawn(OwnImages(side=2, sha256="0" * 64))


def test_files_of_other_kinds_are_refused():
    Path("own.pt").write_bytes(b"")
    register({"own": "own.pt"})
    with one_line("own.pt", ".npy"):
        drawn(OwnImages())
    Path("empty").mkdir()
    register({"own": "empty"})
    with one_line("empty", "no file that ends in .png"):
        drawn(OwnImages())
