"""Many students at once: distillations that differ in seeds and weights alone, as one batch of matrix products.

A GPU is idle while it trains one small student. Here every operation is that of the loop (``dmdpipe.distill.loop``),
mapped over members by ``torch.func.vmap``; on a GPU one generator step with its fake-score steps, noise included, is
captured as a graph and replayed. Each member draws the noise that it would draw alone: what it becomes depends on
neither its neighbours nor the device, to rounding. A member that diverges leaves its neighbours as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from dmdpipe.diffusion.determinism import root_mean_square, square_root, start_device
from dmdpipe.diffusion.optimiser import bias_corrected
from dmdpipe.diffusion.schedule import karras_grid
from dmdpipe.diffusion.state import TrainingState
from dmdpipe.distill.cuda_graph import Replayed
from dmdpipe.distill.dmd import dm_gradient, fake_score_loss
from dmdpipe.distill.initialisation import initialise
from dmdpipe.distill.loop import learning_rate, snapshot_steps, unflatten
from dmdpipe.distill.member_noise import fake_steps, member_noise
from dmdpipe.distill.student import Student, build_student, student_to_train
from dmdpipe.kernels.conditions import Conditions
from dmdpipe.networks.denoiser import Denoiser
from dmdpipe.networks.precision import in_precision
from dmdpipe.specs.data import dimension
from dmdpipe.specs.student import obstacle_to_members

if TYPE_CHECKING:
    from dmdpipe.artifacts.step import Step
    from dmdpipe.distill.regression import PairPool
    from dmdpipe.specs.student import Optimiser, StudentSpec

    Tensors = dict[str, Tensor]
    Round = Callable[[Tensors, Tensors, Tensor], Tensors]

NETWORKS = ("student", "fake")
LOGGED = ("dm_gradient", "student_gradient", "fake_loss")
"""What the training logs, of ``dmdpipe.distill.loop.HISTORY``."""


class Ensemble:
    """Students of one architecture and recipe that train side by side.

    Args:
        specs: the members; they may differ in their seeds, and in those of their teachers, only.
        teachers: their teachers, one each, on the CPU.
        graph: whether a round is captured as a CUDA graph and replayed; on a GPU only.

    Attributes:
        history: what was logged [S, M, len(LOGGED)], a row for each generator step that is done.

    Raises:
        UserError: if the specs name a GPU and there is none.
        ValueError: if the members' specs differ in more than seeds, or ask for what members can't do together
            (``dmdpipe.specs.student.obstacle_to_members``).
    """

    def __init__(self, specs: Sequence[StudentSpec], teachers: Sequence[Denoiser], graph: bool = False):
        self.spec = spec = specs[0]
        check(specs)
        device = start_device(spec, "student.device")
        self.noise = member_noise(specs, dimension(spec.teacher.data), device)
        students = [started(member, teacher) for member, teacher in zip(specs, teachers, strict=True)]
        self.student = student_to_train(spec, device)
        self.denoiser = in_precision(copy.deepcopy(teachers[0]), spec.precision).to(device)
        # What is mapped over members must be PyTorch's own.
        for denoiser in (self.student.generator, self.denoiser):
            assert isinstance(denoiser, Denoiser)
            denoiser.plain = True
        dtype = getattr(torch, spec.dtype)
        self.grid = karras_grid(spec.noise_range, spec.recipe.grid_size).to(device, dtype)[:, None]
        self.conditions = self.denoiser.conditions(self.grid)
        self.members: Tensors = {"teacher": stacked(teachers), "student": stacked(students), "fake": stacked(teachers)}
        for name in NETWORKS:
            for moment in ("first", "second"):
                self.members[f"{name}.{moment}"] = torch.zeros_like(self.members[name])
        self.members["evaluated"] = self.members["student"].clone()
        self.members = {name: value.to(device) for name, value in self.members.items()}
        self.sizes = torch.stack([self._sizes(step) for step in range(spec.generator_steps)]).to(self.grid)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.history = torch.zeros(spec.generator_steps, len(specs), len(LOGGED), dtype=dtype, device=device)
        self.round: Round = vmap(self._round, in_dims=(0, 0, None))
        self.advance = Replayed(self._advance) if graph else self._advance

    def train(self, step: Step | None = None) -> Tensor:
        """Train to the end; return the snapshots' flat parameters [M, K, P], on the CPU.

        Args:
            step: where checkpoints and progress go; without one, the training just runs.
        """
        spec, evaluated = self.spec, self.members["evaluated"]
        steps = snapshot_steps(spec.generator_steps, spec.snapshots)
        snapshots = evaluated.new_zeros(len(steps), *evaluated.shape)
        state = None
        done = 0
        if step:
            streams = {f"streams/{name}": position for name, position in self.noise.positions.items()}
            own = {"step": self.step, "snapshots": snapshots, "history": self.history}
            state = TrainingState(step.resume, self.members | own | streams)
            done = state.resume(spec.generator_steps)
        if done == 0:
            self.step.zero_()
            snapshots[0] = evaluated
        with torch.no_grad():
            while done < spec.generator_steps:
                self.advance()
                done += 1
                if done in steps:
                    snapshots[steps.index(done)] = evaluated
                if step and state:
                    step.progress(done, spec.generator_steps)
                    state.save_now_and_then(done)
        return snapshots.cpu().transpose(0, 1)

    def _advance(self) -> None:
        """Take one generator step, and the fake-score steps after it, with all members, in place."""
        sizes = self.sizes.index_select(0, self.step)[0]
        changed = self.round(self.members, self.noise.draw(), sizes)
        self.history.index_copy_(0, self.step, changed.pop("log")[None])
        for name, value in changed.items():
            self.members[name].copy_(value)
        self.step.add_(1)

    def _sizes(self, step: int) -> Tensor:
        """Return ``step_sizes`` of the generator's step and of the fake-score steps after it."""
        recipe = self.spec.recipe
        first, last = step * recipe.generator_every, (self.spec.generator_steps - 1) * recipe.generator_every + 1
        fakes = fake_steps(recipe)
        sizes = [step_sizes(recipe.generator, first, last, step + 1)]
        for k in range(fakes):
            iteration = first + recipe.generator_every - fakes + k
            sizes.append(step_sizes(recipe.fake_score, iteration, last, step * fakes + k + 1))
        return torch.stack(sizes)

    def _round(self, member: Tensors, draws: Tensors, sizes: Tensor) -> Tensors:
        """Return what one generator step and the fake-score steps after it change in one member, and their log."""
        recipe = self.spec.recipe
        frozen = member["teacher"]
        member = {name: value for name, value in member.items() if name != "teacher"}
        z = draws["latent"]
        x, pullback = call_with_pullback(self.student, member["student"], z[0])
        noisy, given = self._noised(x, draws["dm.rows"], draws["dm.noise"])
        real, fake = (call(self.denoiser, weights, noisy, given) for weights in (frozen, member["fake"]))
        gradient = dm_gradient(
            x,
            real,
            fake,
            normalise=recipe.normalise,
            normaliser_offset=recipe.normaliser_offset,
            normaliser_min=recipe.normaliser_min,
        )
        to_student = pullback(gradient * (recipe.dm_weight / gradient.numel()))
        log = [root_mean_square(gradient), step(member, "student", to_student, recipe.generator, sizes[0])]
        member["evaluated"] = member["evaluated"].lerp(member["student"], 1 - (recipe.ema or 0.0))
        samples = call(self.student, member["student"], z[1:].flatten(0, 1))
        # Where the fake score takes one step for each of the generator's, there are no more samples than x.
        later = samples.view(len(z) - 1, *x.shape)
        batches = [*([x] if recipe.fake_trains_with_generator else []), *later]
        for k, batch in enumerate(batches):
            noisy, given = self._noised(batch, draws["fake.rows"][k], draws["fake.noise"][k])
            denoised, pullback = call_with_pullback(self.denoiser, member["fake"], noisy, given)
            sigma = self.grid.index_select(0, draws["fake.rows"][k])
            loss, gradient = fake_score_loss(denoised, batch, sigma, weighting=recipe.fake_weighting)
            step(member, "fake", pullback(gradient), recipe.fake_score, sizes[1 + k])
        return member | {"log": torch.stack([*log, loss])}

    def _noised(self, x: Tensor, rows: Tensor, noise: Tensor) -> tuple[Tensor, Conditions]:
        return torch.addcmul(x, self.grid.index_select(0, rows), noise), self.conditions.at(rows)


def check(specs: Sequence[StudentSpec]) -> None:
    """Raise ValueError unless these students can train together."""
    if any(without_seeds(member.model_dump()) != without_seeds(specs[0].model_dump()) for member in specs):
        raise ValueError("the members of an ensemble may differ in their seeds only")
    if obstacle := obstacle_to_members(specs[0]):
        raise ValueError(obstacle)


def without_seeds(dump: object) -> object:
    """Return a spec's fields without those named ``seed``, at any depth."""
    if isinstance(dump, dict):
        return {key: without_seeds(value) for key, value in dump.items() if key != "seed"}
    return dump


def started(spec: StudentSpec, teacher: Denoiser) -> Student:
    """Return a student at its start."""

    def no_pool(**_: object) -> PairPool:
        raise ValueError("the members of an ensemble can't regress onto the teacher's map")

    student = build_student(spec)
    initialise(student, spec, teacher, no_pool)
    return student


def stacked(modules: Sequence[nn.Module]) -> Tensor:
    """Return the modules' flat parameters [M, P]."""
    return torch.stack([torch.cat([p.detach().flatten() for p in module.parameters()]) for module in modules])


def call(module: nn.Module, flat: Tensor, *inputs: object) -> Tensor:
    """Return what the module answers with flat parameters [P] in place of its own."""
    answer: Tensor = functional_call(module, named(module, flat), inputs)
    return answer


def call_with_pullback(module: nn.Module, flat: Tensor, *inputs: object) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return ``call``'s answer, and what takes a loss's gradient there to the gradient at the flat parameters [P]."""
    answer, pullback, *_ = vjp(lambda given: functional_call(module, given, inputs), named(module, flat))

    def to_flat(to_answer: Tensor) -> Tensor:
        (gradients,) = pullback(to_answer)
        return torch.cat([gradient.flatten() for gradient in gradients.values()])

    return answer, to_flat


def named(module: nn.Module, flat: Tensor) -> Tensors:
    """Return flat parameters [P] by their names in the module."""
    return {name: value[0] for name, value in unflatten(flat[None], module).items()}


def step_sizes(optimiser: Optimiser, iteration: int, iterations: int, count: int) -> Tensor:
    """Return what changes from step to step of AdamW: learning rate, and both ``bias_corrected`` numbers."""
    rate = learning_rate(optimiser, iteration, iterations)
    corrected = bias_corrected(rate, optimiser.beta1, optimiser.beta2, count)
    return torch.tensor((rate, *corrected), dtype=torch.float64)


def step(member: Tensors, name: str, gradient: Tensor, optimiser: Optimiser, sizes: Tensor) -> Tensor:
    """Take one step of AdamW, as ``dmdpipe.diffusion.optimiser`` does, with one network of a member.

    Returns:
        The gradient's norm before clipping, a scalar.
    """
    norm = torch.linalg.vector_norm(gradient)
    if optimiser.clip is not None:
        gradient = gradient * (optimiser.clip / (norm + 1e-6)).clamp(max=1.0)
    rate, size, epsilon = sizes
    first = member[f"{name}.first"].lerp(gradient, 1 - optimiser.beta1)
    second = optimiser.beta2 * member[f"{name}.second"] + (1 - optimiser.beta2) * gradient.square()
    values = member[name] * (1 - rate * optimiser.weight_decay)
    member[name] = values - size * first / (square_root(second) + epsilon)
    member[f"{name}.first"], member[f"{name}.second"] = first, second
    return norm
