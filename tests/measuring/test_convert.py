"""`dmdpipe convert`: tensors come through as they are; code in a file never runs, in any form of the file."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import re
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

Command = Callable[..., Any]
TENSORS = {
    "model.a.weight": torch.arange(6.0).reshape(2, 3).t(),  # not in the order of memory
    "model.a.bias": torch.tensor([1.5], dtype=torch.bfloat16),
    "model.n": torch.tensor(7),
}


class Planted:
    """What a file says to run when it is read."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def by_torch(value: Any, **options: Any) -> bytes:
    held = io.BytesIO()
    torch.save(value, held, **options)
    return held.getvalue()


def test_tensors_come_through_with_their_types(dmdpipe: Command) -> None:
    Path("in.bin").write_bytes(by_torch(OrderedDict(TENSORS)))
    done = dmdpipe("convert", "in.bin", "out.safetensors")
    assert done.status == 0, done
    found = load_file("out.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and found[name].equal(tensor)
    sums = [hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in ("in.bin", "out.safetensors")]
    assert f"{sums[0]}  in.bin\n{sums[1]}  out.safetensors\n" in done.out and "3 tensors, 8 numbers" in done.out
    dmdpipe("convert", "in.bin", "again.safetensors")
    assert Path("again.safetensors").read_bytes() == Path("out.safetensors").read_bytes()
    assert not [path for path in Path().iterdir() if path.name.startswith(".out")]


def test_tensors_of_one_memory_are_both_kept(dmdpipe: Command) -> None:
    one = torch.arange(4.0)
    Path("in.pth").write_bytes(by_torch({"a": one, "b": one[1:]}))
    assert dmdpipe("convert", "in.pth", "out.safetensors").status == 0
    assert load_file("out.safetensors")["b"].tolist() == [1, 2, 3]


def test_a_dictionary_within_is_found_by_its_keys(dmdpipe: Command) -> None:
    Path("in.pth").write_bytes(by_torch({"model": {"net": TENSORS, "step": 3}, "iteration": 5}))
    refused(dmdpipe("convert", "in.pth", "out.safetensors"), "'model' is no tensor", "--within model")
    refused(dmdpipe("convert", "in.pth", "out.safetensors", "--within", "model.ema"), "no 'ema'", "net, step")
    assert dmdpipe("convert", "in.pth", "out.safetensors", "--within", "model.net").status == 0
    assert load_file("out.safetensors").keys() == TENSORS.keys()


def in_a_zip(program: bytes) -> bytes:
    """What torch.save writes today, with another program inside."""
    held = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(by_torch(dict(TENSORS)))) as own, zipfile.ZipFile(held, "w") as made:
        for name in own.namelist():
            made.writestr(name, program if name.endswith("data.pkl") else own.read(name))
    return held.getvalue()


FORMS: dict[str, Callable[[Any], bytes]] = {
    "zip": lambda planted: by_torch({**TENSORS, "x": planted}),
    "old": lambda planted: by_torch({**TENSORS, "x": planted}, _use_new_zipfile_serialization=False),
    "bare pickle": lambda planted: pickle.dumps({"a": planted}),
    "bare pickle, first protocol": lambda planted: pickle.dumps({"a": planted}, protocol=0),
    "pickle in a zip": lambda planted: in_a_zip(pickle.dumps(planted, protocol=2)),
    "by name": lambda planted: in_a_zip(b"cposix\nmkdir\n(V" + str(planted.marker).encode() + b"\ntR."),
}


@pytest.mark.parametrize("form", FORMS)
def test_code_in_a_file_never_runs(dmdpipe: Command, form: str) -> None:
    marker = Path("ran").absolute()
    Path("in.bin").write_bytes(FORMS[form](Planted(marker)))
    refused(dmdpipe("convert", "in.bin", "out.safetensors"), "in.bin", "was not opened", "save_file")
    assert not marker.exists()


def test_the_planted_code_would_run_where_pickles_are_trusted(tmp_path: Path) -> None:
    """The instrument of the test above."""
    for i, form in enumerate(("bare pickle", "bare pickle, first protocol")):
        pickle.loads(FORMS[form](Planted(tmp_path / str(i))))
        assert (tmp_path / str(i)).is_dir()
    (tmp_path / "in.bin").write_bytes(FORMS["by name"](Planted(tmp_path / "zip")))
    torch.load(tmp_path / "in.bin", weights_only=False)
    assert (tmp_path / "zip").is_dir()


def refused(done: Any, *words: str) -> None:
    assert done.status == 2, done
    assert done.out == "" and done.err.startswith("dmdpipe: ") and done.err[:-1].isprintable(), done
    assert all(word in done.err for word in words), done.err
    assert not Path("out.safetensors").exists() and not list(Path().glob(".out*"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["was not opened"]),
        (b"\x80", ["was not opened"]),
        (by_torch(TENSORS)[:-300], ["was not opened"]),
        (by_torch([torch.ones(2)]), ["no dictionary of tensors", "list"]),
        (by_torch({}), ["no dictionary of tensors"]),
        (by_torch({3: torch.ones(2)}), ["'3' is no tensor"]),
        (by_torch({"a": torch.ones(2).to_sparse()}), ["'a' is no plain tensor"]),
        (by_torch({"a": torch.ones(1).expand(2**50)}), ["'a' is no plain tensor"]),
    ],
    ids=["empty", "one byte", "cut", "list", "nothing", "number for a name", "sparse", "one number, very often"],
)
def test_what_is_no_dictionary_of_tensors_is_one_line(dmdpipe: Command, data: bytes, words: list[str]) -> None:
    Path("in.bin").write_bytes(data)
    refused(dmdpipe("convert", "in.bin", "out.safetensors"), *words)


def test_files_that_cannot_be_are_one_line(dmdpipe: Command) -> None:
    Path("in.bin").write_bytes(by_torch(TENSORS))
    refused(dmdpipe("convert", "none.bin", "out.safetensors"), "none.bin", "No such file")
    refused(dmdpipe("convert", "config", "out.safetensors"), "config", "cannot be read")
    os.mkfifo("pipe.bin")  # whose reader would wait for ever
    refused(dmdpipe("convert", "pipe.bin", "out.safetensors"), "pipe.bin", "no ordinary file")
    refused(dmdpipe("convert", "in.bin", "out.bin"), "must end in .safetensors")
    refused(dmdpipe("convert", "in.bin", "no/out.safetensors"), "no folder")
    Path("there.safetensors").write_bytes(b"mine")
    refused(dmdpipe("convert", "in.bin", "there.safetensors"), "is there already")
    assert Path("there.safetensors").read_bytes() == b"mine"


def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that knows no second name for a file, as some of a network's."""

    def refused(*names: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)


@pytest.mark.parametrize("out", ["/proc/x.safetensors", f"{'a' * 240}.safetensors", "no links"])
def test_a_place_that_cannot_be_written_is_one_line(
    dmdpipe: Command, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """Before the weights are read, where that can be known."""
    if out == "no links":
        Path("in.bin").write_bytes(by_torch(TENSORS))
        no_links(monkeypatch)
        out = "out.safetensors"
    refused(dmdpipe("convert", "in.bin", out), f"{out[:50]}", "cannot be written", "name a file elsewhere")


@pytest.mark.parametrize(
    "words",
    [
        ("convert", "in.bin", f"{'a' * 300}/out.safetensors"),
        ("measure", "--teacher", "a" * 300, "--student", "b"),
        ("measure", "--pairs", "a.npy", "b.npy", "--out", f"{'a' * 300}/b"),
    ],
    ids=["convert", "teacher", "out"],
)
def test_a_name_that_no_file_can_have_is_one_line(dmdpipe: Command, words: tuple[str, ...]) -> None:
    refused(dmdpipe(*words), "aaa", "so long a name")


@pytest.mark.parametrize("taken", [lambda path: path.write_bytes(b"mine"), lambda path: path.symlink_to("nowhere")])
def test_a_file_that_another_made_meanwhile_is_left_as_it_is(
    dmdpipe: Command, monkeypatch: pytest.MonkeyPatch, taken: Callable[[Path], Any]
) -> None:
    Path("in.bin").write_bytes(by_torch(TENSORS))
    out = Path("late.safetensors")
    load = torch.load

    def slow(*arguments: Any, **options: Any) -> Any:
        taken(out)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", slow)
    refused(dmdpipe("convert", "in.bin", "late.safetensors"), "late.safetensors: was made", "meanwhile")
    assert out.is_symlink() or out.read_bytes() == b"mine"
    assert not Path("nowhere").exists() and not list(Path().glob(".late*"))


def test_a_disk_that_fills_up_leaves_no_file(dmdpipe: Command, new_disk: Callable[[int], Path]) -> None:
    disk = new_disk(2**16)
    Path("in.bin").write_bytes(by_torch({"a": torch.ones(2**16)}))
    done = dmdpipe("convert", "in.bin", str(disk / "out.safetensors"))
    refused(done, "out.safetensors", "the disk is full")
    assert list(disk.iterdir()) == []


PUBLISHERS = """
import pickle, torch
class Net:
    def state_dict(self):
        return {"model.w": torch.arange(6.0).reshape(2, 3).t()}
"""


def test_a_name_that_a_shell_would_run_is_in_no_command(dmdpipe: Command) -> None:
    for name, written in (("$(touch ran).pkl", "open('FILE.pkl', 'rb')"), ("$(touch ran).bin", "'$(touch ran).bin'")):
        Path(name).write_bytes(b"")
        done = dmdpipe("measure", "--teacher", name, "--student", name)
        refused(done, written)
        assert "touch" not in done.err.partition("python -c")[2]


def test_the_commands_for_a_pickle_of_objects_convert_it_where_its_code_is(dmdpipe: Command, tmp_path: Path) -> None:
    """As EDM publishes: a dictionary with a network under 'ema', whose class its repository holds."""
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "publisher.py").write_text(PUBLISHERS)
    make = "import pickle, publisher; pickle.dump({'ema': publisher.Net()}, open('edm.pkl', 'wb'))"
    subprocess.run([sys.executable, "-c", make], cwd=clone, check=True)
    pickled = clone / "edm.pkl"
    done = dmdpipe("measure", "--teacher", str(pickled), "--student", str(pickled))
    refused(done, "edm.pkl", "pickle", "NVlabs/edm", "pip install safetensors")
    # As a shell would hand it over, but for which Python it is.
    program = re.search(r'python -c "([^"]*)"', done.err)
    assert program and "$" not in program[1] and "\\" not in program[1]
    subprocess.run([sys.executable, "-c", program[1]], cwd=clone, check=True)
    assert load_file(clone / "edm.safetensors")["model.w"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_pickle_that_torch_warns_of_is_refused_in_one_line(dmdpipe: Command) -> None:
    Path("in.bin").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        done = dmdpipe("convert", "in.bin", "out.safetensors")
    refused(done, "in.bin", "no dictionary of tensors alone")
    assert not said
