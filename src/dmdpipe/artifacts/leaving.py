"""How a step leaves that SIGTERM or SIGUSR1 tells to end: at once, or, from a training, after a last checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

# SLURM kills what is still there 30 seconds (KillWait) after SIGTERM, and the clean-up takes some of them.
SECONDS_TO_SAVE = 10.0
# The second is what jobs are usually warned with before their time limit (sbatch --signal=USR1@60).
TOLD_BY = (signal.SIGTERM, signal.SIGUSR1)


class Leaving:
    """What this process has been told, and whether something in it can make use of a while.

    Attributes:
        can_save: whether a training runs that looks at ``is_told`` again and again, after some steps each.
        is_told: whether it is to save its state then and ``leave``.
    """

    can_save = False
    is_told = False

    def tell(self, number: int, frame: object) -> None:
        """Handle a signal: leave, after a checkpoint if one can come soon, else at once.

        A job's every process is told by SLURM, and then some by Snakemake again: more signals change nothing.
        """
        if number == signal.SIGALRM or not self.can_save:
            self.leave()
        if not self.is_told:
            self.is_told = True
            signal.signal(signal.SIGALRM, self.tell)
            signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_SAVE)

    def leave(self) -> NoReturn:
        """Run the clean-up on the way out, undisturbed by more signals."""
        for number in (*TOLD_BY, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + signal.SIGTERM)


LEAVING = Leaving()  # as signals are, the whole process's


@contextmanager
def signals_as_exit() -> Iterator[None]:
    """Let signals that would kill at once lead out of the block by ``SystemExit``; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (*TOLD_BY, signal.SIGALRM)}
    LEAVING.can_save = LEAVING.is_told = False
    for number in TOLD_BY:
        signal.signal(number, LEAVING.tell)
    try:
        yield
    finally:
        if LEAVING.is_told:
            signal.setitimer(signal.ITIMER_REAL, 0)
        LEAVING.can_save = LEAVING.is_told = False
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
