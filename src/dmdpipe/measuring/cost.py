"""What a call of a large network takes, from its sizes alone: parameters, operations, memory, time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dmdpipe.diffusion.determinism import exact_torch
from dmdpipe.networks.adm import ADM, Block, empty_adm

if TYPE_CHECKING:
    from dmdpipe.specs.adapter import ADM as ADMSpec

# Of a block's size, what lives at once where it begins: its input, what that was joined from, and two copies of it.
INPUTS_AT_ONCE = 4


@dataclass(frozen=True)
class Call:
    """What one call of a network takes.

    Attributes:
        parameters: how many numbers are learned.
        operations: floating-point operations of a call for one sample; a product and a sum are two.
        living: about how many numbers beside the weights must live at once, for one sample; what the libraries that
            compute it take for themselves comes on top.
    """

    parameters: int
    operations: int
    living: int


def call(spec: ADMSpec) -> Call:
    """Return what a call takes, found by going through one on the device ``meta``, where nothing is computed."""
    network = empty_adm(spec)
    kept, widest = [0], [0]

    def keep(module: torch.nn.Module, given: tuple[Any, ...], answer: torch.Tensor) -> None:
        kept.append(answer.numel())

    def widen(module: torch.nn.Module, given: tuple[Any, ...], answer: torch.Tensor) -> None:
        widest.append(given[0].numel())

    for block in network.enc.values():
        block.register_forward_hook(keep)
    for module in network.modules():
        if isinstance(module, Block):
            module.register_forward_hook(widen)
    d = spec.img_channels * spec.img_resolution**2
    x, label = torch.empty(1, d, device="meta"), torch.empty(1, 1, device="meta")
    classes = torch.empty(1, dtype=torch.int64, device="meta") if spec.label_dim else None
    with torch.no_grad(), FlopCounterMode(display=False) as operations:
        network(x, label, classes)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Call(parameters, operations.get_total_flops(), sum(kept) + INPUTS_AT_ONCE * max(widest))


def seconds_of_a_call(spec: ADMSpec, batch: int, device: torch.device) -> float:
    """Return how long a call of a network with random weights takes, the shorter one of two after a first."""
    exact_torch(torch.get_num_threads())
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
