"""What the loop leaves to C, and what it does itself: the same bytes, and each where it belongs."""

from __future__ import annotations

import pytest
import torch

from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill import compiled, loop
from dmdpipe.distill.loop import distil
from dmdpipe.kernels import dmd
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.denoiser import build_network
from dmdpipe.specs.data import Moons, Ring
from dmdpipe.specs.diffusion import TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP
from dmdpipe.specs.student import StudentSpec

SMALL = MLP(width=8, depth=2, embedding=4)
OF_CLASSES = MLP(width=8, depth=2, embedding=4, classes=3)
QUICK = {"learning_rate": 1e-2, "warmup": 4}
LEARNED = {"generator": QUICK, "fake_score": QUICK}
DATA = Stream(1).normal(40, 2)
BOTH = {"dm_gradient", "fake_steps"}
CLASSES = {
    "teacher": TeacherSpec(
        data=Ring(modes=3, n_train=600, n_held_out=10, labels=True), score={"kind": "trained", "network": OF_CLASSES}
    )
}
CASES = {
    "dmd2": ({"recipe": LEARNED}, BOTH),
    "fastgen": ({"recipe": {"name": "fastgen", **LEARNED}}, BOTH),
    "fastgen in step": ({"recipe": {"name": "fastgen", **LEARNED, "generator_every": 1}}, {"dm_gradient"}),
    "lagged and fresh": ({"recipe": {**LEARNED, "fake_lag": 2, "fake_start": "fresh"}}, BOTH),
    "without weights": ({"recipe": {**LEARNED, "fake_weighting": "none"}}, BOTH),
    "three steps": ({"recipe": LEARNED, "sampling_steps": 3}, BOTH),
    "odd batch": ({"recipe": LEARNED, "batch": 101}, BOTH),
    "gan": ({"recipe": {"name": "dmd2-gan", **LEARNED}}, {"dm_gradient"}),
    "noisy score": ({"recipe": {**LEARNED, "score_noise": 0.5}}, {"fake_steps"}),
    "descent": ({"recipe": {**LEARNED, "fake_score": {"kind": "sgd", **QUICK}}}, {"dm_gradient"}),
    "double": ({"recipe": LEARNED, "dtype": "float64"}, set()),
    "classes": ({"recipe": LEARNED, **CLASSES, "network": OF_CLASSES}, set()),
}


def trained(name):
    given = {"teacher": TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL)), "network": SMALL, "batch": 24}
    spec = StudentSpec(**given | {"generator_steps": 6, "snapshots": 6} | CASES[name][0])
    network = build_network(spec.teacher.score.network, 2, seed=77)
    tensors = {key: value.numpy() for key, value in network.state_dict().items()}
    snapshots, history = distil(spec, load_teacher(spec.teacher, tensors, getattr(torch, spec.dtype)), data=DATA)
    return {key: value.numpy().tobytes() for key, value in snapshots.items()} | {"history": history.numpy().tobytes()}


@pytest.mark.parametrize("name", CASES)
def test_the_plain_loop_makes_the_same_bytes(monkeypatch, name):
    used = set()
    for function in BOTH:
        inner = getattr(dmd, function)
        monkeypatch.setattr(dmd, function, lambda *a, f=function, inner=inner: used.add(f) or inner(*a))
    whole = trained(name)
    assert used == CASES[name][1]
    monkeypatch.setattr(loop, "compiled_gradient", lambda *given: None)
    monkeypatch.setattr(loop, "compiled_fake_steps", lambda *given: None)
    used.clear()
    assert trained(name) == whole
    assert not used


def test_batches_that_draw_otherwise_are_left_to_the_loop():
    spec = StudentSpec(
        teacher=TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL)), network=SMALL, recipe=LEARNED
    )

    class Others(loop.make_batches(spec, 2).__class__):
        def diffusion(self, purpose):
            return super().diffusion(purpose)

    denoiser = load_teacher(spec.teacher, {k: v.numpy() for k, v in build_network(SMALL, 2, 1).state_dict().items()},
                            torch.float32)  # fmt: skip
    for batches, known in ((loop.make_batches(spec, 2), True), (Others(spec, 2), False)):
        assert (compiled.compiled_gradient(spec.recipe, denoiser, denoiser, batches) is not None) == known
