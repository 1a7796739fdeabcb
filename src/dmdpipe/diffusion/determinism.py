"""One place that makes torch repeat itself to the byte."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmdpipe.errors import UserError

if TYPE_CHECKING:
    from dmdpipe.specs.hardware import Hardware

CPU = torch.device("cpu")


def exact_torch(threads: int, precision: str = "full") -> None:
    """Fix the number of CPU threads and the precision of products, and ask torch for deterministic algorithms.

    To be called before CUDA starts, which reads the size of cuBLAS's workspace once. Results are bitwise equal between
    processes of one environment class with the same number of threads; another number of threads, another instruction
    set or another GPU rounds differently.

    Args:
        threads: of the CPU.
        precision: ``tf32`` allows a GPU to round the factors of float32 products; nothing else does.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    # The products of cuDNN's convolutions have a switch of their own, which PyTorch leaves on.
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # The same switch as use_deterministic_algorithms(True), without its second and a half of imports.
    torch.set_deterministic_debug_mode("error")
    # It also fills every new tensor, so that a read of one not yet written shows: a pass over memory each.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def start_device(hardware: Hardware, key: str, number: int = 0) -> torch.device:
    """Prepare torch for a training, as ``exact_torch``, and return the device that its spec names.

    Args:
        hardware: the spec of a teacher or a student.
        key: how a configuration calls its device, for the message.
        number: which of the visible GPUs, if it is one.

    Raises:
        UserError: if the spec names a GPU and there is none.
    """
    exact_torch(hardware.threads, hardware.precision)
    if hardware.device == "cpu":
        return CPU
    if not torch.cuda.is_available():
        raise UserError(
            f"{key}: 'cuda', but PyTorch {torch.__version__} finds no GPU here; set it to cpu, or run where there is"
            " one, with the build of torch that DMDPIPE_TORCH=cuda installs"
        )
    if number:
        torch.cuda.set_device(number)
    return torch.device("cuda", number)


def square_root(x: Tensor) -> Tensor:
    """Return √x ≥ 0 element by element, to two units in the last place, with the same bytes on every CPU.

    ``torch.sqrt`` isn't that on a CPU: MKL refines the CPU's own approximation of 1/√x, which each maker chooses.
    ``torch.rsqrt`` divides by the CPU's exact root.
    """
    return x.rsqrt().reciprocal_()


def row_mean(x: Tensor) -> Tensor:
    """Return the mean of each row [B, 1] of x [B, d]; on a CPU added up in order, with the same bytes on every one.

    ``torch.mean`` adds as many entries at a time as the CPU's vectors hold.
    """
    return x.mean(dim=1, keepdim=True) if x.is_cuda else x.cumsum(dim=1)[:, -1:] / x.shape[1]


def root_mean_square(x: Tensor) -> Tensor:
    """Return √(mean of x²) over all entries, a scalar, likewise."""
    return square_root(row_mean(x.square().flatten()[None])).squeeze()
