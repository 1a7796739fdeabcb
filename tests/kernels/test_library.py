"""Compiling the C files: the same bytes whatever the compiler, where the files lie, and what goes wrong in one line."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmdpipe.diffusion.optimiser import FlatOptimiser, FlatParameters
from dmdpipe.errors import UserError
from dmdpipe.kernels import distances, dmd, library, mlp, optimiser
from dmdpipe.kernels.assignment import optimal_assignment
from dmdpipe.kernels.conditions import Conditions
from dmdpipe.kernels.discriminator import CompiledDiscriminator
from dmdpipe.kernels.learning import Learner
from dmdpipe.kernels.noise import Stream, philox
from dmdpipe.kernels.teacher import teacher_steps
from dmdpipe.networks.denoiser import Denoiser
from dmdpipe.networks.mlp import MLP


@pytest.fixture
def afresh():
    """Nothing is loaded at the start, and nothing of a test stays loaded."""
    cached = library.library, library.function, library.compiler, mlp._memory

    def clear():
        for one in cached:
            one.cache_clear()

    clear()
    yield clear
    clear()


@pytest.fixture
def cache(tmp_path, monkeypatch, afresh):
    """An empty folder for compiled files."""
    folder = tmp_path / "compiled"
    folder.mkdir()
    monkeypatch.setattr(library, "cache_folder", lambda: folder)
    return folder


@pytest.fixture
def sources(tmp_path, monkeypatch, cache):
    """A copy of the C files, to edit."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for file in library.FOLDER.glob("*.[ch]"):
        shutil.copy(file, folder)
    monkeypatch.setattr(library, "FOLDER", folder)
    return folder


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def denoisers(count, width, dim, depth=2, embedding=8):
    spec = SimpleNamespace(width=width, depth=depth, embedding=embedding, classes=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [Denoiser(MLP(dim, spec)) for _ in range(count)]


def of_networks():
    for width, dim, depth, embedding, batch in (
        (40, 3, 2, 8, 50),
        (130, 17, 1, 2, 7),
        (16, 2, 3, 32, 97),
        (275, 290, 1, 8, 13),
        (128, 3, 2, 16, 140),
    ):
        (denoiser,) = denoisers(1, width, dim, depth, embedding)
        for parameter in denoiser.parameters():
            parameter.grad = torch.zeros_like(parameter)
        x, clean = draw(2, batch, dim)
        table = denoiser.conditions(torch.linspace(0.01, 50, 9)[:, None])
        for given in (table.at(torch.arange(batch) % 9), denoiser.conditions(torch.full((1, 1), 80.0))):
            with torch.no_grad():
                yield denoiser(x, given)
            answer, pullback = denoiser.with_pullback(x, given)
            pullback(answer - clean)
            yield from (p.grad.clone() for p in denoiser.parameters())
            yield torch.tensor(denoiser.kernel.denoising_loss(x, given, clean, table.c_out[: len(given.c_in)]))
            yield from (p.grad.clone() for p in denoiser.parameters())


def of_discriminators():
    for width, dim, body_learns in ((40, 3, True), (130, 17, False)):
        layers = [(width, 8), (width, dim), (width, width), (width, width), (width, width), (1, width)]
        pairs = [(draw(*shape) / 8, draw(shape[0])) for shape in layers]
        norms = [(draw(width), draw(width)) for _ in range(2)]
        for one in (tensor for pair in (*pairs, *norms) for tensor in pair):
            one.grad = torch.zeros_like(one)
        discriminator = CompiledDiscriminator(pairs[:3], pairs[3:], norms)
        table = Conditions(*(draw(9, 1) for _ in range(3)), draw(9, 8)).at(torch.arange(50) % 9)
        yield from discriminator.gradient(draw(50, dim), table, draw(50).sign(), 0.3)
        yield discriminator.learn(draw(50, dim), table, draw(50).sign(), 0.3, body_learns)
        yield from (one.grad for pair in (*pairs, *norms) for one in pair)


def of_trainings():
    for width, dim, batch in ((40, 3, 50), (130, 17, 7), (128, 16, 140)):
        student, teacher, fake = denoisers(3, width, dim)
        optimisers = [FlatOptimiser(FlatParameters(one), clip=0.5) for one in (student, fake)]
        flats = [one.flat() for one in optimisers]
        sigma = torch.linspace(0.01, 50, 9)[:, None]
        learners = [
            Learner(one.kernel, one.conditions(levels), flat)
            for one, levels, flat in zip(
                (student, teacher, fake), (sigma[-1:], sigma, sigma), (flats[0], None, flats[1]), strict=True
            )
        ]
        noisings = [dmd.Noising(Stream(seed), sigma, 1, 9) for seed in (7, 8)]
        matching = dmd.Matching(True, 0.1, 0.2, 0.5)
        rounds = dmd.CompiledRounds(*learners, Stream(9), 50.0, *noisings, matching, sigma, batch, 3)
        sizes = [one.begin_steps(rates) for one, rates in zip(optimisers, ([0.01], [0.01, 0.02]), strict=True)]
        yield torch.tensor(rounds([dmd.Round(sizes[0][0], sizes[1])], True), dtype=torch.float64)
        x, noisy = draw(2, 2 * batch, dim)
        learner = learners[2]._replace(given=fake.conditions(draw(2 * batch, 1).exp()))
        average = torch.zeros(len(flats[1].values))
        yield teacher_steps(learner, noisy, x, draw(2 * batch, 1).exp(), sizes[1], average, [0.9, 0.2])
        yield from (average, *flats[0][:4], *flats[1][:4])


def everything():
    """Return the bytes of what all C files compute."""
    stream = Stream(2**63 + 5)
    values, gradient, first, second = draw(4, 1003)
    numbers = {"scale": 0.3, "keep": 0.99, "beta1": 0.9, "beta2": 0.99, "rate": 0.01, "epsilon": 1e-6}
    optimiser.adamw(values, gradient, first, second.square_(), optimiser.AdamWSizes(**numbers))
    x, y = draw(2, 70, 5).double().numpy()
    near = np.linspace(0.1, 9, 70)
    found = [
        *of_networks(), *of_discriminators(), *of_trainings(),
        stream.normal(100_001), stream.integers(-5, 999, 1003), values, first, second,
        torch.tensor([optimiser.norm(gradient), distances.sum_of_distances(x, y)], dtype=torch.float64),
        *map(torch.from_numpy, distances.count_within(x, y, near, 2 * near)),
        torch.from_numpy(distances.two_nearest(x, y)), torch.from_numpy(optimal_assignment(np.abs(x @ y.T))),
    ]  # fmt: skip
    return [tensor.numpy().tobytes() for tensor in found]


def gcc(*flags):
    path = shutil.which("gcc")
    version = subprocess.run([path, "-dumpversion"], capture_output=True, text=True).stdout if path else "0"
    if int(version.split(".")[0]) < 12:
        pytest.skip("needs a GCC of version 12 or later")
    return (path, *flags)


OTHERS = {
    "ziglang for AVX2": (lambda own: (*own[:4], "-mcpu=x86_64_v3"), None),
    "gcc": (lambda own: gcc("-march=haswell"), None),
    "gcc for this machine": (lambda own: gcc("-march=native"), None),
    "gcc without fused multiply-add": (lambda own: gcc(), None),
    "ziglang without optimisation": (lambda own: own, "-O1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS)
def test_the_bytes_are_the_same_whatever_the_compiler(monkeypatch, request, other):
    expected = everything()
    command, optimisation = OTHERS[other]
    command = command(library.compiler())
    if {"-march=haswell", "-mcpu=x86_64_v3"} & set(command) and platform.machine() != "x86_64":
        pytest.skip("needs an x86 CPU")
    cache = request.getfixturevalue("cache")
    monkeypatch.setattr(library, "compiler", lambda: command)
    if optimisation:
        monkeypatch.setattr(library, "FLAGS", (optimisation, *library.FLAGS[1:]))
    found = everything()
    assert {file.name.partition("-")[0] for file in cache.iterdir()} == {
        "assignment",
        "discriminator",
        "distances",
        "dmd",
        "mlp",
        "noise",
        "optimiser",
        "teacher",
    }
    assert len(found) == len(expected) > 80
    assert found == expected


def test_without_a_compiler_one_line_says_what_is_missing(monkeypatch, cache):
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no C compiler.*ziglang.*cc") as told:
        philox((0, 0, 0, 0), 0)
    assert "\n" not in str(told.value)
    assert not list(cache.iterdir())


def test_the_machines_compiler_stands_in_for_the_locked_one(monkeypatch, afresh):
    assert library.compiler()[:4] == (sys.executable, "-m", "ziglang", "cc")
    afresh()
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    monkeypatch.setattr(library.shutil, "which", {"gcc": "/opt/gcc", "cc": "/opt/cc"}.get)
    assert library.compiler()[0] == "/opt/gcc"


@pytest.mark.parametrize(("held_back", "wide"), [("", True), ("avx512", True), ("avx2", False), ("DEFAULT", False)])
def test_what_holds_torch_back_from_avx_512_holds_the_kernels_back(monkeypatch, afresh, held_back, wide):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", held_back)
    monkeypatch.setattr(library, "cpu_extensions", lambda: library.WIDE)
    monkeypatch.setattr(library.platform, "machine", lambda: "x86_64")
    assert library.compiler()[-1].startswith("-mcpu=x86_64_v4" if wide else "-mcpu=x86_64_v3")


def test_a_file_is_compiled_once_and_found_again(monkeypatch, cache, afresh):
    assert philox((0, 0, 0, 0), 0)[0] == 0x6627E8D5
    (built,) = cache.iterdir()
    assert re.fullmatch(r"noise-[0-9a-f]{16}\.so", built.name)
    afresh()
    monkeypatch.setattr(library.subprocess, "run", lambda *arguments, **options: pytest.fail("compiled again"))
    assert philox((0, 0, 0, 0), 0)[0] == 0x6627E8D5


@pytest.mark.parametrize(
    ("name", "edited", "is_other"),
    [
        ("noise", "arithmetic.h", True), ("noise", "noise.c", True), ("noise", "products.h", False),
        ("mlp", "arithmetic.h", True), ("mlp", "products.h", True), ("mlp", "mlp.c", True), ("mlp", "noise.h", False),
        ("dmd", "noise.h", True), ("dmd", "denoiser.h", True), ("dmd", "mlp.c", False),
    ],
)  # fmt: skip
def test_an_edit_of_what_a_file_includes_makes_another_file(
    monkeypatch, sources, cache, afresh, name, edited, is_other
):
    monkeypatch.setattr(library, "compile_to", lambda built, source: built.touch())
    monkeypatch.setattr(library.ctypes, "CDLL", lambda path: path)
    before = library.library(name)
    afresh()
    assert library.library(name) == before
    afresh()
    with (sources / edited).open("a") as file:
        file.write("static const int edited = 1;\n")
    assert (library.library(name) != before) == is_other
    afresh()
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-g"))
    assert library.library(name) != before


def test_an_edited_file_is_what_runs(sources, afresh):
    """Another number of rounds in the copy, another answer."""
    text = (sources / "noise.h").read_text()
    assert "round < 10" in text
    (sources / "noise.h").write_text(text.replace("round < 10", "round < 9"))
    assert philox((0, 0, 0, 0), 0)[0] != 0x6627E8D5


def test_every_header_is_found():
    for file in library.FOLDER.glob("*.c"):
        found = library.sources_of(file)
        text = "\n".join(source.read_text() for source in found)
        names = set(re.findall(r'#\s*include\s*"([^"]*)"', text))
        assert {source.name for source in found} == {file.name, *names}
        assert len(found) == len(set(found))


def test_a_compiler_error_is_one_line_and_leaves_nothing(sources, cache):
    (sources / "noise.c").write_text("int broken(void) { return missing; }\nint also { }\n")
    with pytest.raises(UserError, match=r"noise\.c can't be compiled by .*noise\.c:1:.*missing") as told:
        philox((0, 0, 0, 0), 0)
    assert "\n" not in str(told.value)
    assert not list(cache.iterdir())


def test_a_compiler_that_fails_in_silence_is_named(monkeypatch, cache):
    monkeypatch.setattr(library, "compiler", lambda: (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(UserError, match="exit status 3"):
        philox((0, 0, 0, 0), 0)
    assert not list(cache.iterdir())


def test_an_environment_that_cannot_be_written_leaves_the_users_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    inside, user = tmp_path / "environment" / "share" / "dmdpipe", tmp_path / "user" / "dmdpipe"
    assert library.cache_folder() == inside and inside.is_dir()
    monkeypatch.setattr(library.os, "access", lambda folder, mode: folder != inside)
    assert library.cache_folder() == user and user.is_dir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "file"))
    assert library.cache_folder() == user
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert library.cache_folder() == tmp_path / "home" / ".cache" / "dmdpipe"
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="writable") as told:
        library.cache_folder()
    assert "\n" not in str(told.value) and "file" in str(told.value)


PROGRAM = """
import sys
from pathlib import Path
from dmdpipe.kernels import library
library.cache_folder = lambda: Path(sys.argv[1])
from dmdpipe.kernels.noise import philox
sys.stdin.readline()
print(*philox((0, 0, 0, 0), 0))
"""


@pytest.mark.slow
def test_two_processes_may_compile_at_once(tmp_path):
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = [subprocess.Popen(command, env=dict(os.environ), text=True, **pipes) for _ in range(2)]
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in running:
        out, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        assert out.split()[0] == str(0x6627E8D5)
    assert [path.suffix for path in Path(tmp_path).iterdir()] == [".so"]
