"""The server that forks steps: a script runs in it as it would alone, and nothing is left when its client goes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmdpipe.forking import client, server

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the server only starts on Linux")

SCRIPT = """
import json, os, sys
print(json.dumps({
    "name": __name__, "file": __file__, "arguments": sys.argv, "first path": sys.path[0], "folder": os.getcwd(),
    "variable": os.environ.get("A_VARIABLE"),
    "variables": sorted({*os.environ} - {"DMDPIPE_FORK_SERVER"}), "input": sys.stdin.read(),
    "seed": __import__("random").random() >= 0,
}))
print("a complaint", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(client.ADDRESS, raising=False)
        with server.fork_server():
            yield os.environ[client.ADDRESS]


def command(script: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", client.__file__, sys.executable, str(script), *arguments]


def start(script: Path, text: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    script.write_text(text)
    return subprocess.Popen(
        command(script, *arguments),
        cwd=script.parent,
        env={"PATH": os.environ["PATH"], **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(script: Path, text: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
    with start(script, text, *arguments, **environment) as process:
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            # Else leaving the block would wait for a step that waits for ever.
            process.kill()
            raise
    return process.returncode, out, err


@linux_only
def test_a_script_sees_what_it_would_see_alone(address: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    forked = ended(script, SCRIPT, "-f", "ö.json", A_VARIABLE="ä b", DMDPIPE_FORK_SERVER=address)
    alone = ended(script, SCRIPT, "-f", "ö.json", A_VARIABLE="ä b")
    assert forked == alone
    assert forked[0] == 0 and forked[2] == "a complaint\n"


MODULES = "import sys; print('torch' in sys.modules, *sorted(m for m in sys.modules if m.startswith('dmdpipe')))"


@linux_only
def test_libraries_are_there_and_of_this_project_what_every_step_begins_with(address: str, tmp_path: Path) -> None:
    status, out, complaints = ended(tmp_path / "script.py", MODULES, DMDPIPE_FORK_SERVER=address)
    assert (status, complaints) == (0, "")
    torch_is_there, *modules = out.split()
    assert torch_is_there == "True" and {"dmdpipe.specs.student", "dmdpipe.artifacts.step"} <= {*modules}
    stages = ("data", "diffusion", "distill", "copying", "evidence", "figures", "pairing")
    assert not [module for module in modules if module.split(".")[1:2] and module.split(".")[1] in stages]


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A copy of this package that a server serves: its folder, and the server's address."""
    package = tmp_path / "copy" / "dmdpipe"
    shutil.copytree(Path(server.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.delenv(client.ADDRESS, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    with server.fork_server():
        yield package, os.environ[client.ADDRESS]


EDITS = {
    "a module that is there": ("errors.py", "EDITED = 1\n"),
    "a spec": ("specs/study.py", "EDITED = 1\n"),
    "a module of a stage": ("pairing/bank.py", "EDITED = 1\n"),
    "C": ("kernels/products.h", "enum { EDITED = 1 };\n"),
    "a new module": ("pairing/new.py", "EDITED = 1\n"),
}


@linux_only
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_seen_by_the_next_step(copied: tuple[Path, str], tmp_path: Path, edit: str) -> None:
    """Its code, and the digest of what a step can reach, are those of a process that nobody forked."""
    (package, address), (file, text) = copied, EDITS[edit]
    asked = (
        f"import sys; sys.path.insert(0, {str(package.parent)!r})"
        + """
print(sys.modules.get("dmdpipe.artifacts.step") is not None)
import dmdpipe.errors, dmdpipe.specs.study, dmdpipe.pairing.bank
from importlib.util import find_spec
from dmdpipe.artifacts.code import reach
modules = ["dmdpipe.errors", "dmdpipe.specs.study", "dmdpipe.pairing.bank"]
print(*[hasattr(sys.modules[module], "EDITED") for module in modules], find_spec("dmdpipe.pairing.new") is not None)
print(reach(["dmdpipe.pairing.bank", "dmdpipe.distill.loop"]).digest, dmdpipe.errors.__file__)
"""
    )

    def answers(**environment: str) -> list[str]:
        status, out, err = ended(tmp_path / "script.py", asked, **environment)
        assert status == 0, err
        return out.splitlines()

    there, *before = answers(DMDPIPE_FORK_SERVER=address)
    assert there == "True" and before == answers()[1:] and str(package) in before[-1]
    with (package / file).open("a") as source:
        source.write(text)
    there, *after = answers(DMDPIPE_FORK_SERVER=address)
    assert there == "False" and after == answers()[1:]
    # Specs and errors are no part of a step's code, nor is what nothing imports.
    assert (after[1] != before[1]) == (edit in ("a module of a stage", "C"))


@linux_only
def test_a_source_that_is_broken_when_the_first_step_asks_is_told_by_that_step(
    copied: tuple[Path, str], tmp_path: Path
) -> None:
    """The threads that read all sources are the server's: a forked step that reads them again would wait for ever."""
    package, address = copied
    (package / "pairing" / "bank.py").write_text("def (:")
    text = f"import sys; sys.path.insert(0, {str(package.parent)!r})\n"
    text += "from dmdpipe.artifacts.code import reach; reach(['dmdpipe.distill.loop'])"
    forked = ended(tmp_path / "script.py", text, DMDPIPE_FORK_SERVER=address)
    assert forked == ended(tmp_path / "script.py", text)
    assert forked[0] == 1 and "bank" in forked[2]


@linux_only
def test_only_pages_bring_the_libraries_of_pages(address: str, tmp_path: Path) -> None:
    text = "import sys; print({'papermill', 'nbconvert', 'ipykernel', 'matplotlib'} & set(sys.modules) != set())"
    for name, expected in (("a.metrics.py", "False"), ("a.figures.py", "True"), ("a.kernel.py", "True")):
        assert ended(tmp_path / name, text, DMDPIPE_FORK_SERVER=address) == (0, f"{expected}\n", "")


@linux_only
def test_matplotlib_takes_neither_display_nor_settings_from_where_the_server_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(client.ADDRESS, raising=False)
    monkeypatch.setenv("MPLBACKEND", "svg")
    monkeypatch.chdir(tmp_path)
    Path("matplotlibrc").write_text("figure.dpi: 7")
    text = "import matplotlib; print(matplotlib.rcParams['backend'], matplotlib.rcParams['figure.dpi'])"
    with server.fork_server():
        _, out, _ = ended(tmp_path / "a.figures.py", text, **{client.ADDRESS: os.environ[client.ADDRESS]})
    assert out == "agg 100.0\n"


ENDINGS = {
    "nothing": ("", 0),
    "a status": ("raise SystemExit(7)", 7),
    "a sentence": ("raise SystemExit('so it is')", 1),
    "none": ("raise SystemExit(None)", 0),
    "an exception": ("1 / 0", 1),
    "a syntax error": ("1 +", 1),
    "a signal": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "a late thread": ("import threading; threading.Timer(0.1, print, ['late']).start()", 0),
}


@linux_only
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_script_ends_as_it_would_end_alone(address: str, tmp_path: Path, ending: str) -> None:
    text, expected = ENDINGS[ending]
    status, out, err = ended(tmp_path / "script.py", text, DMDPIPE_FORK_SERVER=address)
    alone = ended(tmp_path / "script.py", text)
    assert status == alone[0] == expected
    assert (out, err.splitlines()[-1:]) == (alone[1], alone[2].splitlines()[-1:])


@linux_only
def test_steps_run_side_by_side(address: str, tmp_path: Path) -> None:
    """Each waits for the other: one after the other they would never end."""
    ways = [tmp_path / "there", tmp_path / "back"]
    for way in ways:
        os.mkfifo(way)
    texts = [f"open({str(ways[0])!r}, 'w').close(); open({str(ways[1])!r}).close()"]
    texts.append(f"open({str(ways[0])!r}).close(); open({str(ways[1])!r}, 'w').close()")
    processes = [start(tmp_path / f"{i}.py", text, DMDPIPE_FORK_SERVER=address) for i, text in enumerate(texts)]
    for process in processes:
        with process:
            assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0


WAITS = """
import os, signal, sys
def leave(number, frame):
    os.write(1, b"told to end\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
os.write(1, b"waiting\\n")
signal.pause()
"""


@linux_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["ended", "killed"])
def test_a_step_is_told_to_end_when_its_client_goes(address: str, tmp_path: Path, number: signal.Signals) -> None:
    """The step keeps the client's output open, so its end is when that closes."""
    with start(tmp_path / "script.py", WAITS, DMDPIPE_FORK_SERVER=address) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        assert process.stdout.read() == "told to end\n"
    assert process.returncode == -number


@linux_only
def test_a_stranger_who_sends_nonsense_disturbs_nobody(address: str, tmp_path: Path) -> None:
    for nonsense in (b"", b"abc", client.LENGTH.pack(5) + b"hello", client.LENGTH.pack(2) + b"[]"):
        connection = client.connect_to(address)
        assert connection is not None
        with connection:
            connection.sendall(nonsense)
    assert ended(tmp_path / "script.py", "print(1)", DMDPIPE_FORK_SERVER=address) == (0, "1\n", "")


@linux_only
def test_leaving_the_server_waits_for_the_last_step_and_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv(client.ADDRESS, raising=False)
    with server.fork_server():
        folder = Path(os.environ[client.ADDRESS]).parent
        process = start(tmp_path / "script.py", WAITS, DMDPIPE_FORK_SERVER=str(folder / "socket"))
        assert process.stdout is not None and process.stdout.readline() == "waiting\n"
        assert folder.stat().st_mode & 0o077 == 0
        process.terminate()
    with process:
        assert process.stdout.read() == "told to end\n"
    assert not folder.exists()
    assert client.ADDRESS not in os.environ


@linux_only
def test_a_server_that_nobody_asked_is_gone_at_once(monkeypatch) -> None:
    """It is ended while it imports: a run with nothing to do must not wait for libraries that it doesn't need."""
    monkeypatch.delenv(client.ADDRESS, raising=False)
    servers = []
    popen = subprocess.Popen

    def remembered(*given, **options):
        servers.append(popen(*given, **options))
        return servers[-1]

    monkeypatch.setattr(subprocess, "Popen", remembered)
    with server.fork_server():
        folder = Path(os.environ[client.ADDRESS]).parent
    assert servers[0].returncode == -signal.SIGTERM
    assert not folder.exists()


def test_without_a_server_the_client_becomes_the_script(tmp_path: Path) -> None:
    text = "import os; print(os.getpid())"
    for environment in ({}, {client.ADDRESS: str(tmp_path / "no socket")}):
        with start(tmp_path / "script.py", text, **environment) as process:
            out, _ = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, f"{process.pid}\n")


def test_a_command_that_is_no_script_is_left_alone() -> None:
    arguments = [sys.executable, client.__file__, "echo", "a b", "c"]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout == "a b c\n"
