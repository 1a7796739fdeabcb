"""What a GPU makes of the training: first whether its students are right, then how many it makes and at what share."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dmdpipe.bench.training import products_of, student_spec, timed, untrained_teacher
from dmdpipe.diffusion.determinism import CPU, start_device
from dmdpipe.distill.cuda_graph import Replayed
from dmdpipe.distill.ensemble import Ensemble
from dmdpipe.distill.loop import distil
from dmdpipe.distill.member_noise import DrawnOnCPU, member_noise
from dmdpipe.networks.denoiser import Denoiser
from dmdpipe.specs.problems import parse
from dmdpipe.specs.student import StudentSpec

STUDENT_STEPS = 2_000
"""Generator steps of a student at laptop scale: what is meant by a student a second."""

ROUNDING = 1e-6
"""How far double precision may take a student from another device's, as a share of the way that training took it."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold before times mean anything.

    Attributes:
        name: what must hold.
        off: the largest difference found; of weights as a share of their largest change in training.
        allowed: the largest that may be; 0 for the same bytes.
    """

    name: str
    off: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether it holds; a difference that is not a number does not."""
        return self.off <= self.allowed


@dataclass(frozen=True)
class Speed:
    """What was measured for one way to train, medians over turns.

    Attributes:
        precision: of products (``dmdpipe.specs.hardware``).
        way: ``loop`` (``dmdpipe.distill.loop``), ``graph`` (an ensemble, captured) or ``together`` (one that is not).
        students: how many train at once.
        step_ms: milliseconds of a generator step with its fake-score steps, of all students.
        students_a_second: with ``STUDENT_STEPS`` generator steps each.
        times_the_loop: that over the loop's, in the same turn.
        share_of_products: needed operations a second over the rate of bare products in the model's hidden shape.
        share_of_peak: the same over the rate of one large product.
        noise_ms: milliseconds of drawing the noise of such a step alone; NaN for the loop.
        peak_mib: the most memory that torch held on the GPU, in MiB; NaN on a CPU.
    """

    precision: str
    way: str
    students: int
    step_ms: float
    students_a_second: float
    times_the_loop: float
    share_of_products: float
    share_of_peak: float
    noise_ms: float
    peak_mib: float


def trained_on(spec: StudentSpec, **hardware: Any) -> StudentSpec:
    """Return the student trained on other hardware.

    Raises:
        UserError: if there is no such training, e.g. tf32 on a CPU.
    """
    return parse(StudentSpec, {**spec.model_dump(), **hardware}, "bench gpu")


def checks(device: str) -> Iterator[Check]:
    """Train small students in double precision on a device, and yield what must hold of them, one by one.

    Raises:
        UserError: if there is no such device.
    """
    here = trained_on(student_spec(width=16, dim=4, batch=32, steps=6), dtype="float64")
    here = here.model_copy(update={"recipe": _quick(here)})
    there = trained_on(here, device=device)
    start_device(there, "--device")
    members = [there.model_copy(update={"seed": seed}) for seed in range(3)]
    teachers = [untrained_teacher(there).double() for _ in members]
    alone = [_weights(distil(spec.model_copy(update={"device": "cpu"}), teachers[0])[0]) for spec in members]
    way = float(max((weights[-1] - weights[0]).abs().max() for weights in alone))

    def off(found: Tensor, expected: Tensor) -> float:
        return float((found - expected).abs().max()) / way

    def together(graph: bool, teachers: Sequence[Denoiser] = teachers) -> Tensor:
        return Ensemble(members, teachers, graph).train()

    yield Check("noise is that of the CPU, byte for byte", _noise_off(members), 0)
    yield Check("a student is that of the CPU", off(_weights(distil(there, teachers[0])[0]), alone[0]), ROUNDING)
    graph = device == "cuda"
    found = together(graph)
    yield Check("a member is what it is alone on the CPU", off(found, torch.stack(alone)), ROUNDING)
    yield Check("a second run gives the same bytes", off(together(graph), found), 0)
    if graph:
        yield Check("without the graph it is the same", off(together(graph=False), found), ROUNDING)
    ill = untrained_teacher(there).double()
    next(ill.parameters()).fill_(torch.nan)
    beside = together(graph, [teachers[0], ill, teachers[2]])
    yield Check("beside one that is not a number the bytes are the same", off(beside[::2], found[::2]), 0)
    yield Check("and that one is not a number", 0.0 if beside[1].isnan().any() else math.inf, 0)


def _noise_off(members: Sequence[StudentSpec]) -> float:
    """Return the largest difference between what the members draw on their device and on the CPU, in three rounds."""
    # Not a whole number of the streams' groups, and many of them.
    sizes = {"batch": 700, "dtype": "float32"}
    specs = [member.model_copy(update=sizes) for member in members]
    device = torch.device(specs[0].device)
    there, here = member_noise(specs, 51, device), DrawnOnCPU(specs, 51, CPU)
    off = 0.0
    for _ in range(3):
        found, expected = there.draw(), here.draw()
        off = max([off, *(float((found[name].cpu() - expected[name]).abs().max()) for name in expected)])
    return off


def _quick(spec: StudentSpec) -> Any:
    quick = {"learning_rate": 1e-3, "warmup": 0}
    return spec.recipe.model_copy(
        update={name: getattr(spec.recipe, name).model_copy(update=quick) for name in ("generator", "fake_score")}
    )


def _weights(snapshots: dict[str, Tensor]) -> Tensor:
    """Return a student's snapshots as flat parameters [K, P]."""
    return torch.cat([value.flatten(1) for name, value in snapshots.items() if name != "generator_step"], dim=1)


def measure(spec: StudentSpec, members: Sequence[int], turns: int = 3) -> list[Speed]:
    """Time the loop, and ensembles of so many members beside it, in turns.

    Args:
        spec: the students; its ``generator_steps`` are those that are timed, its device and precision where and how.
        members: sizes of ensembles.
        turns: how often each is timed.

    Raises:
        UserError: if the spec names a GPU and there is none.
    """
    device = start_device(spec, "--device")
    dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
    # One that fills the device: on a core a small one does.
    size = 8_192 if device.type == "cuda" else 128
    peak = product_rate((size, size, size), device, dtype)
    return [_speed(spec, count, turns, device, dtype, peak) for count in (1, *members)]


def _speed(spec: StudentSpec, count: int, turns: int, device: torch.device, dtype: torch.dtype, peak: float) -> Speed:
    teacher = untrained_teacher(spec)
    _forget_peak(device)
    together = ensemble_of(spec, count) if count > 1 else None

    def loop() -> object:
        return distil(spec, teacher)

    # The first run also captures the graph.
    (together.train if together else loop)()
    peak_mib = _peak_mib(device)
    rows = []
    for _ in range(turns):
        of_loop = timed_on(device, loop)
        rows.append((of_loop, timed_on(device, together.train) if together else of_loop))
    seconds = median(row[1] for row in rows) / spec.generator_steps
    rate = count * products_of(spec)[1] / seconds
    return Speed(
        precision=spec.precision,
        way="loop" if count == 1 else "graph" if device.type == "cuda" else "together",
        students=count,
        step_ms=1e3 * seconds,
        students_a_second=count / seconds / STUDENT_STEPS,
        times_the_loop=median(count * row[0] / row[1] for row in rows),
        share_of_products=rate / product_rate((count, spec.batch, _width(spec)), device, dtype, batched=True),
        share_of_peak=rate / peak,
        noise_ms=1e3 * timed_on(device, together.noise.draw) if together else math.nan,
        peak_mib=peak_mib,
    )


def ensemble_of(spec: StudentSpec, members: int) -> Ensemble:
    """Return students that differ in their seeds, on a GPU captured as a graph."""
    specs = [spec.model_copy(update={"seed": seed}) for seed in range(members)]
    return Ensemble(specs, [untrained_teacher(spec)] * members, graph=spec.device == "cuda")


def _width(spec: StudentSpec) -> int:
    assert spec.network.kind == "mlp"
    return spec.network.width


def product_rate(
    shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype, batched: bool = False, turns: int = 5
) -> float:
    """Return the operations a second of a matrix product, the best of a few turns.

    Args:
        shape: (n, m, k) of an n×k matrix by a k×m one or, batched, (M, B, W) of M products of B×W by W×W.
        device: where.
        dtype: of the factors.
        batched: which of the two.
        turns: how often twenty of them are timed.
    """
    first, second, third = shape
    left = torch.randn((first, second, third) if batched else (first, third)).to(device, dtype)
    right = torch.randn((first, third, third) if batched else (third, second)).to(device, dtype)
    operations = 2 * first * second * third * (third if batched else 1)

    def run() -> None:
        for _ in range(20):
            left @ right

    # As training runs them: else a GPU would wait for the CPU to start small products.
    again = Replayed(run) if device.type == "cuda" else run
    for _ in range(2):
        again()
    return 20 * operations / min(timed_on(device, again) for _ in range(turns))


def timed_on(device: torch.device, run: Callable[[], object]) -> float:
    """Return the seconds that a call takes, until the device has finished."""
    if device.type == "cpu":
        return timed(run)

    def finished() -> None:
        run()
        torch.cuda.synchronize(device)

    torch.cuda.synchronize(device)
    return timed(finished)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        # An ensemble's graph and its round refer to each other, so the memory of one that is done waits for this.
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_mib(device: torch.device) -> float:
    """What torch reserved: a graph's own memory is not among what is allocated while it is replayed."""
    return torch.cuda.max_memory_reserved(device) / 2**20 if device.type == "cuda" else math.nan
