"""The training benchmark: what it counts, and that the plain loop beside it is the same algorithm."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from plain_dmd import PlainDenoiser, PlainDMD, PlainMLP

from dmdpipe.bench.training import FORWARD_PASSES, forward_operations, products_of, student_spec
from dmdpipe.distill.batches import RandomBatches
from dmdpipe.distill.loop import Distillation
from dmdpipe.distill.student import Student
from dmdpipe.networks.denoiser import Denoiser, build_network


@pytest.mark.parametrize(("width", "dim"), [(64, 4), (16, 64)])
def test_the_products_are_those_that_the_gradients_need(width: int, dim: int) -> None:
    spec = student_spec(width, dim, batch=8, steps=1)
    forward = 2 * dim * width + 3 * width * width
    student = 5 * forward + (2 * forward - dim * width)
    teacher = forward + 32 * width
    fake = 6 * (forward + 32 * width) + 5 * (2 * forward - dim * width + 32 * width)
    run, operations = products_of(spec)
    assert operations == 2 * 8 * (student + teacher + fake)
    assert forward_operations(spec) == 2 * 8 * teacher
    assert FORWARD_PASSES == 24
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        multiply = torch.mm

        def counted(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
            calls.append(2 * left.shape[0] * left.shape[1] * right.shape[1])
            multiply(left, right, out=out)

        patch.setattr(torch, "mm", counted)
        run()
    assert sum(calls) == operations


def test_the_plain_loop_is_the_same_algorithm() -> None:
    """Fed with the same noise in double precision, both arrive at the same student and fake score."""
    spec = student_spec(width=8, dim=3, batch=16, steps=9).model_copy(update={"dtype": "float64"})
    networks = [build_network(spec.network, 3, seed).double() for seed in range(2)]
    teacher = Denoiser(networks[0].requires_grad_(False))

    def plain(state: dict[str, Any]) -> PlainDenoiser:
        network = PlainMLP(3, 8).double()
        network.load_state_dict(state)
        return PlainDenoiser(network)

    start = networks[1].state_dict()
    given = [plain({name: value.clone() for name, value in start.items()}) for _ in range(2)]
    beside = PlainDMD(given[0], plain(networks[0].state_dict()).requires_grad_(False), given[1])
    student, fake = (Denoiser(build_network(spec.network, 3, 1).double()) for _ in range(2))
    loop = Distillation(spec.recipe, Student(student, [80.0]), teacher, fake, RandomBatches(spec, 3), None, 41)
    noise = RandomBatches(spec, 3)
    for generator_step in range(9):
        loop.advance(range(generator_step, generator_step + 1))
    for iteration in range(41):
        z = noise.latent()
        dm = noise.diffusion("dm")[1:] if iteration % 5 == 0 else None
        beside.iterate(iteration, z, dm, noise.diffusion("fake")[1:])
    for own, other in ((student, given[0]), (fake, given[1])):
        moved = max(float((start[name] - value).abs().max()) for name, value in own.network.state_dict().items())
        assert moved > 1e-5
        for name, value in own.network.state_dict().items():
            assert_close(value, other.network.state_dict()[name], atol=1e-9 * moved, rtol=1e-6)


def test_the_command_prints_shares(dmdpipe: Callable[..., Any]) -> None:
    words = ("--width", "8", "--dim", "2", "--batch", "4", "--turns", "2", "--seconds", "0.01", "--format", "json")
    outcome = dmdpipe("bench", "training", *words)
    assert outcome.status == 0, outcome.err
    from io import StringIO

    (row,) = pd.read_json(StringIO(outcome.out)).to_dict("records")
    assert row["width"] == 8 and 0 < row["products_ms"] < row["training_ms"]
    assert 0 < row["smallest"] <= row["share"] <= row["largest"]
    assert 1 < row["share_of_passes"] / row["share"] == pytest.approx(row["passes_ms"] / row["products_ms"])


def test_the_sampling_command_prints_ratios(dmdpipe: Callable[..., Any]) -> None:
    words = ("--width", "8", "--dim", "2", "--samples", "40", "--steps", "2", "--turns", "2", "--format", "json")
    outcome = dmdpipe("bench", "sampling", *words)
    assert outcome.status == 0, outcome.err
    from io import StringIO

    (row,) = pd.read_json(StringIO(outcome.out)).to_dict("records")
    assert row["width"] == 8 and row["forward_ms"] > 0 and row["sampling_ms"] > 0
    assert 0 < row["smallest"] <= row["ratio"] <= row["largest"]
