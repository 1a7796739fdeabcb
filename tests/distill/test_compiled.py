"""Rounds that C goes through, and those that the loop goes: the same bytes, and each where it belongs."""

from __future__ import annotations

import pytest
import torch

from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill import loop
from dmdpipe.distill.compiled import compiled_rounds, rounds_together
from dmdpipe.distill.loop import distil
from dmdpipe.networks.denoiser import build_network
from dmdpipe.specs.data import Gaussian, Moons, Ring, dimension
from dmdpipe.specs.diffusion import TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP
from dmdpipe.specs.student import StudentSpec

SMALL = MLP(width=8, depth=2, embedding=4)
OF_CLASSES = MLP(width=8, depth=2, embedding=4, classes=3)
QUICK = {"learning_rate": 1e-2, "warmup": 4}
LEARNED = {"generator": QUICK, "fake_score": QUICK}
RING = Ring(modes=3, n_train=600, n_held_out=10, labels=True)
CLASSES = {"teacher": TeacherSpec(data=RING, score=TrainedScore(network=OF_CLASSES)), "network": OF_CLASSES}
IN_C = {
    "dmd2": {"recipe": LEARNED},
    "fastgen": {"recipe": {"name": "fastgen", **LEARNED}},
    "fastgen in step": {"recipe": {"name": "fastgen", **LEARNED, "generator_every": 1}},
    "dmd2 in step": {"recipe": {**LEARNED, "generator_every": 1}},
    "fresh fake": {"recipe": {**LEARNED, "fake_start": "fresh"}},
    "other weights": {"recipe": {**LEARNED, "fake_weighting": "none", "dm_weight": 2.5, "ema": 0.9}},
    "another normaliser": {"recipe": {**LEARNED, "normaliser_offset": 3.0, "normaliser_min": 5.0}},
    "no normaliser": {"recipe": {**LEARNED, "normalise": False}},
    "bound": {"recipe": {"generator": {**QUICK, "clip": 1e-3}, "fake_score": {**QUICK, "clip": 1e-2}}},
    "no bound": {"recipe": {"generator": {**QUICK, "clip": None}, "fake_score": {**QUICK, "decay": "cosine"}}},
    "odd batch": {"recipe": LEARNED, "batch": 101},
    "batch of one": {"recipe": LEARNED, "batch": 1},
    "another network, no skip": {
        "recipe": LEARNED, "network": MLP(width=20, depth=1, embedding=6), "init": {"kind": "random-no-skip"},
    },
    "another level": {"recipe": LEARNED, "noise_range": {"sigma_max": 8.0}},
}  # fmt: skip
# Hidden layers of whole panels have their gradients in place; those of width 256 are fetched ahead.
IN_C |= {
    f"width {width}": {
        "teacher": TeacherSpec(data=Gaussian(dim=dim), score=TrainedScore(network=MLP(width=width))),
        "network": MLP(width=width), "recipe": LEARNED, "batch": 136, "generator_steps": 4, "snapshots": 3,
    }
    for width, dim in [(64, 64), (128, 3), (256, 16)]
}  # fmt: skip
BY_THE_LOOP = {
    "lagged": {"recipe": {**LEARNED, "fake_lag": 2}},
    "three steps": {"recipe": LEARNED, "sampling_steps": 3},
    "gan": {"recipe": {"name": "dmd2-gan", **LEARNED}},
    "regression beside": {"recipe": {**LEARNED, "regression_weight": 0.25, "regression_pairs": 64}},
    "regression": {"recipe": {"name": "regression", "regression_pairs": 64}},
    "noisy score": {"recipe": {**LEARNED, "score_noise": 0.5}},
    "descent": {"recipe": {**LEARNED, "fake_score": {"kind": "sgd", **QUICK}}},
    "generator's descent": {"recipe": {**LEARNED, "generator": {"kind": "sgd", **QUICK}}},
    "fake of samples": {"recipe": {**LEARNED, "fake": "samples", "fake_samples": 16}},
    "rotated": {"recipe": LEARNED, "init": {"kind": "rotated"}},
    "double": {"recipe": LEARNED, "dtype": "float64"},
    "classes": {"recipe": LEARNED, **CLASSES},
}


def trained(fields):
    given = {"teacher": TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL)), "network": SMALL, "batch": 24}
    spec = StudentSpec(**given | {"generator_steps": 6, "snapshots": 6} | fields)
    dim = dimension(spec.teacher.data)
    network = build_network(spec.teacher.score.network, dim, seed=77)
    tensors = {key: value.numpy() for key, value in network.state_dict().items()}
    data = torch.randn(40, dim, generator=torch.Generator().manual_seed(1))
    snapshots, history = distil(spec, load_teacher(spec.teacher, tensors, getattr(torch, spec.dtype)), data=data)
    return {key: value.numpy().tobytes() for key, value in snapshots.items()} | {"history": history.numpy().tobytes()}


@pytest.fixture
def made(monkeypatch):
    """Whether each distillation's rounds were left to C, in order."""
    found = []

    def noted(*given):
        rounds = compiled_rounds(*given)
        found.append(rounds is not None)
        return rounds

    monkeypatch.setattr(loop, "compiled_rounds", noted)
    return found


@pytest.mark.parametrize("name", IN_C)
def test_the_loop_makes_the_same_bytes(monkeypatch, made, name):
    whole = trained(IN_C[name])
    assert made == [True]
    monkeypatch.setattr(loop, "compiled_rounds", lambda *given: None)
    assert trained(IN_C[name]) == whole


@pytest.mark.parametrize("name", ["dmd2", "other weights", "fastgen", "another network, no skip"])
def test_many_rounds_in_a_call_make_the_same_bytes_as_the_loop(monkeypatch, name):
    fields = IN_C[name] | {"generator_steps": 40, "snapshots": 3}
    whole = trained(fields)
    monkeypatch.setattr(loop, "compiled_rounds", lambda *given: None)
    assert trained(fields) == whole


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, 64), ({"batch": 4096}, 64), ({"batch": 10**6}, 5), ({"batch": 10**6, "recipe": {"generator_every": 40}}, 1)],
)
def test_a_call_takes_about_as_long_whatever_the_student(monkeypatch, fields, expected):
    """192 weights, that is 4,608 products of a row in a round of five."""
    found = []

    def noted(rounds):
        found.append(rounds_together(rounds))
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "rounds_together", noted)
    with pytest.raises(KeyboardInterrupt):
        trained(fields)
    assert found == [expected]


@pytest.mark.parametrize("batch", [1, 3])
def test_optimiser_steps_count_in_a_calls_length_whatever_the_batch(monkeypatch, batch):
    """24 passes through 192 weights a row; six steps of AdamW, each of a parameter as long as 50 multiplications."""
    found = []

    def noted(rounds):
        found.append(rounds.multiplications)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "rounds_together", noted)
    with pytest.raises(KeyboardInterrupt):
        trained({"batch": batch})
    assert found == [24 * 192 * batch + 6 * 192 * 50]


@pytest.mark.parametrize("name", BY_THE_LOOP)
def test_what_c_does_not_know_is_left_to_the_loop(made, name):
    trained(BY_THE_LOOP[name])
    assert made == [False]
