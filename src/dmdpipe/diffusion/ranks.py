"""Processes that share one training on one machine, a device each: how they start, speak, and end together.

The step's own process is the first, rank 0. It starts the others (``dmdpipe.diffusion.follower``), which run the same
step's function on the same order and write nothing. Not by ``torch.multiprocessing`` or ``torchrun``: both would start
the script of the step's rule again. They speak through ``torch.distributed``: NCCL between GPUs, gloo between CPUs.

No process waits for another in C: it looks whether the operation is done, and whether all others are there. So one that
dies ends the step, and a signal is heard at once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from dmdpipe.diffusion.determinism import CPU
from dmdpipe.diffusion.shards import Ranks
from dmdpipe.errors import UserError

if TYPE_CHECKING:
    from dmdpipe.artifacts.step import Step

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
LOOPBACK = "lo"
SECONDS_BETWEEN_LOOKS = 2e-4
SECONDS_TO_END = 10
# For a process that neither goes on nor ends; what one does alone, such as a checkpoint, takes minutes at most.
LONGEST_SILENCE = timedelta(hours=1)
LOST = 75  # exit status of a process that ends because another did


class LostError(Exception):
    """Another process that shares the training is gone."""


class JoinedRanks(Ranks):
    """The processes that share a training, seen from one of them.

    Args:
        number: this one's.
        count: of all.
        device: ``cpu`` or ``cuda``.
        folder: where they meet, the same for all of them and new.
        check: raises if one of them is gone; called while this one waits.
    """

    def __init__(self, number: int, count: int, device: str, folder: Path, check: Callable[[], None]):
        self.number, self.count = number, count
        self.device = torch.device("cuda", number) if device == "cuda" else CPU
        self._check = check
        store = dist.FileStore(str(folder / "store"), count)
        store.set(f"here/{number}", "")
        self._until(lambda: store.check([f"here/{other}" for other in range(count)]))
        with _losses_told():
            dist.init_process_group(
                BACKENDS[device], store=store, rank=number, world_size=count, timeout=LONGEST_SILENCE
            )

    def gathered(self, own: Tensor) -> Tensor:
        """Return every process's tensor [n, …] in their order [count·n, …]."""
        parts = [torch.empty_like(own) for _ in range(self.count)]
        with _losses_told():
            self._finish(dist.all_gather(parts, own, async_op=True))
        return torch.cat(parts)

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Put into these tensors, on whatever device, what the first process's hold."""
        for tensor in tensors:
            sent = tensor.to(self.device)
            with _losses_told():
                self._finish(dist.broadcast(sent, src=0, async_op=True))
            tensor.copy_(sent)

    def _finish(self, work: dist.Work | None) -> None:
        assert work
        self._until(work.is_completed)
        work.wait()

    def _until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            self._check()
            time.sleep(SECONDS_BETWEEN_LOOKS)


class Followers:
    """The other processes, seen from the first.

    Args:
        step: the first process's.
        folder: where they meet, and leave what they print.
    """

    def __init__(self, step: Step, folder: Path):
        self.step = step
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        command = [sys.executable, "-P", "-m", "dmdpipe.diffusion.follower"]
        for number in range(1, step.devices):
            with self._log(number).open("xb") as log:
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
            self.processes.append(process)
            assert process.stdin
            with suppress(OSError):  # one that has ended is told of below
                process.stdin.write(f"{json.dumps(step.to_follow(number, folder))}\n".encode())
                process.stdin.flush()

    def check(self) -> None:
        """Raise a UserError that tells of one that has ended by itself, if there is one."""
        for number, process in enumerate(self.processes, 1):
            if process.poll() not in (None, 0, LOST):
                raise UserError(
                    f"{self.step.label}: process {number + 1} of the {self.step.devices} that share this training"
                    f" {self._end_of(number, process.returncode)}"
                )

    def check_for_long(self) -> None:
        """Do so until one has ended, or a while is over: what was said to another is lost before that one is gone."""
        deadline = time.monotonic() + SECONDS_TO_END
        while time.monotonic() < deadline:
            self.check()
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def stop(self) -> None:
        """End them all."""
        for process in self.processes:
            assert process.stdin
            with suppress(OSError):
                process.stdin.close()
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_END)
            process.kill()
            process.wait()

    def _log(self, number: int) -> Path:
        return self.folder / f"{number}.log"

    def _end_of(self, number: int, status: int) -> str:
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}; run again, it goes on from its last checkpoint"
        said = self._log(number).read_text(errors="replace").strip().splitlines()
        return f"ended with status {status}: {said[-1].removeprefix('dmdpipe: ') if said else 'it said nothing'}"


@contextmanager
def joined(step: Step, device: str) -> Iterator[Ranks]:
    """Return the processes that share a step's training while the block runs (``dmdpipe.diffusion.sharing.ranks_of``).

    Args:
        step: the first process's, which starts the others; or one of theirs.
        device: ``cpu`` or ``cuda``.
    """
    if step.meeting:
        yield JoinedRanks(step.rank, step.devices, device, step.meeting, lambda: None)
        return
    if device == "cuda" and torch.cuda.device_count() < step.devices:
        raise UserError(
            f"{step.label}: devices {step.devices}, but PyTorch {torch.__version__} finds {torch.cuda.device_count()}"
            " GPUs here; ask for more of them, or for fewer devices"
        )
    if any(name == LOOPBACK for _, name in socket.if_nameindex()):
        # They are on one machine, and speak to nobody else.
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", LOOPBACK)
    with tempfile.TemporaryDirectory(prefix="dmdpipe-ranks-") as folder:
        followers = Followers(step, Path(folder))
        try:
            yield JoinedRanks(0, step.devices, device, Path(folder), followers.check)
        except LostError as error:
            followers.check_for_long()
            raise UserError(f"{step.label}: lost the processes that share this training ({error}); run again") from None
        finally:
            # First the others: what is under way with one that hangs would not end.
            followers.stop()
            if dist.is_initialized():
                dist.destroy_process_group()


@contextmanager
def _losses_told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostError(str(error).partition("\n")[0]) from error
