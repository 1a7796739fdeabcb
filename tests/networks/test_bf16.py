"""bfloat16: what is computed in it and what is not, and how far it may take an answer from float32's."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode

from dmdpipe.diffusion.optimiser import FlatParameters
from dmdpipe.distill.ensemble import call_with_pullback, stacked
from dmdpipe.distill.loop import distil
from dmdpipe.networks.bf16 import Bf16Denoiser
from dmdpipe.networks.denoiser import Denoiser, build_network
from dmdpipe.networks.precision import in_precision
from dmdpipe.networks.pullback import with_pullback
from dmdpipe.specs.data import Gaussian
from dmdpipe.specs.diffusion import TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP
from dmdpipe.specs.student import StudentSpec

NETWORK = MLP(width=64)
# bfloat16 keeps eight bits: each rounding is off by 2⁻⁹ at most, and errors of many sums and layers average out.
TOLERANCE = 2**-6


class Products(TorchDispatchMode):
    """Notes the types of the factors of every matrix product, and of everything that is no product."""

    def __init__(self):
        super().__init__()
        self.factors, self.others = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        answer = function(*args, **(kwargs or {}))
        name = str(function)
        if any(word in name for word in ("mm", "matmul", "linear")):
            self.factors |= {value.dtype for value in args if isinstance(value, torch.Tensor)}
        elif any(word in name for word in ("log.", "rsqrt", "cos", "addcdiv", "lerp")):
            self.others |= {value.dtype for value in args if isinstance(value, torch.Tensor)}
        return answer


def inputs():
    source = torch.Generator().manual_seed(0)
    x, to_answer = torch.randn(2, 2, 128, 16, generator=source)
    sigma = (torch.randn(128, 1, generator=source) * 1.2 - 1.2).exp()
    return x, sigma, to_answer


def answer_and_gradient(kind, seed, twice=False):
    """Return a denoiser's answer to the seed's inputs and the gradient at its parameters."""
    network = build_network(NETWORK, 16, seed)
    parameters = FlatParameters(network)
    x, sigma, to_answer = inputs()
    with torch.no_grad():
        answer, pullback = with_pullback(kind(network), x[seed], sigma)
        pullback(to_answer[seed])
        if twice:
            with_pullback(kind(network), x[seed], sigma)[1](to_answer[seed], add=True)
    return answer, parameters.gradient


def off(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("seed", [0, 1])
def test_answers_and_gradients_are_those_of_float32_to_its_rounding(seed):
    for found, expected in zip(*(answer_and_gradient(kind, seed) for kind in (Bf16Denoiser, Denoiser)), strict=True):
        assert found.dtype == torch.float32
        assert 2**-12 < off(found, expected) < TOLERANCE


def test_only_the_network_computes_in_bfloat16():
    with Products() as seen:
        answer_and_gradient(Bf16Denoiser, 0)
    assert seen.factors == {torch.bfloat16}
    assert seen.others == {torch.float32}


def test_answers_without_gradients_are_computed_in_it_too():
    x, sigma, _ = inputs()
    network = build_network(NETWORK, 16, 0).requires_grad_(False)
    with torch.no_grad(), Products() as seen:
        found = Bf16Denoiser(network)(x[0], sigma)
    assert seen.factors == {torch.bfloat16}
    assert 2**-12 < off(found, Denoiser(network)(x[0], sigma)) < TOLERANCE


def test_gradients_add_up():
    once, twice = (answer_and_gradient(Bf16Denoiser, 0, twice)[1] for twice in (False, True))
    assert torch.equal(twice, 2 * once)


def test_members_of_an_ensemble_compute_in_it_too():
    networks = [build_network(NETWORK, 16, seed) for seed in (0, 1)]
    x, sigma, to_answer = inputs()

    def one(flat, x, to_answer):
        answer, pullback = call_with_pullback(Bf16Denoiser(networks[0]), flat, x, sigma)
        return answer, pullback(to_answer)

    with torch.no_grad(), Products() as seen:
        together = vmap(one)(stacked(networks), x, to_answer)
    assert seen.factors == {torch.bfloat16}
    for seed in (0, 1):
        for found, expected in zip(together, answer_and_gradient(Denoiser, seed), strict=True):
            assert off(found[seed], expected) < TOLERANCE


def test_other_precisions_leave_a_denoiser_as_it_is():
    denoiser = Denoiser(build_network(NETWORK, 2, 0), skip=False)
    assert all(in_precision(denoiser, precision) is denoiser for precision in ("full", "tf32"))
    half = in_precision(denoiser, "bf16")
    assert half.state_dict().keys() == denoiser.state_dict().keys()
    assert half.network is denoiser.network and not half.skip


def test_a_students_training_takes_it_and_its_weights_stay_float32():
    teacher = TeacherSpec(data=Gaussian(dim=16), score=TrainedScore(network=NETWORK))
    optimiser = {"learning_rate": 1e-3, "warmup": 0}
    recipe = {"generator": optimiser, "fake_score": optimiser}
    spec = StudentSpec(teacher=teacher, network=NETWORK, batch=64, generator_steps=3, snapshots=3, recipe=recipe)
    denoiser = Denoiser(build_network(NETWORK, 16, 7).requires_grad_(False))
    ends = {}
    for precision in ("full", "bf16"):
        with Products() as seen:
            snapshots, _ = distil(spec.model_copy(update={"precision": precision}), denoiser)
        assert (torch.bfloat16 in seen.factors) == (precision == "bf16")
        assert {value.dtype for name, value in snapshots.items() if name != "generator_step"} == {torch.float32}
        ends[precision] = {name: value for name, value in snapshots.items() if name != "generator_step"}
    for name, full in ends["full"].items():
        moved = float((full[-1] - full[0]).norm())
        assert 0 < float((ends["bf16"][name][-1] - full[-1]).norm()) < moved
