"""Teacher and student over the paired-noise bank: T(z) and S(z) for the same z."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from dmdpipe.diffusion.determinism import start_device
from dmdpipe.diffusion.sampler import CHUNK, teacher_map
from dmdpipe.diffusion.schedule import student_levels
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill.student import build_student
from dmdpipe.pairing.bank import noise_between
from dmdpipe.specs.hardware import Hardware

if TYPE_CHECKING:
    from torch import Tensor

    from dmdpipe.artifacts.step import Step
    from dmdpipe.diffusion.teacher import Teacher
    from dmdpipe.specs.diffusion import TeacherSamplesSpec
    from dmdpipe.specs.pairs import PairsSpec


def sample_teacher(step: Step) -> None:
    """The ``teacher_samples`` step: the teacher's map over every noise of the bank.

    Writes ``teacher`` = T(z) [N, d], ``teacher_doubled`` (twice the sampler's steps: its distance from T(z) is the
    floor of every pair error), ``teacher_rotated`` = T(Qz), ``held_out`` [M, d] and ``reference`` [R, N, d].
    """
    spec: TeacherSamplesSpec = step.spec
    device = start_device(Hardware(device=spec.sampler.device), "sampler.device")
    denoiser = load_teacher(spec.teacher, step.read_tensors("teacher", "model.safetensors")).to(device)
    bank = {name: torch.from_numpy(array) for name, array in step.read_tensors("noise", "noise.safetensors").items()}
    steps = spec.sampler.steps
    wanted = {
        "teacher": (bank["paired"], steps),
        "teacher_doubled": (bank["paired"], 2 * steps),
        "teacher_rotated": (bank["paired"] @ bank["rotation"].T, steps),
        "held_out": (bank["held_out"], steps),
        "reference": (bank["reference"].flatten(0, 1), steps),
    }
    samples = {}
    for done, (name, (z, intervals)) in enumerate(wanted.items()):
        step.progress(done, len(wanted))
        samples[name] = teacher_map(denoiser, z.to(device), spec.noise_range, intervals).cpu().numpy()
    samples["reference"] = samples["reference"].reshape(bank["reference"].shape)
    step.write_tensors("samples.safetensors", samples)


@torch.no_grad()
def pair_samples(step: Step) -> None:
    """The ``pairs`` step: ``z`` [N, d], ``teacher`` = T(z) [N, d], ``student`` = S(z) [K, N, d] at K snapshots.

    ``generator_step`` [K] says when each snapshot was taken; the last one is the read-out step. If the student makes
    several steps, ``resampled`` [N, d] is the teacher with the same noise between the same levels.
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
    outputs = []
    for k in range(len(generator_step)):
        student.load_state_dict({name: stacked[k] for name, stacked in snapshots.items()})
        samples = [student(first, later) for first, *later in zip(*noises, strict=True)]
        outputs.append(torch.cat(samples).float().cpu())
    tensors = {
        "z": z,
        "teacher": step.read_tensors("teacher_samples", "samples.safetensors")["teacher"],
        "student": torch.stack(outputs).numpy(),
        "generator_step": generator_step.numpy(),
    }
    if between:
        teacher = load_teacher(spec.student.teacher, step.read_tensors("teacher", "model.safetensors")).to(device)
        x = torch.from_numpy(tensors["teacher"]).to(device)
        levels = student_levels(spec.student.noise_range, spec.student.sampling_steps)
        for noise, level in zip(between, levels[1:], strict=True):
            x = resampled(teacher, x, noise.to(device), level, spec.teacher_samples)
        tensors["resampled"] = x.cpu().numpy()
    step.write_tensors("pairs.safetensors", tensors)


def resampled(teacher: Teacher, x: Tensor, noise: Tensor, level: float, spec: TeacherSamplesSpec) -> Tensor:
    """Return where the teacher's flow takes x + σ·ε from a level σ, all [N, d]: a step of a student that copies it."""
    below = spec.noise_range.model_copy(update={"sigma_max": level})
    # teacher_map scales noise by the level that it starts from.
    return teacher_map(teacher, x / level + noise, below, spec.sampler.steps)
