"""Students that train together: each is what it would have become alone, whatever happens beside it."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap
from torch.testing import assert_close

from dmdpipe.distill.ensemble import Ensemble
from dmdpipe.distill.loop import distil
from dmdpipe.distill.student import build_student
from dmdpipe.networks.denoiser import Denoiser, build_network
from dmdpipe.specs.data import Gaussian, dimension
from dmdpipe.specs.diffusion import TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP
from dmdpipe.specs.student import StudentSpec

NETWORK = MLP(width=8, depth=2, embedding=4)
QUICK = {"learning_rate": 1e-3, "warmup": 8}


def member(seed, **fields):
    fields = {"recipe": {"generator": QUICK, "fake_score": QUICK}} | fields
    teacher = TeacherSpec(data=Gaussian(dim=3), score=TrainedScore(network=NETWORK, seed=seed))
    given = {"generator_steps": 6, "snapshots": 4, "batch": 16, "dtype": "float64"} | fields
    return StudentSpec(teacher=teacher, network=NETWORK, seed=seed, **given)


def teacher(seed):
    return Denoiser(build_network(NETWORK, 3, 100 + seed).double().requires_grad_(False))


def together(specs, teachers=None):
    teachers = teachers or [teacher(spec.seed) for spec in specs]
    return Ensemble(specs, teachers).train()


def alone(spec):
    """Return the snapshots' flat parameters [K, P] from the loop, which trains one student."""
    snapshots, _ = distil(spec, teacher(spec.seed))
    return torch.cat([value.flatten(1) for name, value in snapshots.items() if name != "generator_step"], dim=1)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"recipe": {"name": "fastgen", "ema": 0.8}},
        {"recipe": {"generator": {"clip": 1e-4}, "fake_score": {"clip": 1e-4, "learning_rate": 1e-3}}},
        {"init": {"kind": "rotated"}},
        {"init": {"kind": "random-no-skip"}, "recipe": {"normalise": False, "generator_every": 3}},
        {"recipe": {"generator_every": 1, "generator": QUICK, "fake_score": QUICK}},
    ],
    ids=["dmd2", "fastgen", "clipped", "rotated", "random-no-skip", "one update"],
)
def test_every_member_becomes_what_it_becomes_alone(fields):
    specs = [member(seed, **fields) for seed in (0, 1, 2)]
    for spec, found in zip(specs, together(specs), strict=True):
        expected = alone(spec)
        moved = float((expected[-1] - expected[0]).abs().max())
        assert moved > 1e-6
        assert_close(found, expected, rtol=0, atol=1e-6 * moved)


def test_each_of_128_becomes_what_it_becomes_alone():
    """As many as a point has at the scale gpu."""
    specs = [member(seed, generator_steps=3, snapshots=3) for seed in range(128)]
    ends = set()
    for spec, found in zip(specs, together(specs), strict=True):
        expected = alone(spec)
        moved = float((expected[-1] - expected[0]).abs().max())
        assert moved > 1e-6
        assert_close(found, expected, rtol=0, atol=1e-6 * moved)
        ends.add(found[-1].numpy().tobytes())
    assert len(ends) == 128


def test_a_member_that_is_not_a_number_leaves_its_neighbours_as_they_are():
    specs = [member(seed) for seed in (0, 1, 2)]
    well = together(specs)
    teachers = [teacher(seed) for seed in (0, 1, 2)]
    next(teachers[1].parameters()).fill_(torch.nan)
    ill = together(specs, teachers)
    assert ill[1].isnan().any()
    assert torch.equal(ill[0], well[0]) and torch.equal(ill[2], well[2])


def test_a_student_answers_after_it_was_mapped_over_members():
    """What it remembers of its noise level is no member's own, which ends with the map."""
    student = build_student(member(0))
    student.generator.plain = True
    z = torch.ones(2, 3, dimension(member(0).teacher.data), dtype=next(student.parameters()).dtype)
    with torch.no_grad():
        vmap(student)(z)
        assert student(z[0]).shape == z[0].shape


def test_members_do_not_depend_on_how_many_they_are():
    specs = [member(seed) for seed in (0, 1, 2)]
    assert_close(together(specs)[1], together(specs[1:2])[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"recipe": {"regression_weight": 0.25}}, "regress"),
        ({"recipe": {"name": "dmd2-gan"}}, "discriminators"),
        ({"recipe": {"name": "gan"}}, "discriminators"),
        ({"init": {"kind": "kd-rotated"}}, "regress"),
        ({"recipe": {"generator": {"kind": "sgd"}}}, "AdamW"),
        ({"sampling_steps": 2}, "one step"),
        ({"recipe": {"generator_every": 1, "fake_trains_with_generator": False}}, "learn"),
    ],
)
def test_what_members_cannot_do_together_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        together([member(seed, **fields) for seed in (0, 1)])


def test_members_that_differ_in_more_than_seeds_are_refused():
    with pytest.raises(ValueError, match="seeds only"):
        together([member(0), member(1, generator_steps=7)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("graph", [False, True])
def test_a_gpu_trains_the_same_students(graph):
    there, here = ([member(seed, device=device) for seed in (0, 1, 2)] for device in ("cuda", "cpu"))
    assert_close(Ensemble(there, [teacher(s) for s in (0, 1, 2)], graph).train(), together(here))
