"""The steps of students that train together: ``ensemble`` trains them, ``member`` takes one of them out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill.ensemble import LOGGED, Ensemble
from dmdpipe.distill.loop import HISTORY, snapshot_steps, unflatten
from dmdpipe.distill.student import build_student
from dmdpipe.networks.denoiser import Denoiser
from dmdpipe.specs.student import members_of

if TYPE_CHECKING:
    from dmdpipe.artifacts.step import Step
    from dmdpipe.specs.student import StudentSpec


def train_together(step: Step) -> None:
    """The ``ensemble`` step: distil all members of a student's ensemble, then store what each has become.

    Writes ``ensemble.safetensors``: ``snapshots`` [M, K, P], flat parameters, and ``history`` [M, S, len(LOGGED)].
    """
    spec: StudentSpec = step.spec
    members = members_of(spec)
    dtype = getattr(torch, spec.dtype)
    teachers = []
    for member in members:
        weights = step.read_tensors(f"teacher_{member.seed}", "model.safetensors")
        teacher = load_teacher(member.teacher, weights, dtype)
        assert isinstance(teacher, Denoiser)
        teachers.append(teacher)
    ensemble = Ensemble(members, teachers, graph=spec.device == "cuda")
    tensors = {"snapshots": ensemble.train(step), "history": ensemble.history.cpu().transpose(0, 1)}
    step.write_tensors("ensemble.safetensors", {name: value.contiguous().numpy() for name, value in tensors.items()})


def take_member(step: Step) -> None:
    """The ``member`` step: store one member as the ``student`` step stores a student that trained alone."""
    import pandas as pd

    spec: StudentSpec = step.spec
    assert spec.members
    place = spec.members.seeds.index(spec.seed)
    ensemble = {name: array[place] for name, array in step.read_tensors("ensemble", "ensemble.safetensors").items()}
    flat = torch.from_numpy(np.ascontiguousarray(ensemble["snapshots"]))
    steps = torch.tensor(snapshot_steps(spec.generator_steps, spec.snapshots))
    snapshots = {"generator_step": steps, **unflatten(flat, build_student(spec))}
    step.write_tensors("snapshots.safetensors", {name: value.numpy() for name, value in snapshots.items()})
    logged = ensemble["history"].astype(np.float64)
    columns = {name: logged[:, LOGGED.index(name)] if name in LOGGED else np.nan for name in HISTORY}
    step.write_table("history.parquet", pd.DataFrame({"generator_step": range(1, len(logged) + 1), **columns}))
