"""Keeps what jobs write to the terminal out of the status area."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import TextIO

STDOUT, STDERR = 1, 2
PATIENCE = 1.0  # seconds for the last lines; a process that a job left behind may hold the pipe open


class Diversion:
    """Hands each line that this process and its children write to the terminal to `show`, until `stop`.

    They write to descriptors, which replacing `sys.stderr` doesn't reach, and the next update of the status
    area would erase the end of their traceback. `terminal` is the way to the terminal meanwhile.
    """

    def __init__(self, show: Callable[[str], None]):
        self._show = show
        self._saved = {number: os.dup(number) for number in (STDOUT, STDERR) if os.isatty(number)}
        self.terminal: TextIO = os.fdopen(os.dup(STDERR), "w", encoding="utf-8", errors="replace")
        reading, writing = os.pipe()
        for number in self._saved:
            os.dup2(writing, number)
        os.close(writing)
        self._reader = Thread(target=self._read, args=(reading,), daemon=True)
        self._reader.start()

    def stop(self) -> None:
        """Give the descriptors back, after what was written so far has been shown."""
        for number, saved in self._saved.items():
            os.dup2(saved, number)
            os.close(saved)
        self._reader.join(PATIENCE)

    def _read(self, reading: int) -> None:
        with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                # Were this thread to end, the pipe would fill up and block the jobs.
                with suppress(Exception, SystemExit):
                    self._show(line.rstrip("\n"))
