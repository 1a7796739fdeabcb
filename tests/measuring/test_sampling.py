"""The same noise through two models: what no batch may change, and samples that are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dmdpipe.diffusion import sampler
from dmdpipe.errors import UserError
from dmdpipe.measuring import sampling
from dmdpipe.measuring.models import Images, Model
from dmdpipe.measuring.sampling import common_range, sample_both
from dmdpipe.pairing.bank import noise_rows
from dmdpipe.pairing.classes import Classes
from dmdpipe.specs.diffusion import NoiseRange

RANGE = NoiseRange(sigma_max=20.0)


class Gaussian(nn.Module):
    """The denoiser of N(0, spread²) in every coordinate."""

    def __init__(self, spread):
        super().__init__()
        self.spread = spread

    def forward(self, x, sigma):
        return self.spread**2 / (self.spread**2 + sigma**2) * x


def model(denoiser, dim=3, name="mine"):
    return Model(Path(name), dim, {}, RANGE, denoiser=denoiser)


def sampled(teacher, student, **options):
    return sample_both(teacher, student, RANGE, **{"n": 10, "n_held_out": 7, "steps": 64} | options)


def test_gaussian_models_make_their_closed_form_of_the_banks_noise():
    both = sampled(model(Gaussian(0.5)), model(Gaussian(2.0)))
    z = noise_rows(3, 10, 0, "paired")
    assert np.array_equal(both.z, z)
    flow = 20 * 0.5 / np.sqrt(0.5**2 + 20**2)
    np.testing.assert_allclose(both.teacher, flow * z, atol=5e-3)
    assert np.abs(both.doubled - flow * z).max() < np.abs(both.teacher - flow * z).max() / 2
    np.testing.assert_allclose(both.teacher_held_out, flow * noise_rows(3, 7, 0, "held_out"), atol=5e-3)
    np.testing.assert_allclose(both.student, 20 * 4 / (4 + 400) * z, rtol=1e-5)


def test_the_batch_changes_nothing():
    whole, parts = (sampled(model(Gaussian(0.5)), model(Gaussian(2.0)), batch=batch) for batch in (1_024, 3))
    for name, array in vars(whole).items():
        assert np.array_equal(array, vars(parts)[name]), name


class OfItsClass(Gaussian):
    """The denoiser of N(0, (1 + class)²), row by row."""

    def forward(self, x, sigma, classes):
        spread = 1.0 + classes[:, None]
        return spread**2 / (spread**2 + sigma**2) * x


def test_a_batch_beyond_the_samplers_own_chunks_keeps_each_class_with_its_noise(monkeypatch):
    told = [replace(model(OfItsClass(0.0)), classes=Classes(5)) for _ in range(2)]
    whole = sampled(*told)
    for module in (sampling, sampler):
        monkeypatch.setattr(module, "CHUNK", 4)
    parts = sampled(*told, batch=1_000)
    for name, array in vars(whole).items():
        assert np.array_equal(array, vars(parts)[name]), name


class Constant(Gaussian):
    def forward(self, x, sigma):
        return torch.full_like(x, self.spread)


@pytest.mark.parametrize(("answer", "says"), [(0.0, "do not vary"), (float("nan"), "not finite")])
def test_a_teacher_that_makes_no_samples_is_named(answer, says):
    with pytest.raises(UserError, match=f"^mine.*{says}"):
        sampled(model(Constant(answer)), model(Gaussian(1.0)))


def test_models_of_other_dimensions_are_refused():
    with pytest.raises(UserError, match=r"^other: has 2 coordinates, but mine has 3"):
        sampled(model(Gaussian(1.0)), model(Gaussian(1.0), dim=2, name="other"))


class OfItsPixel(Gaussian):
    """The denoiser of pictures of N(0, spread²), spread [C, H, W], for rows that lie one way or the other."""

    def __init__(self, spread, channels_first):
        super().__init__((spread if channels_first else spread.permute(1, 2, 0)).reshape(1, -1))


def picturing(spread, channels_first, name):
    images = Images(*spread.shape, channels_first=channels_first)
    return replace(model(OfItsPixel(spread, channels_first), spread.numel(), name), images=images)


@pytest.mark.parametrize("firsts", [(True, False), (False, True), (True, True), (False, False)])
def test_both_see_the_same_picture_of_noise_wherever_their_channels_lie(firsts):
    spread = 0.1 + torch.arange(3 * 2 * 4).reshape(3, 2, 4) / 10
    both = sampled(*(picturing(spread, first, "ts"[i]) for i, first in enumerate(firsts)), steps=2)
    own = OfItsPixel(spread, firsts[0]).spread.numpy()
    np.testing.assert_array_equal(both.z, noise_rows(24, 10, 0, "paired"))
    np.testing.assert_allclose(both.student, 20 * own**2 / (own**2 + 400) * both.z, rtol=1e-5)


def test_models_of_one_dimension_and_two_shapes_are_refused():
    teacher, student = (
        picturing(torch.ones(shape), True, name) for name, shape in (("t", (3, 4, 4)), ("s", (3, 2, 8)))
    )
    with pytest.raises(UserError, match=r"^s: is made for 3×2×8, t for 3×4×4; name two models of one shape$"):
        sampled(teacher, student)
    # Where nothing is known of one of them, its dimension is all that can be compared.
    assert sampled(teacher, replace(student, images=None)).student.shape == (10, 48)


def test_levels_are_the_teachers_from_the_students_top():
    teacher = Model(Path("t"), 3, {}, NoiseRange(sigma_min=0.01, sigma_max=150.0), Gaussian(1.0), ends_at=150.0)
    assert common_range(teacher, model(Gaussian(1.0)), None) == NoiseRange(sigma_min=0.01, sigma_max=20.0)
    assert common_range(teacher, model(Gaussian(1.0)), 150.0).sigma_max == 150
    for wrong in (151.0, 0.01):
        with pytest.raises(UserError, match="^--sigma-max"):
            common_range(teacher, model(Gaussian(1.0)), wrong)
