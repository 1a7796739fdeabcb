"""Denoisers of adapted weights: exact denoisers of Gaussian data, whatever their network is told to predict."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dmdpipe.errors import UserError
from dmdpipe.networks.adapted import AdaptedDenoiser, WithLabels
from dmdpipe.networks.denoiser import Denoiser, build_network
from dmdpipe.specs.adapter import Adapter, Schedule, UNet
from dmdpipe.specs.network import MLP
from dmdpipe.specs.problems import parse

SPREAD = 0.7  # of the data, in both coordinates


class Exact(nn.Module):
    """What a perfect network would answer for data of N(0, SPREAD²), worked out from what it is asked."""

    def __init__(self, adapter):
        super().__init__()
        self.adapter = adapter

    def forward(self, x, label):
        if self.adapter.prediction == "edm":
            sigma = torch.exp(4 * label.double())
            total, data = sigma**2 + self.adapter.sigma_data**2, self.adapter.sigma_data
            noisy = x * total.sqrt()
            denoised = SPREAD**2 / (SPREAD**2 + sigma**2) * noisy
            return (denoised - data**2 / total * noisy) * total.sqrt() / (sigma * data)
        step = round(float(label))
        kept = np.prod([1 - beta for beta in betas(self.adapter.schedule)[: step + 1]])
        alpha, sigma = math.sqrt(kept), math.sqrt(1 - kept)
        clean = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * x
        noise = (x - alpha * clean) / sigma
        return {"epsilon": noise, "v": alpha * noise - sigma * clean, "sample": clean}[self.adapter.prediction]


def betas(schedule):
    """As diffusers' DDPMScheduler makes them."""
    if schedule.betas == "linear":
        return np.linspace(schedule.first, schedule.last, schedule.steps)
    if schedule.betas == "scaled_linear":
        return np.linspace(schedule.first**0.5, schedule.last**0.5, schedule.steps) ** 2
    level = np.cos((np.linspace(0, 1, schedule.steps + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - level[1:] / level[:-1], 0.999)


SCHEDULES = [
    Schedule(),
    Schedule(steps=40, betas="scaled_linear", first=1e-3, last=0.1),
    Schedule(steps=50, betas="cosine"),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.betas)
def test_the_noise_levels_of_a_schedule(schedule):
    kept = np.cumprod(1 - betas(schedule))
    np.testing.assert_allclose(schedule.sigmas(), np.sqrt((1 - kept) / kept), rtol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ({"steps": 100_000, "first": 0.9, "last": 0.99}, "100000 steps with betas up to 0.99 leave nothing"),
        ({"steps": 100_000}, "leave nothing"),
        ({"first": 0.02, "last": 0.0001}, r"first \(0.02\) must not be above last \(0.0001\)"),
    ],
)
def test_a_schedule_that_no_training_had_is_one_line(schedule, says):
    with pytest.raises(UserError, match=rf"^adapter.json: schedule: [^\n]*{says}[^\n]*$"):
        parse(Adapter, {"network": {"kind": "unet"}, "prediction": "v", "schedule": schedule}, "adapter.json")


def test_schedules_at_the_ends_of_what_there_is_are_taken():
    assert Schedule(first=0.01, last=0.01).sigmas()[0] == pytest.approx(math.sqrt(0.01 / 0.99))
    assert 1e6 < Schedule(steps=100_000, betas="cosine", first=0.02, last=1e-4).sigmas()[-1] < 1e7


CASES = [
    Adapter(network=UNet()),
    Adapter(network=UNet(), sigma_data=1.3),
    *(
        Adapter(network=UNet(), prediction=prediction, schedule=schedule)
        for prediction in ("epsilon", "v", "sample")
        for schedule in SCHEDULES
    ),
]


@pytest.mark.parametrize("adapter", CASES, ids=lambda adapter: f"{adapter.prediction}-{adapter.sigma_data}")
def test_a_perfect_network_makes_the_exact_denoiser(adapter):
    denoiser = AdaptedDenoiser(Exact(adapter), adapter)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for sigma in adapter.schedule.sigmas()[::7] if adapter.schedule else (0.01, 0.5, 80.0):
        noisy = sigma * x
        denoised = denoiser(noisy, torch.full((1, 1), sigma, dtype=torch.float64))
        assert_close(denoised, SPREAD**2 / (SPREAD**2 + sigma**2) * noisy, rtol=1e-6, atol=1e-9)


def test_time_steps_are_the_schedules_own_and_between_two_in_between():
    schedule = Schedule(steps=40)
    denoiser = AdaptedDenoiser(Exact(CASES[2]), Adapter(network=UNet(), prediction="v", schedule=schedule))
    sigmas = schedule.sigmas()

    def step(sigma):
        return float(denoiser.time_step(torch.full((1, 1), sigma, dtype=torch.float64)))

    assert [step(sigma) for sigma in sigmas] == pytest.approx(list(range(40)), abs=1e-9)
    assert step(math.sqrt(sigmas[10] * sigmas[11])) == pytest.approx(10.5)
    assert (step(sigmas[0] / 9), step(sigmas[-1] * 9)) == (0, 39)


def test_an_mlp_with_an_adapter_is_the_projects_own_denoiser():
    spec = MLP(width=8, depth=2, embedding=4)
    network = build_network(spec, 3, seed=1)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    own, adapted = Denoiser(network), AdaptedDenoiser(WithLabels(network), Adapter(network=spec))
    for sigma in (0.002, 0.4, 80.0):
        level = torch.full((1, 1), sigma)
        assert_close(adapted(sigma * x, level), own(sigma * x, level), rtol=1e-5, atol=1e-5)
