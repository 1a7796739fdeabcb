"""How much of a core's matrix-product rate a DMD training reaches, everything included.

A training is random numbers, matrix products, passes over activations and optimiser steps. Only the products are needed
by the mathematics, so their bare time, in the model's own shapes, is what the rest is measured against.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from dmdpipe.diffusion.determinism import exact_torch
from dmdpipe.distill.loop import distil
from dmdpipe.kernels.large_pages import zeros
from dmdpipe.networks.denoiser import Denoiser, build_network
from dmdpipe.specs.data import Gaussian, dimension
from dmdpipe.specs.diffusion import TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP
from dmdpipe.specs.student import StudentSpec

# What a generator step with its five fake-score steps asks of networks: how often, with the noise embedding of a whole
# batch (the student is always asked at one noise level), and with gradients at its weights.
CALLS = (
    (4, False, False),  # the student, for the fake score's other four steps
    (1, False, True),  # the student, for its own step
    (2, True, False),  # the teacher and the fake score, for the distribution-matching gradient
    (5, True, True),  # the fake score, for its steps
)

# The same in forward passes, for whoever counts a backward pass as two.
FORWARD_PASSES = sum(times * (3 if trains else 1) for times, _, trains in CALLS)


@dataclass(frozen=True)
class Share:
    """What was measured at one width.

    Attributes:
        width: of the network.
        products: median milliseconds of one generator step's matrix products alone.
        training: median milliseconds of one generator step with its fake-score steps, everything included.
        gflops: the rate of the products, 10⁹ floating-point operations a second.
        passes: milliseconds of 24 forward passes at that rate: what is needed if a backward pass counts as two.
        shares: products over training in every turn, in order.
    """

    width: int
    products: float
    training: float
    gflops: float
    passes: float
    shares: tuple[float, ...]


def student_spec(width: int, dim: int, batch: int, steps: int) -> StudentSpec:
    """Return the spec of a student as the studies train them: recipe dmd2, three blocks, on d-dimensional data."""
    network = MLP(width=width)
    teacher = TeacherSpec(data=Gaussian(dim=dim), score=TrainedScore(network=network))
    return StudentSpec(teacher=teacher, network=network, generator_steps=steps, batch=batch)


def untrained_teacher(spec: StudentSpec) -> Denoiser:
    """Return a teacher of the spec's shape with fresh weights: time does not depend on what they are."""
    assert spec.network.kind == "mlp"
    network = build_network(spec.network, dimension(spec.teacher.data), seed=1)
    return Denoiser(network.requires_grad_(False))


def products_of(spec: StudentSpec) -> tuple[Callable[[], None], int]:
    """Return a function that makes the matrix products of one generator step, and their floating-point operations.

    Exactly those that the gradients need, each written into memory that is there already, in large pages like the
    training's. Whoever counts a backward pass as two forward ones finds 24 forward passes; a few products less are
    needed, as no layer passes gradients on to data or noise levels.
    """
    batch, dim = spec.batch, dimension(spec.teacher.data)
    assert spec.network.kind == "mlp"
    width = spec.network.width
    body = [(dim, width), *[(width, width)] * spec.network.depth, (width, dim)]
    embedding = (spec.network.embedding, width)
    x = {size: zeros(batch, size).normal_() for size in (dim, width, embedding[0])}
    out = {size: zeros(batch, size) for size in x}
    weights = {shape: zeros(shape[1], shape[0]).normal_() for shape in (*body, embedding)}
    gradients = {shape: zeros(shape[1], shape[0]) for shape in weights}
    # Each product as its two factors and where it goes.
    products: list[tuple[Tensor, Tensor, Tensor]] = []
    for times, embeds, trains in CALLS:
        layers = [*([embedding] if embeds else []), *body]
        call = [(x[inner], weights[inner, outer].T, out[outer]) for inner, outer in layers]
        if trains:
            call += [(x[outer].T, x[inner], gradients[inner, outer]) for inner, outer in layers]
            call += [(x[outer], weights[inner, outer], out[inner]) for inner, outer in body[1:]]
        products += call * times

    def run() -> None:
        for left, right, into in products:
            torch.mm(left, right, out=into)

    operations = sum(2 * left.shape[0] * left.shape[1] * right.shape[1] for left, right, _ in products)
    return run, operations


def forward_operations(spec: StudentSpec) -> int:
    """Return the floating-point operations of one forward pass of a batch, each row with its own noise embedding."""
    assert spec.network.kind == "mlp"
    width, dim = spec.network.width, dimension(spec.teacher.data)
    return 2 * spec.batch * width * (2 * dim + spec.network.depth * width + spec.network.embedding)


def measure(width: int, dim: int, batch: int = 256, turns: int = 5, seconds: float = 8.0) -> Share:
    """Measure the share of the matrix-product rate that training reaches on one thread; both in turns.

    Args:
        width: of the network, three blocks deep.
        dim: number of coordinates d.
        batch: batch size.
        turns: how often each is timed.
        seconds: about how long one turn trains; what a training costs at its start is in it.
    """
    exact_torch(threads=1)
    spec = student_spec(width, dim, batch, steps=20)
    products, operations = products_of(spec)
    teacher = untrained_teacher(spec)
    products()
    steps = max(20, round(20 * seconds / timed(lambda: distil(spec, teacher))))
    spec = spec.model_copy(update={"generator_steps": steps})
    pairs = []
    for _ in range(turns):
        of_products = timed(lambda: [products() for _ in range(steps)]) / steps
        pairs.append((of_products, timed(lambda: distil(spec, teacher)) / steps))
    of_products, of_training = (median(column) for column in zip(*pairs, strict=True))
    shares = tuple(bare / whole for bare, whole in pairs)
    rate = operations / of_products
    passes = FORWARD_PASSES * forward_operations(spec) / rate
    return Share(width, 1e3 * of_products, 1e3 * of_training, rate / 1e9, 1e3 * passes, shares)


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
