"""The same noise through two models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dmdpipe.diffusion.sampler import CHUNK, teacher_map
from dmdpipe.errors import UserError
from dmdpipe.pairing.bank import noise_between, noise_rows
from dmdpipe.specs.diffusion import NoiseBankSpec, NoiseRange

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dmdpipe.measuring.models import Model
    from dmdpipe.pairing.classes import Classes

BETWEEN_ROUNDING = 1e-6  # by which a --sigma-max that was printed may be above the schedule's own


@dataclass(frozen=True)
class Sampled:
    """Paired samples and what they are held against, float32; images lie in all of them as in the teacher's rows.

    Attributes:
        z: the bank's paired noise [N, d].
        teacher: T(z) [N, d].
        doubled: T(z) with twice the sampler's steps [N, d].
        student: S(z) [N, d].
        z_held_out: the bank's held-out noise [M, d].
        teacher_held_out: T of it [M, d].
        classes: that both were asked for [N], int64, if they had to be told.
        classes_held_out: likewise [M].
    """

    z: NDArray[np.float32]
    teacher: NDArray[np.float32]
    doubled: NDArray[np.float32]
    student: NDArray[np.float32]
    z_held_out: NDArray[np.float32]
    teacher_held_out: NDArray[np.float32]
    classes: NDArray[np.int64] | None = None
    classes_held_out: NDArray[np.int64] | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what there is, by name."""
        return {name: array for name, array in vars(self).items() if array is not None}


def common_range(teacher: Model, student: Model, sigma_max: float | None) -> NoiseRange:
    """Return the noise levels at which both are asked: the teacher's, down from the student's σ_max or a given one.

    A student of this project brings its own levels, which were its teacher's, too.

    Raises:
        UserError: if that is no range, or one of the two was not trained up to there.
    """
    levels = teacher.noise_range if student.denoiser else student.noise_range
    top = student.noise_range.sigma_max if sigma_max is None else sigma_max
    if student.student is not None and top != student.noise_range.sigma_max:
        raise UserError(
            f"--sigma-max: {top:g}, but {student.path} answers at {student.noise_range.sigma_max:g} alone; leave it out"
        )
    for model in (teacher, student):
        if model.ends_at is not None and top > model.ends_at * (1 + BETWEEN_ROUNDING):
            raise UserError(
                f"--sigma-max: {top:g}, but the schedule of {model.path} ends at {model.ends_at:g}; take no more"
            )
    if top <= levels.sigma_min:
        raise UserError(f"--sigma-max: {top:g} must be above sigma_min, {levels.sigma_min:g}")
    return levels.model_copy(update={"sigma_max": top})


@torch.no_grad()
def sample_both(
    teacher: Model,
    student: Model,
    levels: NoiseRange,
    *,
    n: int,
    n_held_out: int,
    steps: int,
    seed: int = 0,
    batch: int = 1_024,
    device: torch.device | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> Sampled:
    """Return what both make of the bank's noise; for a step's teacher and student it is what their study stores.

    Args:
        teacher: a denoiser, whose probability flow is followed by Heun's method.
        student: a student, or a denoiser that is asked once, at σ_max.
        levels: of both.
        n: noises that both get, N.
        n_held_out: further noises that the teacher gets, M; may be 0.
        steps: intervals of the teacher's sampler.
        seed: of the noise bank.
        batch: rows at a time.
        device: where to compute; none: the CPU.
        progress: called before each part with a few words.

    Raises:
        UserError: if the two are not of one dimension and shape or are asked for other classes, the teacher is a
            student, or a sample is not finite.
    """
    if teacher.denoiser is None:
        raise UserError(f"{teacher.path}: is a student; the teacher must be a denoiser, e.g. a folder in teachers/")
    images, students = teacher.images, student.images
    if images and students and images.shape != students.shape:
        raise UserError(
            f"{student.path}: is made for {students}, {teacher.path} for {images}; name two models of one shape"
        )
    if teacher.dim != student.dim:
        raise UserError(f"{student.path}: has {student.dim} coordinates, but {teacher.path} has {teacher.dim}")
    told = _common_classes(teacher, student)
    place = device or torch.device("cpu")
    asked_teacher, asked = teacher.on(place), student.on(place)
    later = student.student.levels[1:] if student.student else ()
    # n_held_out only for the spec's own check: each kind of noise is a stream of its own.
    bank = NoiseBankSpec(dim=teacher.dim, n_paired=n, n_held_out=2 * teacher.dim, seed=seed)
    between = [torch.from_numpy(rows) for rows in noise_between(bank, len(later) + 1)]
    z, held_out = (
        torch.from_numpy(noise_rows(teacher.dim, count, seed, purpose))
        for count, purpose in ((n, "paired"), (n_held_out, "held_out"))
    )
    classes, classes_held_out = (
        torch.from_numpy(told.of_noises(count, seed, purpose)) if told else torch.zeros(count, dtype=torch.int64)
        for count, purpose in ((n, "paired"), (n_held_out, "held_out"))
    )

    def parts(*all_rows: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        # No more than the sampler's own chunks, which knows nothing of classes.
        for some in zip(*(rows.split(min(batch, CHUNK)) for rows in all_rows), strict=True):
            yield [rows.to(place) for rows in some]

    def teachers(z: torch.Tensor, of: torch.Tensor, intervals: int, what: str) -> NDArray[np.float32]:
        if not len(z):
            return z.numpy()
        progress(what)
        made = [
            teacher_map(asked_teacher.asked_for(labels), rows, levels, intervals).cpu() for rows, labels in parts(z, of)
        ]
        return _checked(torch.cat(made), teacher)

    of_teacher = teachers(z, classes, steps, f"the teacher, {n} samples of {steps} steps")
    if (of_teacher == of_teacher[0]).all():
        raise UserError(f"{teacher.path}: its samples do not vary: the teacher has collapsed, or the adapter is wrong")
    doubled = teachers(z, classes, 2 * steps, f"the teacher, {n} samples of {2 * steps} steps")
    of_held_out = teachers(held_out, classes_held_out, steps, f"the teacher, {n_held_out} further samples")
    progress(f"the student, {n} samples")
    # Both see the same picture of noise, wherever a network wants its channels.
    z_of_student = images.lying(z, students.channels_first) if images and students else z
    answers = torch.cat(
        [
            asked.one_step(rows, noises, levels.sigma_max, labels).cpu()
            for rows, labels, *noises in parts(z_of_student, classes, *between)
        ]
    )
    if images and students:
        answers = students.lying(answers, images.channels_first)
    return Sampled(
        z.numpy(),
        of_teacher,
        doubled,
        _checked(answers, student),
        held_out.numpy(),
        of_held_out,
        classes.numpy() if told else None,
        classes_held_out.numpy() if told else None,
    )


def _common_classes(teacher: Model, student: Model) -> Classes | None:
    if teacher.classes == student.classes:
        return teacher.classes
    one = teacher.classes or student.classes
    if one and one.label is not None and None in (teacher.classes, student.classes):
        # The distribution of one class is one like any other: the other network may know nothing else.
        return one
    said = [str(model.classes) if model.classes else "no class" for model in (teacher, student)]
    raise UserError(
        f"{student.path}: its adapter asks for {said[1]}, that of {teacher.path} for {said[0]}; let label,"
        " label_dim and drawn_from be the same in both"
    )


def _checked(samples: torch.Tensor, model: Model) -> NDArray[np.float32]:
    if not samples.isfinite().all():
        raise UserError(f"{model.path}: its samples are not finite; do the adapter and --sigma-max fit the weights?")
    found: NDArray[np.float32] = samples.numpy()
    return found
