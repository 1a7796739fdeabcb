"""The one kind of error that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can mend: one line saying what is wrong, where, and what to do.

    Commands print the message without a traceback and exit with status 2. Whatever a file or a command line smuggled
    into the message, it stays one printable line of bounded length.
    """

    LONGEST = 900

    def __init__(self, message: str):
        line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in message)
        super().__init__(line if len(line) <= self.LONGEST else f"{line[: self.LONGEST - 1]}…")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the known name nearest to ``word``, or the known names if none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (known: {', '.join(names)})" if names else ""
