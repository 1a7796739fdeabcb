"""Teacher and student over the paired-noise bank: T(z) and S(z) for the same z."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dmdpipe.diffusion.determinism import start_device
from dmdpipe.diffusion.sampler import CHUNK, teacher_map
from dmdpipe.diffusion.schedule import student_levels
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill.student import build_student
from dmdpipe.pairing.bank import noise_between
from dmdpipe.pairing.classes import Classes
from dmdpipe.specs.hardware import Hardware

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from dmdpipe.artifacts.step import Step
    from dmdpipe.diffusion.teacher import Teacher
    from dmdpipe.specs.diffusion import NoiseBankSpec, TeacherSamplesSpec
    from dmdpipe.specs.pairs import PairsSpec


def sample_teacher(step: Step) -> None:
    """The ``teacher_samples`` step: the teacher's map over every noise of the bank.

    Writes ``teacher`` = T(z) [N, d], ``teacher_doubled`` (twice the sampler's steps: its distance from T(z) is the
    floor of every pair error), ``teacher_rotated`` = T(Qz), ``held_out`` [M, d] and ``reference`` [R, N, d]. Of a
    teacher that is asked for classes also which: ``classes`` [N] of the paired noises, ``classes_held_out`` [M] and
    ``classes_reference`` [R, N], int64.
    """
    spec: TeacherSamplesSpec = step.spec
    device = start_device(Hardware(device=spec.sampler.device), "sampler.device")
    denoiser = load_teacher(spec.teacher, step.read_tensors("teacher", "model.safetensors")).to(device)
    bank = {name: torch.from_numpy(array) for name, array in step.read_tensors("noise", "noise.safetensors").items()}
    steps = spec.sampler.steps
    classes = classes_of_bank(spec.bank, spec.teacher.classes)
    wanted = {
        "teacher": (bank["paired"], steps, "classes"),
        "teacher_doubled": (bank["paired"], 2 * steps, "classes"),
        "teacher_rotated": (bank["paired"] @ bank["rotation"].T, steps, "classes"),
        "held_out": (bank["held_out"], steps, "classes_held_out"),
        "reference": (bank["reference"].flatten(0, 1), steps, "classes_reference"),
    }
    samples = {}
    for done, (name, (z, intervals, told)) in enumerate(wanted.items()):
        step.progress(done, len(wanted))
        asked = (torch.from_numpy(classes[told].ravel()).to(device),) if classes else ()
        samples[name] = teacher_map(denoiser, z.to(device), spec.noise_range, intervals, *asked).cpu().numpy()
    samples["reference"] = samples["reference"].reshape(bank["reference"].shape)
    samples |= classes
    step.write_tensors("samples.safetensors", samples)


def classes_of_bank(bank: NoiseBankSpec, count: int) -> dict[str, NDArray[np.int64]]:
    """Return the class of each noise of a bank, drawn from ``count`` of them; nothing if that is 0.

    ``classes`` [N] of the paired noises, ``classes_held_out`` [M], ``classes_reference`` [R, N].
    """
    if not count:
        return {}
    drawn = Classes(count)
    reference = [drawn.of_noises(bank.n_paired, bank.seed, f"reference/{r}") for r in range(bank.n_reference_sets)]
    return {
        "classes": drawn.of_noises(bank.n_paired, bank.seed, "paired"),
        "classes_held_out": drawn.of_noises(bank.n_held_out, bank.seed, "held_out"),
        "classes_reference": np.stack(reference),
    }


@torch.no_grad()
def pair_samples(step: Step) -> None:
    """The ``pairs`` step: ``z`` [N, d], ``teacher`` = T(z) [N, d], ``student`` = S(z) [K, N, d] at K snapshots.

    ``generator_step`` [K] says when each snapshot was taken; the last one is the read-out step. If the student makes
    several steps, ``resampled`` [N, d] is the teacher with the same noise between the same levels. A student that is
    asked for classes is asked for those that the teacher was.
    """
    spec: PairsSpec = step.spec
    device = start_device(Hardware(device=spec.teacher_samples.sampler.device), "sampler.device")
    snapshots = {
        name: torch.from_numpy(array) for name, array in step.read_tensors("student", "snapshots.safetensors").items()
    }
    z = step.read_tensors("noise", "noise.safetensors")["paired"]
    generator_step = snapshots.pop("generator_step")
    student: Any
    if spec.student.network.kind == "particles":
        student = import_module("dmdpipe.distill.particles").build_particles(spec.student, torch.from_numpy(z))
    else:
        student = build_student(spec.student)
    dtype = next(student.parameters()).dtype
    student.to(device)
    bank = spec.teacher_samples.bank
    between = [torch.from_numpy(rows) for rows in noise_between(bank, spec.student.sampling_steps)]
    # In chunks, so that what a large network holds does not grow with N.
    noises = [noise.to(device, dtype).split(CHUNK) for noise in (torch.from_numpy(z), *between)]
    of_teacher = step.read_tensors("teacher_samples", "samples.safetensors")
    asked = (torch.from_numpy(of_teacher["classes"]).to(device),) if spec.student.teacher.classes else ()
    classes = [each.split(CHUNK) for each in asked]
    chunks = [(rows[: len(noises)], rows[len(noises) :]) for rows in zip(*noises, *classes, strict=True)]
    outputs = []
    for k in range(len(generator_step)):
        student.load_state_dict({name: stacked[k] for name, stacked in snapshots.items()})
        samples = [student(first, later, *told) for (first, *later), told in chunks]
        outputs.append(torch.cat(samples).float().cpu())
    tensors = {
        "z": z,
        "teacher": of_teacher["teacher"],
        "student": torch.stack(outputs).numpy(),
        "generator_step": generator_step.numpy(),
    }
    if between:
        teacher = load_teacher(spec.student.teacher, step.read_tensors("teacher", "model.safetensors")).to(device)
        x = torch.from_numpy(tensors["teacher"]).to(device)
        levels = student_levels(spec.student.noise_range, spec.student.sampling_steps)
        for noise, level in zip(between, levels[1:], strict=True):
            x = resampled(teacher, x, noise.to(device), level, spec.teacher_samples, *asked)
        tensors["resampled"] = x.cpu().numpy()
    step.write_tensors("pairs.safetensors", tensors)


def resampled(
    teacher: Teacher, x: Tensor, noise: Tensor, level: float, spec: TeacherSamplesSpec, *asked: Tensor
) -> Tensor:
    """Return where the teacher's flow takes x + σ·ε from a level σ, all [N, d]: a step of a student that copies it.

    If it is asked for classes [N], they are given last.
    """
    below = spec.noise_range.model_copy(update={"sigma_max": level})
    # teacher_map scales noise by the level that it starts from.
    return teacher_map(teacher, x / level + noise, below, spec.sampler.steps, *asked)
