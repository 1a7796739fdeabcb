"""A step that is killed on its way: what trainings need of one, to be resumed."""

from __future__ import annotations

from pathlib import Path


class KilledError(Exception):
    pass


class Step:
    """A step whose progress ends in ``KilledError`` when it is told for the n-th time; never without n."""

    def __init__(self, folder: Path, killed_at: int | None = None):
        self.resume, self.killed_at, self.calls = folder, killed_at, 0

    def progress(self, done: int, total: int) -> None:
        self.calls += 1
        if self.calls == self.killed_at:
            raise KilledError
