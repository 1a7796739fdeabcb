"""A GPU that is none: tensors say that they lie on ``cuda:0``, and what they hold is computed on the CPU.

No product is faster for it, but where a training mixes devices, draws noise on the GPU or reads its memory as if it
were the CPU's, it fails here as it would there. Autograd, whose engine asks for a real device, works on the numbers
behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

from dmdpipe.networks import denoiser, pullback

GPU = torch.device("cuda", 0)
DRAWS = ("rand", "normal", "uniform", "bernoulli", "multinomial")
READS = ("item", "__float__", "__bool__", "__int__", "tolist")

_held: dict[int, tuple[Any, Tensor]] = {}
_own_copy, _own_part, _own_set_part = Tensor.copy_, Tensor.__getitem__, Tensor.__setitem__


class _OnGPU(Tensor):
    """Shape, type and device of a tensor; its numbers lie in ``_held``, found by its storage."""

    @staticmethod
    def __new__(cls, held: Tensor) -> _OnGPU:
        place = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made: _OnGPU = Tensor._make_wrapper_subclass(cls, held.shape, **place, device=GPU)
        # The storage is kept, too: while it lives, no other one gets its number.
        storage = made.untyped_storage()
        _held[storage._cdata] = (storage, held)
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{function} outside of the pretended GPU")

    __torch_function__ = torch._C._disabled_torch_function_impl


def _numbers(value: Any) -> Any:
    """Return the CPU's tensor behind a tensor of the GPU, and anything else as it is."""
    if not (isinstance(value, Tensor) and value.is_cuda):
        return value
    held = _held[value.untyped_storage()._cdata][1]
    assert (held.shape, held.stride()) == (value.shape, value.stride())
    return held


def _copy(tensor: Tensor, source: Tensor) -> Tensor:
    _own_copy(_numbers(tensor), _numbers(source))
    return tensor


def _part(tensor: Tensor, index: Any) -> Tensor:
    part: Tensor = _own_part(_numbers(tensor), _on(tensor.device, index))
    return _OnGPU(part) if tensor.is_cuda else part


def _set_part(tensor: Tensor, index: Any, value: Any) -> None:
    _own_set_part(_numbers(tensor), _on(tensor.device, index), _on(tensor.device, value))


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, Tensor) and value.device.type != device.type:
        raise RuntimeError(f"an index or a value on {value.device}, in a tensor on {device}: two devices")
    return tree_map(_numbers, value)


class _GPU(TorchDispatchMode):
    """Computes on the CPU what is asked of tensors of the GPU, and refuses what the GPU would."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        kwargs = dict(kwargs or {})
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        there = [tensor for tensor in tensors if tensor.is_cuda]
        if there and len(there) < len(tensors):
            shapes = ", ".join(f"{tuple(tensor.shape)} on {tensor.device.type}" for tensor in tensors)
            raise RuntimeError(f"{name} got tensors on two devices: {shapes}")
        goes_there = bool(there)
        if kwargs.get("device") is not None:
            goes_there = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = torch.device("cpu")
        if goes_there and any(word in name for word in DRAWS):
            raise RuntimeError(f"{name} draws on the GPU")
        self.operations += goes_there
        known = {id(_numbers(tensor)): tensor for tensor in there}
        answer = function(*tree_map(_numbers, args), **tree_map(_numbers, kwargs))

        def back(value: Any) -> Any:
            if not (isinstance(value, Tensor) and goes_there):
                return value
            return known[id(value)] if id(value) in known else _OnGPU(value)

        return tree_map(back, answer)


def _pullback(module: nn.Module, *inputs: Any) -> tuple[Tensor, Any]:
    """Do what ``pullback_by_autograd`` does, for a module on the GPU."""
    given = [value for value in tree_flatten(inputs)[0] if isinstance(value, Tensor)]
    if not all(value.is_cuda for value in [*given, *module.parameters()]):
        raise RuntimeError("a module and its inputs on two devices")
    weights = {name: _numbers(p).detach().requires_grad_() for name, p in module.named_parameters()}
    buffers = {name: _numbers(b) for name, b in module.named_buffers()}
    with _disable_current_modes(), torch.enable_grad():
        answer = functional_call(module, {**weights, **buffers}, tree_map(_numbers, inputs))

    def pull_back(to_answer: Tensor, add: bool = False) -> None:
        with _disable_current_modes():
            gradients = torch.autograd.grad(answer, list(weights.values()), _numbers(to_answer))
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                _numbers(parameter.grad).mul_(int(add)).add_(gradient)

    return _OnGPU(answer.detach()), pull_back


@contextmanager
def pretended_gpu() -> Iterator[_GPU]:
    """Let torch find a GPU while the block runs; what is yielded counts its ``operations``."""
    with pytest.MonkeyPatch.context() as patch, _GPU() as gpu:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        for module in (pullback, denoiser):
            patch.setattr(module, "pullback_by_autograd", _pullback)
        for name in READS:
            own = getattr(Tensor, name)
            patch.setattr(Tensor, name, lambda tensor, own=own: own(_numbers(tensor)))
        # These ask for a real device before they get to the mode.
        patch.setattr(Tensor, "copy_", _copy)
        patch.setattr(Tensor, "__getitem__", _part)
        patch.setattr(Tensor, "__setitem__", _set_part)
        yield gpu
    _held.clear()
