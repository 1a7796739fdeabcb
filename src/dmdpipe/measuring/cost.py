"""What a call of a large network takes, from its sizes alone: parameters, operations, memory, time."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dmdpipe.diffusion.determinism import exact_torch
from dmdpipe.networks.adm import ADM, empty_adm

if TYPE_CHECKING:
    from dmdpipe.specs.adapter import ADM as ADMSpec


@dataclass(frozen=True)
class Call:
    """What one call of a network takes.

    Attributes:
        parameters: how many numbers are learned.
        operations: floating-point operations of a call for one sample; a product and a sum are two.
        peak: bytes of tensors beside the weights that live at once, for one sample.
    """

    parameters: int
    operations: int
    peak: int


def call(spec: ADMSpec) -> Call:
    """Return what a call takes, found by going through one on the device ``meta``, where nothing is computed."""
    network = empty_adm(spec)
    d = spec.img_channels * spec.img_resolution**2
    x, label = torch.empty(1, d, device="meta"), torch.empty(1, 1, device="meta")
    classes = torch.empty(1, dtype=torch.int64, device="meta") if spec.label_dim else None
    with torch.no_grad(), FlopCounterMode(display=False) as operations:
        network(x, label, classes)
    with torch.no_grad(), _Living() as living:
        network(x, label, classes)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Call(parameters, operations.get_total_flops(), living.peak)


def seconds_of_a_call(spec: ADMSpec, batch: int, device: torch.device) -> float:
    """Return how long a call of a network with random weights takes, the shorter one of two after a first."""
    exact_torch(torch.get_num_threads())
    torch.backends.cudnn.allow_tf32 = False
    network = ADM(spec).eval().requires_grad_(False).to(device)
    x = torch.ones(batch, spec.img_channels * spec.img_resolution**2).to(device)
    label, classes = x.new_zeros(1, 1), torch.zeros(batch, dtype=torch.int64).to(device)
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        # Read back: a GPU answers before it has computed.
        network(x, label, classes if spec.label_dim else None).sum().item()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


class _Living(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [value.untyped_storage() for value in _tensors((args, kwargs))]
        answer = function(*args, **(kwargs or {}))
        for tensor in _tensors(answer):
            storage = tensor.untyped_storage()
            if storage not in self.known and not any(storage is one for one in given):
                self.known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return answer

    def _gone(self, size: int) -> None:
        self.now -= size


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, list | tuple) else []
