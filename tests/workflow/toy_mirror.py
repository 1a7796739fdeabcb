"""A small Fashion-MNIST on a web server of this machine, and a checkout that takes it for the published one."""

from __future__ import annotations

import gzip
import hashlib
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from dmdpipe.data import fashion

IMAGES = {fashion.TRAIN_FILE: 400, fashion.HELD_OUT_FILE: 80}
LABELS = dict(zip(fashion.LABEL_FILES, IMAGES.values(), strict=True))
CELL = ("    digits: {data.family: digits, data.side: 2}", "    digits: {data.family: fashion, data.side: 2}")


@contextmanager
def mirror_for(checkout: Any, folder: Path) -> Iterator[list[str]]:
    """Serve the files from a folder while the block runs, and yield the paths that have been asked for."""
    folder.mkdir()
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            asked.append(self.path)

    rng = np.random.default_rng(0)
    for name, count in (IMAGES | LABELS).items():
        if name in LABELS:
            payload = struct.pack(">2I", 0x801, count) + rng.integers(0, 10, count, dtype=np.uint8).tobytes()
        else:
            images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            payload = struct.pack(">4I", 0x803, *images.shape) + images.tobytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(payload))
        checkout.edit("src/dmdpipe/data/fashion.py", fashion.SHA256[name], hashlib.sha256(payload).hexdigest())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        source = checkout / "src/dmdpipe/data/fetching.py"
        mirrors = f'MIRRORS = ("http://127.0.0.1:{server.server_port}/",)\n'
        source.write_text(re.sub(r"(?s)MIRRORS = .*?\n\)\n", mirrors, source.read_text()))
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()
