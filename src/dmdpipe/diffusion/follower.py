"""A process that shares the training of a step that another process runs: ``python -m dmdpipe.diffusion.follower``.

Standard input holds one line, what ``Step.to_follow`` returns, and stays open as long as that other process lives.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

from dmdpipe.artifacts.step import FollowingStep, function_of
from dmdpipe.diffusion.ranks import LOST, LostError
from dmdpipe.errors import UserError


def main() -> int:
    """Run the step's function without writing anything; return the exit status."""
    # Sent to all of a job's processes; the first one says when the others end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    try:
        step = FollowingStep(**request)
        function_of(step.stage)(step)
    except UserError as error:
        print(f"dmdpipe: {error}", file=sys.stderr)
        return 1
    except LostError:
        return LOST
    return 0


def _end_with_the_first() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    # Also where the main thread waits for a GPU.
    os._exit(LOST)


if __name__ == "__main__":
    sys.exit(main())
