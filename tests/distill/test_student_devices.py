"""A student's training on a GPU: everything but noise and checkpoints lies there, and it is the same training."""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager

import pytest
import torch
from killed_step import KilledError, Step
from pretended_gpu import pretended_gpu
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from dmdpipe.data.prepare import prepare
from dmdpipe.diffusion import state
from dmdpipe.diffusion.optimiser import FlatParameters
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill import cuda_graph, ensemble
from dmdpipe.distill.ensemble import Ensemble
from dmdpipe.distill.loop import distil
from dmdpipe.distill.member_noise import DrawnOnCPU, DrawnOnGPU
from dmdpipe.errors import UserError
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.denoiser import build_network
from dmdpipe.networks.pullback import with_pullback
from dmdpipe.specs.data import Moons, Ring
from dmdpipe.specs.diffusion import ExactScore, TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP
from dmdpipe.specs.student import StudentSpec

SMALL = MLP(width=8, depth=1, embedding=4)
TRAINED = TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL))
EXACT = TeacherSpec(data=Ring(n_train=4, n_held_out=1), score=ExactScore())
QUICK = {"learning_rate": 1e-2, "warmup": 4}
LEARNED = {"generator": QUICK, "fake_score": QUICK}
POOL = {"regression_weight": 0.25, "regression_pairs": 64}
SPECS = {
    "dmd2": {"recipe": {"name": "dmd2", **LEARNED}},
    "fastgen": {"recipe": {"name": "fastgen", **LEARNED, "ema": 0.8}},
    "dmd2 with regression": {"recipe": {"name": "dmd2", **LEARNED, **POOL}},
    "regression": {"recipe": {"name": "regression", "regression_pairs": 64}},
    "regression onto an exact teacher": {
        "teacher": EXACT,
        "init": {"kind": "random-head"},
        "recipe": {"name": "regression", "regression_pairs": 64},
    },
    "rotated": {"init": {"kind": "rotated"}, "recipe": LEARNED},
    "kd-rotated": {"init": {"kind": "kd-rotated", "regression_steps": 3}, "recipe": {**LEARNED, **POOL}},
    "random-no-skip": {"init": {"kind": "random-no-skip"}, "recipe": LEARNED},
    "edm-default, sgd": {"init": {"kind": "edm-default"}, "recipe": {**LEARNED, "generator": {"kind": "sgd", **QUICK}}},
}


def student_spec(name, **fields):
    given = {"teacher": TRAINED, "network": SMALL, "batch": 8, "generator_steps": 5, "snapshots": 5} | fields
    return StudentSpec(**given | SPECS[name])


def teacher(spec, dtype):
    if spec.teacher == EXACT:
        return load_teacher(EXACT, prepare(EXACT.data)[0], dtype)
    tensors = {name: value.numpy() for name, value in build_network(SMALL, 2, seed=77).state_dict().items()}
    return load_teacher(spec.teacher, tensors, dtype)


def trained(spec, step=None):
    """Return all that a distillation returns, by name."""
    snapshots, history = distil(spec, teacher(spec, getattr(torch, spec.dtype)), step)
    return {**snapshots, "history": history}


@pytest.mark.parametrize("name", SPECS)
def test_a_student_trained_on_a_gpu_is_the_same_and_comes_back(name):
    here = trained(student_spec(name, dtype="float64"))
    with pretended_gpu() as gpu:
        there = trained(student_spec(name, dtype="float64", device="cuda"))
        assert gpu.operations > 5 * 40
    moved = max(float((value[-1] - value[0]).abs().max()) for key, value in here.items() if key != "history")
    assert moved > 1e-4
    for key, value in here.items():
        assert_close(there[key], value, atol=1e-9 * moved, rtol=1e-7, equal_nan=True)


def test_a_killed_training_on_a_gpu_ends_in_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    spec = student_spec("dmd2 with regression", device="cuda")
    with pretended_gpu():
        whole = trained(spec)
        for killed_at in (2, 3):
            with pytest.raises(KilledError):
                trained(spec, Step(tmp_path, killed_at))
        again = trained(spec, Step(tmp_path))
    assert all(torch.equal(value.nan_to_num(), again[name].nan_to_num()) for name, value in whole.items())


def test_training_leaves_the_teacher_that_it_was_given_on_the_cpu():
    spec = student_spec("dmd2", device="cuda")
    given = teacher(spec, torch.float32)
    before = [p.clone() for p in given.parameters()]
    with pretended_gpu():
        distil(spec, given)
    assert all(p.device.type == "cpu" and p.equal(old) for p, old in zip(given.parameters(), before, strict=True))


@pytest.mark.parametrize("train", [trained, lambda spec: Ensemble([spec], [teacher(spec, torch.float32)])])
def test_a_gpu_that_is_not_there_is_one_line(monkeypatch, train):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^student\.device: 'cuda', but PyTorch .* no GPU here; set it to cpu"):
        train(student_spec("dmd2", device="cuda"))


# Many students at once


def one_after_the_other(function, in_dims):
    """What ``vmap`` computes, member by member: its own gradients would ask for a real GPU."""

    def mapped(members, draws, sizes):
        assert in_dims == (0, 0, None)
        count = len(next(iter(members.values())))
        each = [
            function(*({k: v[i] for k, v in given.items()} for given in (members, draws)), sizes) for i in range(count)
        ]
        return {name: torch.stack([one[name] for one in each]) for name in each[0]}

    return mapped


def written_out_pullback(module, flat, *inputs):
    """What ``call_with_pullback`` computes, by the gradients that the network writes out."""
    parameters = FlatParameters(module.requires_grad_(True))
    parameters.values.copy_(flat)
    answer, pullback = with_pullback(module, *inputs)

    def to_flat(to_answer):
        pullback(to_answer)
        return parameters.gradient.clone()

    return answer, to_flat


def held_by(together):
    """Return every tensor that a round changes."""
    noise = together.noise
    positions = [stream.position for batches in getattr(noise, "batches", []) for stream in batches.streams.values()]
    return [*together.members.values(), together.step, *positions, *getattr(noise, "positions", {}).values()]


class PretendedGraph:
    """A CUDA graph: what is captured is not computed until it is replayed, always in the same memory."""

    procedures: list = []
    captures = 0

    @contextmanager
    @staticmethod
    def capturing(graph):
        PretendedGraph.captures += 1
        (graph.procedure,) = PretendedGraph.procedures
        graph.memory = held_by(graph.procedure.__self__)
        before = [tensor.clone() for tensor in graph.memory]
        yield
        # Python has run, but no kernel has.
        for tensor, value in zip(graph.memory, before, strict=True):
            tensor.copy_(value)

    def replay(self):
        self.procedure()
        assert all(one is two for one, two in zip(self.memory, held_by(self.procedure.__self__), strict=True))


@pytest.fixture
def without_a_graph_of_cuda(monkeypatch):
    @contextmanager
    def nothing(*_):
        yield

    class Stream:
        def wait_stream(self, other):
            pass

    start = cuda_graph.Replayed.__init__

    def remembered(self, procedure):
        start(self, procedure)
        PretendedGraph.procedures[:] = [procedure]

    monkeypatch.setattr(PretendedGraph, "captures", 0)
    monkeypatch.setattr(cuda_graph.Replayed, "__init__", remembered)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", nothing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", PretendedGraph)
    monkeypatch.setattr(torch.cuda, "graph", PretendedGraph.capturing)


class NoiseOnAGPU:
    """``dmdpipe.kernels.gpu_noise`` by its description, drawn with the streams of the CPU."""

    @staticmethod
    def groups_of(size):
        return math.ceil(size / 64)

    @staticmethod
    def normals(keys, position, start, apart, draws, size):
        return NoiseOnAGPU.drawn(keys, position, start, apart, draws, lambda stream: stream.normal(size))

    @staticmethod
    def integers(keys, position, start, apart, draws, size, ends):
        return NoiseOnAGPU.drawn(keys, position, start, apart, draws, lambda stream: stream.integers(*ends, size))

    @staticmethod
    def drawn(keys, position, start, apart, draws, draw):
        rows = []
        for key in keys.tolist():
            stream = Stream(key)
            for number in range(draws):
                stream.position.fill_(int(position) + start + number * apart)
                rows.append(draw(stream))
        return torch.stack(rows).view(len(keys), draws, -1).to(keys.device)


@pytest.fixture
def noise_on_a_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "dmdpipe.kernels.gpu_noise", NoiseOnAGPU)


def members(**fields):
    return [student_spec("dmd2", dtype="float64", seed=seed, **fields) for seed in (0, 1, 2)]


def together(specs, graph=False):
    return Ensemble(specs, [teacher(spec, torch.float64) for spec in specs], graph).train()


def test_a_replayed_round_starts_from_what_the_last_one_left(without_a_graph_of_cuda):
    assert torch.equal(together(members(), graph=True), together(members()))
    assert PretendedGraph.captures == 1


@pytest.mark.parametrize("graph", [False, True])
def test_members_on_a_gpu_are_the_same_and_come_back(monkeypatch, without_a_graph_of_cuda, noise_on_a_gpu, graph):
    here = together(members())
    monkeypatch.setattr(ensemble, "vmap", one_after_the_other)
    monkeypatch.setattr(ensemble, "call_with_pullback", written_out_pullback)
    with pretended_gpu() as gpu:
        there = together(members(device="cuda"), graph)
        assert gpu.operations > 3 * 5 * 40
    assert PretendedGraph.captures == graph
    assert_close(there, here, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("recipe", ["dmd2", "fastgen"])
@pytest.mark.parametrize("batch", [3, 64, 130])
def test_members_draw_the_same_noise_on_a_gpu(noise_on_a_gpu, recipe, batch):
    specs = [student_spec(recipe, seed=seed, batch=batch) for seed in (0, 1)]
    here, there = (kind(specs, 2, torch.device("cpu")) for kind in (DrawnOnCPU, DrawnOnGPU))
    for _ in range(3):
        expected, found = here.draw(), there.draw()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    positions = {name: int(position) for name, position in there.positions.items()}
    assert positions == {name: int(here.batches[1].streams[name].position) for name in positions}


def test_a_gpu_without_triton_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "dmdpipe.kernels.gpu_noise", None)
    with pytest.raises(UserError, match="need the package 'triton'"):
        DrawnOnGPU(members(), 2, torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", [1, 64, 100, 5_000])
@pytest.mark.parametrize("position", [0, 2**28 - 1, 2**40 + 3])
def test_a_gpus_noise_is_the_cpus_byte_for_byte(size, position):
    from dmdpipe.kernels import gpu_noise

    keys = torch.tensor([0, 3, 2**62 + 12345, 2**63 - 1])
    at = torch.tensor([position], device="cuda")
    place = 2, 1 + NoiseOnAGPU.groups_of(size), 3, size
    for draw, more in (("normals", ()), ("integers", ((20, 981),)), ("integers", ((0, 2**32 - 1),))):
        found = getattr(gpu_noise, draw)(keys.cuda(), at, *place, *more).cpu().contiguous()
        expected = getattr(NoiseOnAGPU, draw)(keys, at.cpu(), *place, *more)
        assert found.numpy().tobytes() == expected.contiguous().numpy().tobytes()


class Operations(TorchDispatchMode):
    """Notes the names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function).split(".")[1])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("start", ["teacher", "rotated", "random-no-skip"])
def test_a_round_can_be_captured(start):
    """It reads no value, makes no tensor from numbers of Python, draws nothing, and leaves its inputs as they are."""
    specs = [spec.model_copy(update={"init": spec.init.model_copy(update={"kind": start})}) for spec in members()]
    together = Ensemble(specs, [teacher(spec, torch.float64) for spec in specs])
    draws, sizes = together.noise.draw(), together.sizes[0]
    before = {name: value.clone() for name, value in (together.members | draws | {"sizes": sizes}).items()}
    with torch.no_grad(), Operations() as seen:
        together.round(together.members, draws, sizes)
    host = {"_local_scalar_dense", "lift_fresh", "_to_copy", "copy_", "scalar_tensor", "nonzero", "masked_select"}
    assert seen.names and not seen.names & host
    assert not any("rand" in name or "normal" in name for name in seen.names - {"linalg_vector_norm"})
    for name, value in (together.members | draws | {"sizes": sizes}).items():
        assert torch.equal(value, before[name])
