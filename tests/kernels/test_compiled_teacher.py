"""Several steps of a teacher's training in C, against one after the other by their own kernels and by PyTorch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dmdpipe.diffusion.losses import edm_weight
from dmdpipe.diffusion.optimiser import FlatOptimiser, FlatParameters
from dmdpipe.kernels.learning import Learner
from dmdpipe.kernels.noise import Stream
from dmdpipe.kernels.teacher import teacher_steps
from dmdpipe.networks.denoiser import Denoiser
from dmdpipe.networks.mlp import MLP

RATES, SHARES = [0.0, 0.01, 0.02], [0.9, 0.5, 0.001]


def in_training(dim: int, clip: float | None = None, width: int = 24) -> tuple[Denoiser, FlatOptimiser]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        denoiser = Denoiser(MLP(dim, SimpleNamespace(width=width, depth=2, embedding=8, classes=0)))
    return denoiser, FlatOptimiser(FlatParameters(denoiser), clip=clip)


def batches(batch: int, dim: int):
    """Return samples, levels and noisy samples of three batches."""
    x, noise, level = Stream(3).normal(3 * batch, dim), Stream(4).normal(3 * batch, dim), Stream(5).normal(3 * batch, 1)
    return x, level.exp(), torch.addcmul(x, level.exp(), noise)


@torch.no_grad()
@pytest.mark.parametrize("clip", [None, 1e-3])
@pytest.mark.parametrize(
    ("batch", "dim", "width"), [(48, 3, 24), (133, 16, 24), (1, 2, 24), (133, 64, 64), (133, 3, 256)]
)
def test_steps_together_are_those_one_by_one_to_the_byte(batch, dim, width, clip):
    (one, own), (other, plain) = in_training(dim, clip, width), in_training(dim, clip, width)
    averages = [torch.zeros_like(own.parameters.values) for _ in range(2)]
    x, sigma, noisy = batches(batch, dim)
    for _ in range(2):
        learner = Learner(one.kernel, one.conditions(sigma), own.flat())
        told = noisy, x, edm_weight(sigma), own.begin_steps(RATES), averages[0], SHARES
        losses = teacher_steps(learner, *told)
        for k, (rate, share) in enumerate(zip(RATES, SHARES, strict=True)):
            clean, level, noised = (each[k * batch : (k + 1) * batch] for each in (x, sigma, noisy))
            wanted = other.kernel.denoising_loss(noised, other.conditions(level), clean, edm_weight(level))
            plain.step(rate)
            averages[1].lerp_(plain.parameters.values, share)
            assert losses[k] == wanted
    assert torch.equal(own.parameters.values, plain.parameters.values)
    assert torch.equal(*averages)
    assert averages[0].abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("size", [1.0, 1e24])
@pytest.mark.parametrize("share", [1 - 1e-7, 1 + 1e-7, 1.4, 1.45, 100.0])
def test_a_gradient_is_clipped_as_its_exact_norm_says(share, size):
    """Bounds just below, just above and far above the norm; squares of large gradients overflow in single precision."""
    x, sigma, noisy = (each[:48] for each in batches(48, 3))
    x = size * x

    def learned(clip):
        denoiser, optimiser = in_training(3, clip)
        return denoiser, optimiser, denoiser.conditions(sigma)

    other, plain, given = learned(None)
    other.kernel.denoising_loss(noisy, given, x, edm_weight(sigma))
    clip = share * plain.step(0.01)
    (one, own, given), (other, plain, _) = learned(clip), learned(clip)
    learner = Learner(one.kernel, given, own.flat())
    for _ in range(2):
        teacher_steps(
            learner, noisy, x, edm_weight(sigma), own.begin_steps([0.01]), own.parameters.values.clone(), [0.5]
        )
        other.kernel.denoising_loss(noisy, given, x, edm_weight(sigma))
        plain.step(0.01)
        assert torch.equal(own.parameters.values, plain.parameters.values)
        assert torch.equal(own.state["first"], plain.state["first"])
    assert own.parameters.values.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("entries", ["all", "few"])
def test_a_gradient_is_clipped_whatever_its_size(entries, size):
    """Be it large, or so small that its squares vanish; without weights only the last biases have one."""
    dim = 32  # no entry is left over beside the vectors in which they are summed
    x, sigma, noisy = (each[:48] for each in batches(48, dim))

    def learned(clip):
        denoiser, optimiser = in_training(dim, clip)
        if entries == "few":
            optimiser.parameters.values.zero_()
        return denoiser, optimiser, denoiser.conditions(sigma)

    weight = size * edm_weight(sigma)
    other, plain, given = learned(None)
    other.kernel.denoising_loss(noisy, given, x, weight)
    assert (int(plain.parameters.gradient.count_nonzero()) == dim) is (entries == "few")
    clip = 0.5 * plain.step(0.01)
    (one, own, given), (other, plain, _) = learned(clip), learned(clip)
    told = own.begin_steps([0.01]), own.parameters.values.clone(), [0.5]
    teacher_steps(Learner(one.kernel, given, own.flat()), noisy, x, weight, *told)
    other.kernel.denoising_loss(noisy, given, x, weight)
    plain.step(0.01)
    assert torch.equal(own.parameters.values, plain.parameters.values)
    assert torch.equal(own.state["first"], plain.state["first"])


@torch.no_grad()
def test_what_does_not_fit_is_refused():
    denoiser, optimiser = in_training(2)
    x, sigma, noisy = batches(4, 2)
    flat, sizes = optimiser.flat(), optimiser.begin_steps(RATES)
    teacher = Learner(denoiser.kernel, denoiser.conditions(sigma), flat)
    weight, average = edm_weight(sigma), torch.zeros_like(flat.values)

    def of(given):
        return teacher._replace(given=given)

    good = {
        "teacher": teacher, "noisy": noisy, "clean": x, "weight": weight,
        "sizes": sizes, "average": average, "shares": SHARES,
    }  # fmt: skip
    for wrong in (
        {"clean": x[:11]},
        {"clean": x.double()},
        {"clean": x.T.contiguous().T},
        {"noisy": noisy[:11], "clean": x[:11], "weight": weight[:11], "teacher": of(denoiser.conditions(sigma[:11]))},
        {"teacher": of(denoiser.conditions(sigma[:1]))},
        {"teacher": of(teacher.given.at(torch.arange(12)))},
        {"weight": weight[:1]},
        {"average": average[1:]},
        {"shares": SHARES[:2]},
        {"teacher": teacher._replace(flat=flat._replace(second=torch.zeros(2)))},
        {"teacher": teacher._replace(flat=None)},
    ):
        with pytest.raises(ValueError, match=r"fit|one piece|parameters"):
            teacher_steps(**good | wrong)
    assert teacher_steps(**good).isfinite().all()


@pytest.mark.parametrize("moved", ["value", "gradient"])
def test_a_parameter_amid_the_others_that_lies_elsewhere_is_found(moved):
    denoiser, optimiser = in_training(2)
    weight = [*denoiser.parameters()][4]
    if moved == "value":
        weight.data = weight.detach().clone()
    else:
        weight.grad = torch.zeros_like(weight)
    learner = Learner(denoiser.kernel, denoiser.conditions(torch.ones(1, 1)), optimiser.flat())
    with pytest.raises(ValueError, match="lie elsewhere"):
        learner.told_flat()
