"""Manifests: what reading one refuses, and what verifying a payload finds."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dmdpipe.artifacts.checked import json_text
from dmdpipe.artifacts.environment import current_environment, git_state, lock_digest, peak_memory_mib
from dmdpipe.artifacts.manifest import Manifest, read_manifest, read_payload, sealed, seeds_in, verify_payload
from dmdpipe.errors import UserError
from dmdpipe.specs.base import digest

PAYLOAD = b"numbers"


def manifest_json() -> dict[str, Any]:
    spec = {"seed": 1, "scale": 0.5}
    result = {
        "stage": "data",
        "spec": spec,
        "digest": digest({"stage": "data", "spec": spec}),
        "seeds": {"seed": 1},
        "payload": {"a.bin": {"sha256": hashlib.sha256(PAYLOAD).hexdigest(), "size": len(PAYLOAD)}},
        "parents": {"up": {"folder": "x/y", "result_digest": "0" * 64}},
    }
    provenance = {
        "code": "0" * 16,
        "modules": {"dmdpipe": {"(module)": "1" * 16}},
        "environment_lock": "unlocked",
        "environment": current_environment(["numpy"]).model_dump(),
        "equality": {"kind": "bitwise", "reason": "integers"},
        "parents": {"up": "2" * 64},
    }
    return {
        "schema_version": 2,
        "result": sealed(result, "result_digest"),
        "provenance": sealed(provenance, "provenance_digest"),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.bin").write_bytes(PAYLOAD)
    (tmp_path / "folder" / "manifest.json").write_text(json_text(manifest_json()))
    return tmp_path / "folder"


def test_a_manifest_comes_back(folder: Path) -> None:
    manifest = read_manifest(folder / "manifest.json")
    assert manifest.model_dump(mode="json") == manifest_json()
    assert verify_payload(folder, manifest) == []


def set_at(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_at("schema_version", value=1), "schema_version"),
        (set_at("surprise", value=1), "surprise"),
        (set_at("result", "spec", "seed", value=2), "result does not match its own digest"),
        (set_at("result", "digest", value="0" * 16), "result does not match its own digest"),
        (set_at("result", "spec", "scale", value=float("nan")), "does not match its own digest"),
        (set_at("provenance", "code", value="3" * 16), "provenance does not match its own digest"),
        (set_at("result", "payload", value={"../a.bin": {"sha256": "0" * 64, "size": 1}}), "payload"),
        (set_at("result", "payload", "a.bin", "size", value=-1), "size"),
        (set_at("result", "payload", "a.bin", "size", value=10**400), "does not match its own digest"),
        (set_at("result", "spec", "seed", value=10**400), "does not match its own digest"),
        (set_at("result", "spec", value=1), "spec"),
        *(
            (set_at("result", "payload", value={name: {"sha256": "0" * 64, "size": 1}}), "payload")
            for name in ("manifest.json", "run.json", ".hidden", "a/b", "a\0b", "a\n", "\u001b[31m", "")
        ),
        (set_at("result", "parents", "up", "folder", value="/etc"), "without '..'"),
    ],
)
def test_a_changed_manifest_is_refused(folder: Path, change: Callable[[dict[str, Any]], None], says: str) -> None:
    manifest = manifest_json()
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=says) as error:
        read_manifest(folder / "manifest.json")
    assert "\n" not in str(error.value)


def test_a_spec_sealed_anew_without_its_digest_is_refused(folder: Path) -> None:
    manifest = manifest_json()
    manifest["result"]["spec"]["seed"] = 2
    manifest["result"] = sealed(manifest["result"], "result_digest")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="result does not match"):
        read_manifest(folder / "manifest.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"[]"])
def test_what_is_no_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json: "):
        read_manifest(folder / "manifest.json")
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_manifest(folder / "manifest.json")


def test_a_manifest_is_the_text_that_was_written(folder: Path) -> None:
    """Whitespace and a key that stands twice would pass a check of what was understood."""
    text = (folder / "manifest.json").read_text()
    others = (text + " ", text.replace(": ", ":  ", 1), text.replace("\n", "\r\n"), json.dumps(json.loads(text)))
    twice = text.replace('"stage": "data"', '"stage": "noise",\n "stage": "data"')
    infinite = text.replace('"scale": 0.5', '"scale": 1e999')
    assert text not in (*others, twice, infinite)
    for other in (*others, twice, infinite):
        (folder / "manifest.json").write_text(other, newline="")
        with pytest.raises(UserError, match="does not match its own digest|was changed after it was written"):
            read_manifest(folder / "manifest.json")


def test_a_manifest_without_end_is_not_read(folder: Path) -> None:
    with (folder / "manifest.json").open("ab") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="1099511627776 bytes, more than"):
        read_manifest(folder / "manifest.json")


def in_place_of(path: Path, what: str, elsewhere: Path) -> None:
    path.unlink()
    match what:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(os.path.relpath(path))
        case "link":
            path.symlink_to("b.bin")
            path.with_name("b.bin").write_bytes(PAYLOAD)
        case "link outside":
            path.symlink_to(elsewhere)
            elsewhere.write_bytes(PAYLOAD)
        case "sparse":
            with path.open("wb") as file:
                file.truncate(2**40)


@pytest.mark.parametrize("what", ["pipe", "folder", "socket", "link", "link outside", "sparse"])
def test_only_an_ordinary_file_of_the_right_size_is_a_payload(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """None of them may make a reader wait, or fill the memory."""
    monkeypatch.chdir(tmp_path)
    manifest = read_manifest(folder / "manifest.json")
    in_place_of(folder / "a.bin", what, tmp_path / "outside")
    (problem,) = verify_payload(folder, manifest)
    assert str(folder) in problem and problem.isprintable()
    with pytest.raises(UserError) as error:
        read_payload(folder, "a.bin", manifest.result.payload["a.bin"])
    assert str(error.value) == problem


@pytest.mark.parametrize("what", ["pipe", "folder", "link"])
def test_only_an_ordinary_file_is_a_manifest(folder: Path, tmp_path: Path, what: str) -> None:
    in_place_of(folder / "manifest.json", what, tmp_path / "outside")
    with pytest.raises(UserError, match="cannot be read"):
        read_manifest(folder / "manifest.json")


def test_a_large_payload_is_hashed_before_it_is_read_into_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmdpipe.artifacts.manifest.LARGE", 3)
    file = Manifest.model_validate(manifest_json()).result.payload["a.bin"]
    assert read_payload(folder, "a.bin", file) == PAYLOAD
    (folder / "a.bin").write_bytes(b"Numbers")
    with pytest.raises(UserError, match="was changed"):
        read_payload(folder, "a.bin", file)


def test_verifying_names_what_is_wrong_with_the_payload(folder: Path, tmp_path: Path) -> None:
    manifest = Manifest.model_validate(manifest_json())
    for content, says in ((b"numbers!", "8 bytes"), (b"Numbers", "SHA-256")):
        (folder / "a.bin").write_bytes(content)
        (problem,) = verify_payload(folder, manifest)
        assert says in problem
    (folder / "a.bin").unlink()
    assert "No such file" in verify_payload(folder, manifest)[0]
    (tmp_path / "outside").write_bytes(PAYLOAD)
    (folder / "a.bin").symlink_to(tmp_path / "outside")
    assert "outside" in verify_payload(folder, manifest)[0]


def test_seeds_are_found_at_every_depth() -> None:
    assert seeds_in({"seed": 1, "a": {"seed": 2, "b": [{"seed": 3}, 4]}, "c": "seed"}) == {
        "seed": 1,
        "a.seed": 2,
        "a.b.0.seed": 3,
    }


@pytest.mark.parametrize("uses_gpu", [False, True])
def test_the_environment_asks_torch_only_for_code_that_imports_it(
    monkeypatch: pytest.MonkeyPatch, uses_gpu: bool
) -> None:
    torch = SimpleNamespace(
        cuda=SimpleNamespace(is_initialized=lambda: uses_gpu, get_device_name=lambda: "NVIDIA H200"),
        backends=SimpleNamespace(cpu=SimpleNamespace(get_cpu_capability=lambda: "AVX512")),
        get_num_threads=lambda: 3,
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with_torch = current_environment(["numpy", "pandas", "torch"])
    assert list(with_torch.libraries) == ["numpy", "pandas", "pyarrow", "safetensors", "torch"]
    assert with_torch.device == ("NVIDIA H200" if uses_gpu else "cpu")
    assert (with_torch.instruction_set, with_torch.threads) == ("AVX512", 3)
    assert "AVX512, 3 thread(s)" in with_torch.name
    without = current_environment(["pandas"])
    assert list(without.libraries) == ["pandas", "pyarrow", "safetensors"]
    assert (without.device, without.threads) == ("cpu", 2)


@pytest.mark.parametrize("capability", ["", "default", "avx2", "avx512"])
def test_the_environment_of_a_torch_step_is_foretold_without_torch(capability: str) -> None:
    program = (
        "import sys, json; from dmdpipe.artifacts.environment import *; libraries = ['numpy', 'sklearn', 'torch'];"
        "foretold = expected_environment(libraries); assert 'torch' not in sys.modules;"
        "import torch; torch.set_num_threads(1); assert current_environment(libraries) == foretold, foretold"
    )
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_lock_is_that_of_the_folder_named_by_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMDPIPE_LOCKS", str(tmp_path))
    assert lock_digest() == "unlocked"
    (tmp_path / "base.txt").write_text("numpy==2\n")
    first = lock_digest()
    (tmp_path / "base.in").write_text("numpy\n")
    assert lock_digest() == first
    (tmp_path / "base.txt").write_text("numpy==3\n")
    assert lock_digest() != first
    monkeypatch.delenv("DMDPIPE_LOCKS")
    assert len(lock_digest()) == 64


def test_run_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 10 < peak_memory_mib() < 1e6
    monkeypatch.setenv("PATH", "")
    assert git_state() == {"commit": None, "dirty": None}
