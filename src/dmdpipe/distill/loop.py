"""The distillation loop: generator steps, fake-score steps, snapshots.

One iteration of ``dmd2``: draw z and make x = S(z). Every fifth iteration the generator first takes a step against the
distribution-matching gradient at x; then the fake score takes a denoising step on that same x. ``fastgen`` lets the
generator step *instead of* the fake score. With an adversarial term a discriminator adds its gradient at x, and learns
with the fake score. A recipe without either regresses onto T(z) alone.

The loop goes from one generator step to the next: until then the student stays as it is, and makes the samples of all
iterations between in one pass.

A batch may be cut into shards, each of which goes through the networks alone; their gradients are added in order, and
make one step (``dmdpipe.diffusion.shards``).

A student of several steps makes x by a random number of them: the last one is trained, those before it, and the noise
between, are what they will be when it samples (backward simulation, DMD2, section 4.5).
"""

from __future__ import annotations

import copy
import math
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dmdpipe.diffusion.determinism import root_mean_square, start_device
from dmdpipe.diffusion.losses import denoising_loss
from dmdpipe.diffusion.optimiser import FlatOptimiser, FlatParameters
from dmdpipe.diffusion.shards import ALONE, WHOLE, Ranks, Shards
from dmdpipe.diffusion.sharing import ranks_of
from dmdpipe.diffusion.state import TrainingState
from dmdpipe.diffusion.teacher import load_teacher, placed
from dmdpipe.distill.batches import make_batches
from dmdpipe.distill.compiled import compiled_rounds, rounds_together
from dmdpipe.distill.initialisation import initialise
from dmdpipe.distill.student import Student, student_to_train
from dmdpipe.kernels.dmd import Round
from dmdpipe.kernels.large_pages import zeros_like
from dmdpipe.networks.denoiser import Denoiser
from dmdpipe.networks.pullback import with_pullback
from dmdpipe.seeds import derive_seed
from dmdpipe.specs.data import dimension

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dmdpipe.artifacts.step import Step
    from dmdpipe.diffusion.sampler import DenoiserFunction
    from dmdpipe.diffusion.teacher import Teacher
    from dmdpipe.distill.adversarial import Adversary
    from dmdpipe.distill.batches import RandomBatches
    from dmdpipe.distill.oracle import LinearOracle
    from dmdpipe.distill.regression import PairPool
    from dmdpipe.kernels.dmd import CompiledRounds
    from dmdpipe.specs.student import Optimiser, Recipe, StudentSpec

    Log = dict[str, float | Tensor]
    # A batch of the student's samples [B, d] and, if it is asked for classes, the class of each [B].
    Samples = tuple[Tensor, ...]

HISTORY = (
    *("dm_gradient", "student_gradient", "fake_loss", "regression_loss"),
    *("adversarial_gradient", "adversarial_loss", "discriminator_loss"),
)
ROOTS = ("dm_gradient", "adversarial_gradient")
"""What of it is a root mean square over a batch."""


def snapshot_steps(generator_steps: int, count: int) -> list[int]:
    """Return at most ``count`` generator steps, log-spaced from 1 to the last one, and 0 before them."""
    spaced = torch.logspace(0, math.log10(generator_steps), count - 1, dtype=torch.float64)
    return sorted({0, generator_steps, *(round(step) for step in spaced.tolist())})


def learning_rate(spec: Optimiser, iteration: int, iterations: int) -> float:
    """Return the rate at an iteration: a linear warm-up from 0, then constant or a cosine to 0 at the end."""
    warm = min(1.0, iteration / spec.warmup) if spec.warmup else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * iteration / iterations)) if spec.decay == "cosine" else 1.0
    return spec.learning_rate * warm * cosine


def make_optimiser(spec: Optimiser, module: nn.Module) -> FlatOptimiser:
    """Return the optimiser that ``spec`` describes, over all parameters of ``module``."""
    return FlatOptimiser(FlatParameters(module), spec.kind, spec.beta1, spec.beta2, spec.weight_decay, spec.clip)


def levels_of(denoiser: object, grid: Tensor) -> Callable[..., Any]:
    """Return what a denoiser is told of the noise levels at rows [B] of a grid [K, 1]: its conditions, or σ [B, 1].

    If it is asked for classes [B], they are told with the rows.
    """
    if isinstance(denoiser, Denoiser):
        return denoiser.levels(grid)
    return lambda rows: grid.index_select(0, rows)


def fakes() -> Any:
    """Return ``dmdpipe.distill.fake_score``, by name, so that an edit of it touches only the students that use it."""
    return import_module("dmdpipe.distill.fake_score")


def make_fake(spec: StudentSpec, teacher: Teacher, student: Any, batches: RandomBatches, device: torch.device) -> Any:
    """Return D_fake(x, σ) as the recipe says: exact, of samples, a fresh network, or one that starts as the teacher.

    None if it should start as a teacher that is no network.
    """
    if spec.recipe.fake == "oracle":
        return import_module("dmdpipe.distill.oracle").LinearOracle(student.get_parameter("generator.matrix"))
    if spec.recipe.fake == "samples":
        return fakes().SampledScore(spec, student, batches)
    if spec.recipe.fake_start == "fresh":
        return fakes().fresh_fake(spec, device)
    return copy.deepcopy(teacher).requires_grad_(True) if isinstance(teacher, nn.Module) else None


class Distillation:
    """A student, its fake score and their optimisers; ``advance`` goes from generator steps to the ones after them.

    Args:
        recipe: the losses and their schedule.
        student: S, changed in place.
        teacher: D_teacher(x, σ), frozen.
        fake: D_fake(x, σ): a module to train, an oracle of the student's own distribution, or None if the recipe
            has no distribution-matching term.
        batches: where noise and noise levels come from.
        pool: pairs (z, T(z)) for the regression term, or None if its weight is 0.
        iterations: the length of the training, for the decay of learning rates.
        adversary: the discriminator, or None if the weight of its term is 0.
        shards: of the batches, those that this process computes.

    Attributes:
        evaluated: the student's parameters [P], as they are or, if the recipe says so, averaged.
        together: how many generator steps ``advance`` does best to take at once.
    """

    def __init__(
        self,
        recipe: Recipe,
        student: Student,
        teacher: DenoiserFunction,
        fake: nn.Module | LinearOracle | None,
        batches: RandomBatches,
        pool: PairPool | None,
        iterations: int,
        adversary: Adversary | None = None,
        shards: Shards = WHOLE,
    ):
        self.recipe = recipe
        self.student = student
        self.teacher = teacher
        self.fake: Any = fake
        # Loss terms and oracle are imported by name, so that an edit of one touches only the students that use it.
        self.dmd: Any = import_module("dmdpipe.distill.dmd") if fake else None
        self.lagged: Any = fakes().LaggedScore(fake, recipe.fake_lag) if fake and recipe.fake_lag else None
        self.fake_weight = self.dmd.fake_score_weight(batches.grid, recipe.fake_weighting) if self.dmd else None
        if self.fake_weight is not None and batches.classes:
            self.fake_weight = self.fake_weight.repeat_interleave(batches.classes, dim=0)
        self.batches = batches
        self.teacher_levels, self.fake_levels = (levels_of(denoiser, batches.grid) for denoiser in (teacher, fake))
        self.pool = pool
        self.iterations = iterations
        self.adversary = adversary
        self.shards = shards
        self.student_optimiser = make_optimiser(recipe.generator, student)
        learning = nn.ModuleList([fake] if isinstance(fake, nn.Module) else [])
        if adversary:
            learning.append(adversary.trained)
        self.fake_optimiser = make_optimiser(recipe.fake_score, learning) if learning else None
        current = self.student_optimiser.parameters.values
        average = zeros_like(current).copy_(current) if recipe.ema else None
        self.evaluated = current if average is None else average
        self.compiled = None
        if shards.count == 1:
            optimisers = self.student_optimiser, self.fake_optimiser
            given = recipe, student, teacher, fake, batches, self.fake_weight, optimisers, average
            self.compiled = compiled_rounds(*given)
        self.together = rounds_together(self.compiled) if self.compiled else 1

    @torch.no_grad()
    def advance(self, generator_steps: range) -> list[Log]:
        """Take generator steps, counted from 0, each with the fake score's steps up to the next one.

        Where C knows the recipe (``dmdpipe.distill.compiled``), it takes them, to the same bytes.

        Returns:
            What each logs, by the names in ``HISTORY``: gradient norms at the generator's step, and the last losses.
        """
        rates = [self._learning_rates(each * self.recipe.generator_every) for each in generator_steps]
        if self.compiled:
            return self._advance_in_c(self.compiled, rates)
        return [self._advance(step, *both) for step, both in zip(generator_steps, rates, strict=True)]

    def state(self) -> dict[str, Tensor]:
        """Return all that ``advance`` changes in place, by name: a training with the same state goes on alike.

        An oracle is made from the student, and has to be refreshed after it.
        """
        of_student = self.student_optimiser
        state = {"student": of_student.parameters.values, "evaluated": self.evaluated}
        state |= {f"student/{name}": tensor for name, tensor in of_student.state.items()}
        if self.fake_optimiser:
            state |= {f"fake/{name}": tensor for name, tensor in self.fake_optimiser.state.items()}
            state["fake"] = self.fake_optimiser.parameters.values
        if self.lagged:
            state["fake/past"] = self.lagged.past
        return state | {f"streams/{purpose}": stream.position for purpose, stream in self.batches.streams.items()}

    def _learning_rates(self, iteration: int) -> tuple[float, list[float]]:
        """Return the rate of the generator's step at an iteration, and of the fake score's steps up to the next one."""
        end = min(iteration + self.recipe.generator_every, self.iterations)
        learning = range(iteration + (not self.recipe.fake_trains_with_generator), end)
        rates = [learning_rate(self.recipe.fake_score, each, self.iterations) for each in learning]
        return learning_rate(self.recipe.generator, iteration, self.iterations), rates

    def _advance_in_c(self, compiled: CompiledRounds, rates: list[tuple[float, list[float]]]) -> list[Log]:
        """Take as many generator steps as there are rates, with the fake score's steps, in one call."""
        assert self.fake_optimiser
        generators = self.student_optimiser.begin_steps([rate for rate, _ in rates])
        of_fake = iter(self.fake_optimiser.begin_steps([rate for _, of_round in rates for rate in of_round]))
        of_rounds = [list(islice(of_fake, len(of_round))) for _, of_round in rates]
        rounds = [Round(*both) for both in zip(generators, of_rounds, strict=True)]
        return [log._asdict() for log in compiled(rounds, self.recipe.fake_trains_with_generator)]

    def _advance(self, generator_step: int, rate: float, fake_rates: list[float]) -> Log:
        """Take one generator step, and the fake score's steps up to the next one."""
        log: Log = {}
        made = self._generator_step(generator_step, rate, log)
        if self.recipe.ema:
            self.evaluated.lerp_(self.student_optimiser.parameters.values, 1 - self.recipe.ema)
        if self.fake_optimiser:
            shared = self.recipe.fake_trains_with_generator
            batches = [*([made] if shared else []), *self._make_batches(len(fake_rates) - shared)]
            for batch, fake_rate in zip(batches, fake_rates, strict=True):
                self._fake_step(batch, self.fake_optimiser, fake_rate, log)
        return log

    def _parts(self) -> Iterator[slice]:
        """Yield the rows of each of this process's shards, while the batches draw for these alone."""
        return self.batches.cut(self.shards.own)

    def _make(self, count: int = 1) -> Samples:
        """Return what the student makes of the noise of the next ``count`` batches."""
        asked = self.batches.asked(count)
        return (self.student(self.batches.latent(count), self.batches.between(), *asked), *asked)

    def _make_batches(self, count: int) -> list[list[Samples]]:
        """Return the samples of the next ``count`` batches, each by shard."""
        if self.batches.sampling_steps > 1 or count == 0:
            return [[self._make() for _ in self._parts()] for _ in range(count)]
        # One large forward pass instead of small ones.
        of_shards = [zip(*(each.chunk(count) for each in self._make(count)), strict=True) for _ in self._parts()]
        return [list(batch) for batch in zip(*of_shards, strict=True)]

    def _generator_step(self, generator_step: int, rate: float, log: Log) -> list[Samples]:
        """Take the generator's step; return the samples at which its gradient was taken, by shard."""
        fake = self._fake_to_follow(generator_step)
        made: list[Samples] = []
        of_shards = (self._generator_gradient(fake, made) for _ in self._parts())
        log |= self.shards.mean(self.student_optimiser.parameters.gradient, of_shards, ROOTS)
        log["student_gradient"] = self.student_optimiser.step(rate)
        if self.fake and self.recipe.fake == "oracle":
            self.fake.refresh()
        return made

    def _generator_gradient(self, fake: DenoiserFunction | None, made: list[Samples]) -> Log:
        """Set the gradient at the student's parameters for one shard; add to ``made`` where, and return its log."""
        log: Log = {}
        if fake or self.adversary:
            asked = self.batches.asked()
            x, pullback = with_pullback(self.student, self.batches.latent(), self.batches.between(), *asked)
            made.append((x, *asked))
            pullback(self._gradient_at_samples(made[-1], fake, log))
        if self.pool:
            drawn = self.pool.draw(self.batches.shape[0], self.batches.streams["regression"])
            z, target, *asked_of_pool = (of_whole[self.batches.part] for of_whole in drawn)
            answer, pullback = with_pullback(self.student, z, (), *asked_of_pool)
            log["regression_loss"], gradient = self.pool.loss(answer, target)
            pullback(gradient * self.recipe.regression_weight, add=bool(fake or self.adversary))
        return log

    def _fake_to_follow(self, generator_step: int) -> Any:
        if self.lagged and self.fake_optimiser:
            return self.lagged.at(generator_step, self.fake_optimiser.parameters.values)
        return self.fake

    def _gradient_at_samples(self, made: Samples, fake: DenoiserFunction | None, log: Log) -> Tensor:
        """Return the gradient of the weighted terms at the student's samples x [B, d]."""
        x, *asked = made
        gradients = []
        if fake:
            gradient = self._dm_gradient(made, fake)
            gradients.append(gradient * (self.recipe.dm_weight / gradient.numel()))
            log["dm_gradient"] = root_mean_square(gradient)
        if self.adversary:
            log["adversarial_loss"], gradient = self.adversary.gradient(x, *asked)
            gradients.append(gradient)
            # In the units of dm_gradient, whose loss is a mean over all entries.
            log["adversarial_gradient"] = x.numel() * root_mean_square(gradient)
        return gradients[0] if len(gradients) == 1 else gradients[0] + gradients[1]

    def _dm_gradient(self, made: Samples, fake: DenoiserFunction) -> Tensor:
        x, *asked = made
        rows, sigma, noise = self.batches.diffusion("dm")
        noisy = torch.addcmul(x, sigma, noise)
        real = self.teacher(noisy, self.teacher_levels(rows, *asked))
        if self.recipe.score_noise:
            real = self.dmd.noisy_score(real, sigma, self.batches.normal("score"), self.recipe.score_noise)
        return self.dmd.dm_gradient(
            x,
            real,
            fake(noisy, self.fake_levels(rows, *asked)),
            normalise=self.recipe.normalise,
            normaliser_offset=self.recipe.normaliser_offset,
            normaliser_min=self.recipe.normaliser_min,
        )

    def _fake_step(self, made: list[Samples], optimiser: FlatOptimiser, rate: float, log: Log) -> None:
        of_shards = (self._fake_gradient(*own) for own, _ in zip(made, self._parts(), strict=True))
        log |= self.shards.mean(optimiser.parameters.gradient, of_shards)
        optimiser.step(rate)

    def _fake_gradient(self, x: Tensor, *asked: Tensor) -> Log:
        """Set the gradient at all that trains beside the student, at one shard's samples; return its log."""
        log: Log = {}
        if self.fake:
            rows, sigma, noise = self.batches.diffusion("fake")
            noisy = torch.addcmul(x, sigma, noise)
            levels = self.fake_levels(rows, *asked)
            log["fake_loss"] = denoising_loss(self.fake, noisy, levels, x, self.fake_weight)
        if self.adversary:
            log["discriminator_loss"] = self.adversary.learn(x, *asked)
        return log


def distil(
    spec: StudentSpec,
    teacher: Teacher,
    step: Step | None = None,
    *,
    start: Teacher | None = None,
    data: Tensor | None = None,
    labels: Tensor | None = None,
    paired: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> tuple[dict[str, Tensor], Tensor]:
    """Distil one student; return its snapshots and the history of its training.

    Args:
        spec: the student, and the device and precision of its training.
        teacher: D_teacher(x, σ), with frozen parameters of the student's dtype, on the CPU.
        step: where checkpoints and progress go; without one, the training just runs.
        start: the denoiser of ``spec.start``, if it names one.
        data: what the teacher trained on [n, d], which a recipe with an adversarial term needs.
        labels: the data's classes [n], which such a recipe needs if the teacher is asked for classes.
        paired: the bank's paired noises [N, d], which particles need.
        ranks: the processes that share the training. Each calls this; every one draws whole batches, and computes the
            gradients of its own shards.

    Returns:
        snapshots: ``generator_step`` [K] and every parameter at these steps, stacked [K, …], on the CPU.
        history: [generator steps, len(HISTORY)], float64, NaN where a recipe has no such term.

    Raises:
        UserError: if the spec names a GPU and there is none.
        ValueError: if the recipe has an adversarial term and there are no data, or if particles lack their noises.
    """
    device = start_device(spec, "student.device", ranks.number)
    teacher = placed(teacher, device, spec.precision)
    dim = dimension(spec.teacher.data)
    recipe = spec.recipe
    dtype = getattr(torch, spec.dtype)

    def make_pool(**onto: Any) -> PairPool:
        make_pair_pool = import_module("dmdpipe.distill.regression").make_pair_pool
        seed, shape = derive_seed(spec.seed, "student", "regression-pool"), (recipe.regression_pairs, dim)
        return make_pair_pool(teacher, spec.noise_range, shape, seed, dtype, device=device, **onto)

    student: Any
    if spec.network.kind == "particles":
        # By name, so that an edit of it touches particles only.
        student, batches = import_module("dmdpipe.distill.particles").particles_to_train(spec, teacher, paired, device)
    else:
        student = student_to_train(spec, device)
        initialise(student, spec, placed(start, device, spec.precision) if start else teacher, make_pool)
        batches = make_batches(spec, dim, device)
    fake = make_fake(spec, teacher, student, batches, device) if recipe.dm_weight else None
    iterations = (spec.generator_steps - 1) * recipe.generator_every + 1
    pool = make_pool() if recipe.regression_weight else None
    adversary: Any = None
    if recipe.adversarial_weight:
        if data is None:
            raise ValueError("an adversarial term needs the data that the teacher trained on")
        make_adversary = import_module("dmdpipe.distill.adversarial").Adversary
        adversary = make_adversary(spec, teacher, fake, data.to(device), batches, labels)
    shards = Shards(spec.shards, spec.batch, ranks)
    loop = Distillation(recipe, student, teacher, fake, batches, pool, iterations, adversary, shards)

    current, evaluated = loop.student_optimiser.parameters.values, loop.evaluated
    steps = snapshot_steps(spec.generator_steps, spec.snapshots)
    snapshots = current.new_zeros(len(steps), len(current))
    history = torch.full((spec.generator_steps, len(HISTORY)), math.nan, dtype=torch.float64)
    written = history.numpy()

    state = None
    first = 0
    if step:
        tensors = loop.state() | {"snapshots": snapshots, "history": history}
        state = TrainingState(step.resume, tensors, ranks)
        first = state.resume(spec.generator_steps)
        if fake and recipe.fake == "oracle":
            fake.refresh()
    if first == 0:
        snapshots[0] = evaluated
    done = first
    while done < spec.generator_steps:
        to_the_next = min(each for each in steps if each > done)
        stretch = range(done, min(done + loop.together, to_the_next))
        for generator_step, log in zip(stretch, loop.advance(stretch), strict=True):
            for name, value in log.items():
                written[generator_step, HISTORY.index(name)] = float(value)
        done = stretch.stop
        if done in steps:
            snapshots[steps.index(done)] = evaluated
        if step and state:
            step.progress(done, spec.generator_steps)
            state.save_now_and_then(done)
    return {"generator_step": torch.tensor(steps), **unflatten(snapshots.cpu(), student)}, history


def unflatten(flat: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """Return stacked flat parameter vectors [K, P] as the module's named parameters, each [K, …]."""
    named = dict(module.named_parameters())
    pieces = flat.split([parameter.numel() for parameter in named.values()], dim=1)
    return {
        name: piece.reshape(len(flat), *parameter.shape)
        for (name, parameter), piece in zip(named.items(), pieces, strict=True)
    }


def distil_student(step: Step) -> None:
    """The ``student`` step: distil, then store the snapshots and the training history."""
    import pandas as pd

    spec: StudentSpec = step.spec
    dtype = getattr(torch, spec.dtype)
    teacher = load_teacher(spec.teacher, step.read_tensors("teacher", "model.safetensors"), dtype)
    start = load_teacher(spec.start, step.read_tensors("start", "model.safetensors"), dtype) if spec.start else None
    data = labels = None
    if spec.recipe.adversarial_weight:
        arrays = step.read_tensors("data", "data.safetensors")
        data = torch.from_numpy(arrays["train"])
        labels = torch.from_numpy(arrays["labels"]) if spec.teacher.classes else None
    paired = torch.from_numpy(step.read_tensors("noise", "noise.safetensors")["paired"]) if spec.bank else None
    with ranks_of(step, spec) as ranks:
        snapshots, history = distil(
            spec, teacher, step, start=start, data=data, labels=labels, paired=paired, ranks=ranks
        )
    step.write_tensors("snapshots.safetensors", {name: value.numpy() for name, value in snapshots.items()})
    table = pd.DataFrame(history.numpy(), columns=list(HISTORY))
    table.insert(0, "generator_step", range(1, spec.generator_steps + 1))
    step.write_table("history.parquet", table)
