"""AdamW and gradient descent over one flat vector: for small networks the optimiser's overhead is worth avoiding.

``torch.optim`` costs about two seconds of imports at its first use in a process, and many small tensors cost many
small calls in every step. Here a network's parameters and gradients are views of two vectors, so a step is one call;
the arithmetic is that of ``torch.optim.AdamW`` and ``torch.optim.SGD``, against which it is tested.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dmdpipe.diffusion.determinism import square_root
from dmdpipe.kernels import optimiser as kernel
from dmdpipe.kernels.large_pages import zeros_like
from dmdpipe.kernels.learning import Flat

ADAM_EPSILON = 1e-8


class FlatParameters:
    """One vector that holds all parameters of a network, and one that holds their gradients.

    The network's own parameters become views of them: it can be called, loaded and saved as before.

    Args:
        module: a network whose parameters have one dtype; changed in place.
    """

    def __init__(self, module: nn.Module):
        parameters = list(module.parameters())
        given = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.values, self.gradient = zeros_like(given).copy_(given), zeros_like(given)
        sizes = [p.numel() for p in parameters]
        pieces = zip(parameters, self.values.split(sizes), self.gradient.split(sizes), strict=True)
        for parameter, values, gradient in pieces:
            parameter.data = values.view_as(parameter)
            if parameter.requires_grad:
                parameter.grad = gradient.view_as(parameter)


@dataclass
class FlatOptimiser:
    """AdamW (decoupled weight decay, arXiv 1711.05101) or SGD with momentum, over flat parameters.

    Attributes:
        parameters: what is optimised.
        kind: ``adamw`` or ``sgd``.
        beta1: Adam's β₁, or the momentum.
        beta2: Adam's β₂.
        weight_decay: per step, times the learning rate.
        clip: bound on the gradient's norm, or None.
    """

    parameters: FlatParameters
    kind: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip: float | None = None
    state: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        values = self.parameters.values
        self.state = {"steps": torch.zeros(1, dtype=torch.int64), "first": zeros_like(values)}
        if self.kind == "adamw":
            self.state["second"] = zeros_like(values)

    def step(self, learning_rate: float) -> float:
        """Take one step; return the gradient's norm before clipping."""
        values, gradient, first = self.parameters.values, self.parameters.gradient, self.state["first"]
        compiled = values.device.type == "cpu" and values.dtype == torch.float32
        norm = kernel.norm(gradient) if compiled else float(torch.linalg.vector_norm(gradient))
        # What is not a number is clipped, too, and shows in all parameters.
        scale = self.clip / (norm + 1e-6) if self.clip is not None and not norm <= self.clip else 1.0
        if self.kind == "sgd":
            self.state["steps"] += 1
            first.mul_(self.beta1).add_(gradient, alpha=scale).add_(values, alpha=self.weight_decay)
            values.add_(first, alpha=-learning_rate)
            return norm
        (sizes,) = self.begin_steps([learning_rate], scale)
        (kernel.adamw if compiled else plain_adamw)(values, gradient, first, self.state["second"], sizes)
        return norm

    def begin_steps(self, learning_rates: Sequence[float], scale: float = 1.0) -> list[kernel.AdamWSizes]:
        """Count the next steps of AdamW; return the numbers with which to take them."""
        before = int(self.state["steps"])
        self.state["steps"] += len(learning_rates)
        sizes = []
        for count, learning_rate in enumerate(learning_rates, before + 1):
            rate, epsilon = bias_corrected(learning_rate, self.beta1, self.beta2, count)
            keep = 1 - learning_rate * self.weight_decay
            sizes.append(kernel.AdamWSizes(scale, keep, self.beta1, self.beta2, rate, epsilon))
        return sizes

    def flat(self) -> Flat:
        """Return what training steps in C are told of the parameters and of AdamW's state."""
        return Flat(
            self.parameters.values, self.parameters.gradient, self.state["first"], self.state["second"], self.clip
        )


def bias_corrected(learning_rate: float, beta1: float, beta2: float, step: int) -> tuple[float, float]:
    """Return Adam's learning rate and ε at a step, 1 for the first, with both bias corrections.

    m̂/(√v̂ + ε) with the bias correction of v pulled out of the denominator: one pass less over the parameters.
    """
    correction = math.sqrt(1 - beta2**step)
    return learning_rate * correction / (1 - beta1**step), ADAM_EPSILON * correction


def plain_adamw(values: Tensor, gradient: Tensor, first: Tensor, second: Tensor, sizes: kernel.AdamWSizes) -> None:
    """Do what ``dmdpipe.kernels.optimiser.adamw`` does, on any device and in any precision."""
    scaled = gradient * sizes.scale
    first.lerp_(scaled, 1 - sizes.beta1)
    second.mul_(sizes.beta2).addcmul_(scaled, scaled, value=1 - sizes.beta2)
    values.mul_(sizes.keep).addcdiv_(first, square_root(second).add_(sizes.epsilon), value=-sizes.rate)
