"""Students with a U-Net: they train, resume, and are the same on a GPU; their discriminator; and a whole study."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from killed_step import KilledError, Step
from pretended_gpu import pretended_gpu
from torch import nn
from torch.testing import assert_close

from dmdpipe.artifacts.dag import steps_below
from dmdpipe.artifacts.plan import plan
from dmdpipe.artifacts.step import run_step
from dmdpipe.artifacts.tensors import decode_tensors
from dmdpipe.diffusion import state
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill.adversarial import Adversary, build_head, hidden_state
from dmdpipe.distill.batches import RandomBatches
from dmdpipe.distill.loop import distil
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.denoiser import build_network
from dmdpipe.seeds import derive_seed
from dmdpipe.specs.data import Digits
from dmdpipe.specs.diffusion import TeacherSpec, TrainedScore
from dmdpipe.specs.grid import expand
from dmdpipe.specs.network import UNet
from dmdpipe.specs.student import StudentSpec
from dmdpipe.specs.study import Scale, Study

TINY = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(1,))
TEACHER = TeacherSpec(data=Digits(side=4), score=TrainedScore(network=TINY))
QUICK = {"learning_rate": 1e-3, "warmup": 0}
LEARNED = {"generator": QUICK, "fake_score": QUICK}
DATA = Stream(1).normal(40, 16) / 2
SPECS = {
    "dmd2-gan": {"recipe": {"name": "dmd2-gan", **LEARNED}},
    "fastgen-gan, bf16": {"recipe": {"name": "fastgen-gan", **LEARNED, "ema": 0.8}, "precision": "bf16"},
    "narrower, fresh fake": {
        "network": UNet(channels=8, multipliers=(1, 1), blocks=1, attention=()),
        "init": {"kind": "edm-default"},
        "recipe": {**LEARNED, "fake_start": "fresh"},
    },
}


def student_spec(name="dmd2-gan", **fields):
    given = {"teacher": TEACHER, "network": TINY, "batch": 4, "generator_steps": 3, "snapshots": 3} | fields
    return StudentSpec(**given | SPECS[name])


def teacher(dtype=torch.float32):
    tensors = {name: value.numpy() for name, value in build_network(TINY, 16, seed=77).state_dict().items()}
    return load_teacher(TEACHER, tensors, dtype)


def trained(spec, step=None):
    snapshots, history = distil(spec, teacher(getattr(torch, spec.dtype)), step, data=DATA)
    return {**snapshots, "history": history}


@pytest.mark.parametrize("name", SPECS)
def test_a_killed_training_ends_in_the_same_bytes_and_its_weights_have_moved(tmp_path, monkeypatch, name):
    spec = student_spec(name)
    whole = trained(spec)
    monkeypatch.setattr(state, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    torch.manual_seed(3)
    for killed_at in (2, 2):
        with pytest.raises(KilledError):
            trained(spec, Step(tmp_path, killed_at))
        torch.randn(7)  # what is left of the global stream counts for nothing
    again = trained(spec, Step(tmp_path))
    assert all(torch.equal(value.nan_to_num(), again[key].nan_to_num()) for key, value in whole.items())
    weights = {key: value for key, value in whole.items() if key not in ("history", "generator_step")}
    assert all(not torch.equal(value[0], value[-1]) for value in weights.values())
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_a_student_trained_on_a_gpu_is_the_same_and_comes_back():
    here = trained(student_spec("narrower, fresh fake", dtype="float64"))
    with pretended_gpu() as gpu:
        there = trained(student_spec("narrower, fresh fake", dtype="float64", device="cuda"))
        assert gpu.operations > 100
    for key, value in here.items():
        assert_close(there[key], value, atol=1e-9, rtol=1e-6, equal_nan=True)


# The discriminator


@pytest.mark.parametrize(("side", "left"), [(1, 1), (2, 1), (3, 1), (7, 3), (8, 4)])
def test_the_head_reads_every_position_of_the_middle_and_its_weights_follow_from_its_seed(side, left):
    torch.manual_seed(1)
    head = build_head(16, 5, side)
    torch.manual_seed(2)
    again = build_head(16, 5, side)
    assert all(torch.equal(*pair) for pair in zip(head.parameters(), again.parameters(), strict=True))
    first, second, last = (layer for layer in head if isinstance(layer, nn.Conv2d))
    assert (second.kernel_size, last.kernel_size) == ((left, left), (1, 1))
    h = torch.randn(3, 16, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    logits = head(h)
    assert logits.shape == (3, 1)
    (gradient,) = torch.autograd.grad(logits.sum(), h)
    # An odd side's last row and column lie beyond the windows of the halving but in their padding's reach.
    assert (gradient.abs().amax((0, 1)) > 0).all()


def test_the_gradient_at_the_samples_is_the_slope_of_the_weighted_loss():
    spec = student_spec(dtype="float64")
    body = teacher(torch.float64)
    x = Stream(3).normal(4, 16).double()

    def loss(at):
        adversary = Adversary(spec, body, None, DATA, RandomBatches(spec, 16))
        return adversary.gradient(at)

    direction = Stream(4).normal(4, 16).double()
    gradient = loss(x)[1]
    ends = [loss(x + way * direction)[0] for way in (1e-5, -1e-5)]
    slope = spec.recipe.adversarial_weight * (ends[0] - ends[1]) / 2e-5
    assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=0)


def test_the_discriminator_of_the_fake_score_reads_its_middle_and_trains_its_lower_half_alone():
    spec = student_spec(dtype="float64", recipe={"name": "dmd2-gan", **LEARNED})
    fake = teacher(torch.float64).requires_grad_(True)
    adversary = Adversary(spec, teacher(torch.float64), fake, DATA, RandomBatches(spec, 16))
    h = hidden_state(fake, DATA.double(), torch.ones(40, 1, dtype=torch.float64))
    assert h.shape == (40, 16, 2, 2)
    for parameter in [*fake.parameters(), *adversary.trained.parameters()]:
        parameter.grad = torch.zeros_like(parameter)
    loss = adversary.learn(Stream(3).normal(4, 16).double())
    assert 0.1 < float(loss) < 10 * math.log(2)
    reached = {name for name, parameter in fake.named_parameters() if parameter.grad.any()}
    upper = ("network.unet.up_blocks", "network.unet.conv_norm_out", "network.output")
    assert reached and not any(name.startswith(upper) for name in reached)
    assert any("mid_block" in name for name in reached) and any("conv_in" in name for name in reached)
    assert all(parameter.grad.any() for parameter in adversary.head.parameters() if parameter.dim() > 1)


def test_the_head_is_of_the_students_own_seed():
    spec = student_spec()
    head = Adversary(spec, teacher(), None, DATA, RandomBatches(spec, 16)).head
    expected = build_head(16, derive_seed(spec.seed, "student", "discriminator"), 2)
    assert all(torch.equal(*pair) for pair in zip(head.parameters(), expected.parameters(), strict=True))


# From data to metrics

BASE = {
    "data.family": "digits",
    "data.side": 8,
    "data.n_train": 200,
    "data.n_held_out": 60,
    "score.network.kind": "unet",
    "score.network.channels": 8,
    "score.network.multipliers": [1, 2],
    "score.network.blocks": 1,
    "score.network.attention": [1],
    "score.steps": 20,
    "score.batch": 16,
    "student.batch": 16,
    "student.generator_steps": 4,
    "student.snapshots": 3,
    "student.recipe.generator": {"learning_rate": 1e-3, "warmup": 0},
    "sampler.steps": 4,
    "bank.n_paired": 24,
    "bank.n_held_out": 128,
    "bank.n_reference_sets": 2,
}


def test_a_study_of_unets_goes_from_data_to_metrics(tmp_path):
    study = Study(
        number=0,
        title="t",
        question="q",
        prediction="p",
        base=BASE,
        axes={"recipe": {name: {"student.recipe.name": name} for name in ("dmd2", "dmd2-gan")}},
    )
    # The scale's width is for MLPs.
    scale = Scale(title="s", seeds=1, set={"score.network.width": 512})
    results = tmp_path / "results"
    rho = {}
    for member in expand("some", study, "some", scale):
        assert member.labels()["network"] == "unet-8x1-2"
        metrics = plan("metrics", member.spec)
        for step in steps_below(metrics):
            if not (results / step.folder).exists():
                run_step(step.canonical(), results)
        assert "unet-8x1-2" in metrics.parents["teacher_samples"].folder
        table = pd.read_parquet(results / metrics.folder / "metrics.parquet")
        rho[member.point] = table[table["metric"] == "rho"].sort_values("generator_step")["value"].tolist()
        pairs = decode_tensors((results / metrics.parents["pairs"].folder / "pairs.safetensors").read_bytes(), "pairs")
        assert pairs["student"].shape == (3, 24, 64)
    # The two start alike, and train apart.
    alike, *_, apart = zip(*rho.values(), strict=True)
    assert alike[0] == alike[1] and apart[0] != apart[1]
    assert all(0 < value < 2 for values in rho.values() for value in values)
