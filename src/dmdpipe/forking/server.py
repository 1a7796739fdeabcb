"""A process that has imported the slow libraries and forks itself for every step's script.

Importing torch takes two seconds of a core, and a laptop run has three hundred steps that need it. Of dmdpipe the
server imports what every step begins with, and reads all sources to know the code that a step can reach; both when the
first step asks. While a source is another file than it was then, or has changed, or if not all could be read, scripts
are started by themselves instead: no edit from before a step's start is missed. What a forked step computes and how it
ends is the same as if that had been done all along.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from dmdpipe.forking.client import ADDRESS, LENGTH, STATUS

LIBRARIES = (
    *("torch", "pandas", "pyarrow.parquet", "safetensors.numpy", "scipy.optimize"),
    *("snakemake.script", "grimp", "pydantic.functional_validators", "pydantic.type_adapter", "yaml"),
)
# What a page of the report needs besides, in its step and in its kernel; a run that draws none goes without.
PAGE = ".figures.py"
PAGE_LIBRARIES = (
    *("papermill", "nbclient", "nbconvert.exporters", "ipykernel.kernelapp", "IPython.display"),
    *("matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf"),
)
# What every step begins with, and through the specs named here all others that steps parse.
OWN = ("dmdpipe.artifacts.step", "dmdpipe.artifacts.code", "dmdpipe.specs.report", "dmdpipe.specs.study")
SOURCES = (".py", ".c", ".h")
SECONDS_FOR_A_REQUEST = 10
LISTENING = b"listening\n"


@contextmanager
def fork_server() -> Iterator[None]:
    """Run a server while the block runs, and name its address in the environment for ``dmdpipe.forking.client``.

    Leaving the block waits for steps that are still running. Does nothing where it is not safe to fork a process with
    libraries in it (macOS), or if the environment already names a server.
    """
    if not sys.platform.startswith("linux") or ADDRESS in os.environ:
        yield
        return
    address = str(Path(tempfile.mkdtemp(prefix="dmdpipe-"), "socket"))
    command = [sys.executable, "-P", "-m", __spec__.name, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        if server.stdout.readline() == LISTENING:
            os.environ[ADDRESS] = address
        try:
            yield
        finally:
            os.environ.pop(ADDRESS, None)
            # Ends one that is still importing; one that serves ignores it and ends with its last step.
            server.terminate()
            server.communicate()
            shutil.rmtree(Path(address).parent, ignore_errors=True)


def main(address: str) -> None:
    """Serve at a Unix socket until standard input closes and the last step has ended; then remove its folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server = Server(address)
        os.write(1, LISTENING)
        # matplotlib reads both when it is imported: a display, and a settings file in the working folder.
        os.environ["MPLBACKEND"] = "agg"
        os.chdir(Path(address).parent)
        for library in LIBRARIES:
            import_module(library)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        server.serve()
    finally:
        shutil.rmtree(Path(address).parent, ignore_errors=True)


class Server:
    """Forks a process for every connection and tells it the exit status; a connection lost ends the process.

    Args:
        address: path of the socket, which must not exist.
    """

    def __init__(self, address: str):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen(128)
        self.ended, ended = os.pipe()
        os.set_blocking(self.ended, False)
        os.set_blocking(ended, False)
        signal.set_wakeup_fd(ended)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(self.ended, selectors.EVENT_READ)
        self.selector.register(sys.stdin, selectors.EVENT_READ)
        self.clients: dict[int, socket.socket] = {}
        self.sources: dict[str, tuple[int, ...]] | None = None

    def serve(self) -> None:
        """Serve until standard input is closed and nothing runs any more."""
        is_open = True
        while is_open or self.clients:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    self._accept()
                elif key.fileobj is sys.stdin:
                    is_open = False
                    self.selector.unregister(sys.stdin)
                    self.selector.unregister(self.listener)
                    self.listener.close()
                elif key.fileobj == self.ended:
                    os.read(self.ended, 4096)
                    self._reap()
                elif key.data in self.clients:
                    # Whoever wanted this step is gone.
                    self.selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGTERM)

    def _accept(self) -> None:
        connection, _ = self.listener.accept()
        connection.settimeout(SECONDS_FOR_A_REQUEST)
        try:
            header, files, _, _ = socket.recv_fds(connection, LENGTH.size, 2)
            (length,) = LENGTH.unpack(header)
            request = json.loads(connection.recv(length, socket.MSG_WAITALL))
        except (OSError, ValueError, struct.error):
            connection.close()
            return
        sources = own_sources_now()
        if self.sources is None:
            self.sources = sources
            self._read_own()
        for library in PAGE_LIBRARIES if str(request["command"][0]).endswith(PAGE) else ():
            # What can't be imported fails again in the step's own process, which can say so.
            with suppress(Exception):
                import_module(library)
        sys.stderr.flush()
        # Else every step's garbage collections walk through all libraries, and copy their memory on the way.
        gc.freeze()
        process = os.fork()
        if process == 0:
            self._become(request, files, sources == self.sources)
        for file in files:
            os.close(file)
        self.clients[process] = connection
        self.selector.register(connection, selectors.EVENT_READ, process)

    def _read_own(self) -> None:
        complete = False
        # What can't be imported or read fails again in a script that is started by itself, and there it is told.
        with suppress(Exception):
            for module in OWN:
                import_module(module)
            import_module("dmdpipe.artifacts.code").own_sources().read_all()
            complete = own_sources_now() == self.sources
        if not complete:
            self.sources = {}

    def _reap(self) -> None:
        while self.clients:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                return
            connection = self.clients.pop(process)
            if connection in {key.fileobj for key in self.selector.get_map().values()}:
                self.selector.unregister(connection)
            with suppress(OSError):
                connection.sendall(STATUS.pack(os.waitstatus_to_exitcode(status)))
            connection.close()

    def _become(self, request: dict[str, Any], files: list[int], own_is_current: bool) -> NoReturn:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.selector.close()
        for connection in (self.listener, *self.clients.values()):
            connection.close()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in zip((nothing, *files), (0, 1, 2), strict=True):
            os.dup2(source, target)
            os.close(source)
        status = 1
        try:
            os.chdir(str(request["folder"]))
            os.environ.clear()
            os.environ.update(request["environment"])
            command = [*map(str, request["command"])]
            if not own_is_current:
                os.execv(sys.executable, [sys.executable, *command])
            status = run_script(*command)
        finally:
            # Not through the interpreter's exit: its clean-up is the server's.
            os._exit(status)


def own_sources_now() -> dict[str, tuple[int, ...]]:
    """Return what tells versions of each source of this package apart: its file's number, size and times."""
    found: dict[str, tuple[int, ...]] = {}
    for folder, _, names in os.walk(Path(__file__).parents[1]):
        for path in (os.path.join(folder, name) for name in names if name.endswith(SOURCES)):
            # By opening it: what is only asked about may be remembered from a while ago where files are shared.
            with suppress(OSError), open(path, "rb") as file:
                facts = os.fstat(file.fileno())
                found[path] = facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
    return found


def run_script(script: str, *arguments: str) -> int:
    """Run a Python script as ``python SCRIPT ARGUMENT …`` would, in this process; return its exit status."""
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    status = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        status = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    main(sys.argv[1])
