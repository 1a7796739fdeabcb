"""The step ``maps``: how far a student is, over its training, from every map that its pairing could come from.

The nearest one names the mechanism: the teacher T, or T∘Q where it was put; the optimal-transport map; the particle
flow Φ∘S₀, which is what the loss alone makes of the start; the best affine map L; the start S₀ itself. Distances to T,
T∘Q and S₀ are metrics of the step ``metrics``; those that need networks, assignments or a flow are here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from dmdpipe.copying.baselines import fit_affine
from dmdpipe.copying.distances import Array
from dmdpipe.copying.distribution import (
    fixed_projections,
    gate_ratio,
    mean_distances,
    reference_floors,
    sample_set,
)
from dmdpipe.copying.gate import GATE
from dmdpipe.copying.pairing_metrics import relative_pair_error
from dmdpipe.copying.transport import TransportEstimate, estimate_transport, gaussian_transport
from dmdpipe.diffusion.determinism import exact_torch
from dmdpipe.diffusion.sampler import probability_flow
from dmdpipe.diffusion.schedule import karras_grid
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill.student import build_student
from dmdpipe.pairing.flow import kernel_spacing, particle_flow
from dmdpipe.pairing.jacobians import jacobian_asymmetry, jacobians
from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dmdpipe.artifacts.step import Step
    from dmdpipe.diffusion.teacher import Teacher
    from dmdpipe.distill.student import Student
    from dmdpipe.specs.pairs import MapsSpec

MAP_METRICS = ("rho_transport", "rho_gaussian_transport", "rho_flow", "rho_linear", "jacobian_asymmetry")
"""Read at every snapshot."""

MAP_CONSTANTS = (
    "transport_slope",
    "rho_transport_teacher",
    "rho_gaussian_transport_teacher",
    "rho_flow_teacher",
    "flow_gate_ratio",
    "jacobian_asymmetry_teacher",
    "transport_pairs",
)
"""How far the teacher itself is from the maps, and how well they are known: repeated at every generator step."""

SEED = 0  # of what belongs to the instrument: the same for every student


def named_maps(
    noise: Mapping[str, Array], teacher: Mapping[str, Array], flow: Array, pairs: int
) -> tuple[dict[str, Array], TransportEstimate, dict[str, float]]:
    """Return the maps at the paired noise, the estimate of the transport map, and the constants.

    Args:
        noise: ``paired`` [N, d] and ``held_out`` [M, d].
        teacher: T of these: ``teacher`` [N, d] and ``held_out`` [M, d]; and ``reference`` [R, N, d], R ≥ 2.
        flow: Φ(S₀(z)) [N, d] at the paired noise.
        pairs: how many of the paired noises, the first ones, are assigned.

    Returns:
        maps: ``gaussian_transport``, ``flow`` and ``linear`` [N, d]; a flow that ends over the gate is NaN, since it
            is no map onto the teacher's distribution.
        estimate: of the transport map at the first min(N, pairs) noises.
        constants: by the names in ``MAP_CONSTANTS``, but for ``jacobian_asymmetry_teacher``.
    """
    z, t, reference = noise["paired"], teacher["teacher"], teacher["reference"]
    n, d = t.shape
    transport = gaussian_transport(teacher["held_out"])
    rng = np.random.Generator(np.random.Philox(derive_seed(SEED, "copying", "transport")))
    used = min(n, pairs)
    estimate = estimate_transport(z[:used], reference[:, :used], rng)

    directions = fixed_projections(d, 128, derive_seed(SEED, "copying", "projections"))
    references = [sample_set(points, directions) for points in reference]
    finite = bool(np.isfinite(flow).all())
    gate = np.inf
    if finite:
        own = sample_set(flow, directions)
        gate = gate_ratio(mean_distances([(own, other) for other in references]), reference_floors(references))
    maps = {
        "gaussian_transport": transport(z),
        "flow": flow if gate <= GATE else np.full_like(flow, np.nan),
        "linear": fit_affine(noise["held_out"], teacher["held_out"])(z),
    }
    constants = {
        "transport_slope": estimate.slope,
        "rho_transport_teacher": estimate.rho(t[:used]),
        "rho_gaussian_transport_teacher": relative_pair_error(t, maps["gaussian_transport"]),
        "rho_flow_teacher": relative_pair_error(t, maps["flow"]),
        "flow_gate_ratio": gate,
        "transport_pairs": float(used),
    }
    return maps, estimate, constants


def flow_of_start(spec: MapsSpec, start: Student, teacher: Teacher, noise: Mapping[str, Array], known: Array) -> Array:
    """Return Φ(S₀(z)) [N, d] at the paired noise: the student's start, moved as a cloud of particles.

    NaN if the points are so far apart that a kernel sees nothing at any noise level of the recipe.

    Args:
        spec: the step's.
        start: S₀.
        teacher: D_teacher(x, σ).
        noise: ``paired`` [N, d] and ``held_out`` [M, d], of which the cloud takes the first ``spec.particles``.
        known: samples of the teacher [M, d]. Their spacing bounds the noise levels of a kernel from below.
    """
    student = spec.pairs.student
    recipe = student.recipe
    dtype = torch.float64 if spec.fake == "gaussian" else torch.float32
    levels = karras_grid(student.noise_range, recipe.grid_size)[recipe.dm_first : recipe.dm_last + 1].to(dtype)
    if spec.fake == "kernel":
        levels = levels[levels >= kernel_spacing(torch.from_numpy(known[: spec.particles]))]
        if not len(levels):
            return np.full(noise["paired"].shape, np.nan)
    starts = (exact_moments(noise["held_out"][: spec.particles]), noise["paired"])
    cloud, tracers = (answers(start, rows).to(dtype) for rows in starts)
    ends = particle_flow(
        cloud,
        tracers,
        teacher,
        levels,
        fake=spec.fake,
        steps=spec.flow_steps,
        noise=torch.Generator().manual_seed(derive_seed(SEED, "copying", "flow")),
        normalise=recipe.normalise,
    )
    return ends.double().numpy()


def exact_moments(z: Array) -> Array:
    """Return noise z [M, d], M > d, moved and stretched so that its mean is 0 and its covariance I.

    The cloud's flow takes its moments for those of all noise; what they are off by would turn up in the map.
    """
    centred = z - z.mean(axis=0)
    factor = np.linalg.cholesky(centred.T @ centred / len(z))
    return np.linalg.solve(factor, centred.T).T


@torch.no_grad()
def answers(student: Student, z: Array) -> Tensor:
    """Return S(z) [N, d] for noise z [N, d], in the student's own dtype."""
    outputs: Tensor = student(torch.from_numpy(z).to(next(student.parameters()).dtype))
    return outputs


def measure_maps(step: Step) -> None:
    """Measure one student's distances to the named maps: write ``maps.parquet``, a table like ``metrics.parquet``.

    Columns generator_step, metric (``MAP_METRICS``, then ``MAP_CONSTANTS``) and value, in order of snapshot. Particles
    answer no noise but their own, so they have no Jacobian, and their start is taken from the network behind it.
    """
    spec: MapsSpec = step.spec
    exact_torch(threads=1)
    noise = step.read_tensors("noise", "noise.safetensors")
    samples = step.read_tensors("teacher_samples", "samples.safetensors")
    pairs = step.read_tensors("pairs", "pairs.safetensors")
    snapshots = step.read_tensors("student", "snapshots.safetensors")
    weights = step.read_tensors("teacher", "model.safetensors")
    dtype = torch.float64 if spec.fake == "gaussian" else torch.float32
    teacher = load_teacher(spec.pairs.student.teacher, weights, dtype)
    has_network = spec.pairs.student.network.kind != "particles"
    if has_network:
        student = build_student(spec.pairs.student)
    else:
        student = import_module("dmdpipe.distill.particles").started_network(spec.pairs.student, teacher)

    def put_in(k: int) -> None:
        named = {name: torch.from_numpy(tensor[k]) for name, tensor in snapshots.items() if name != "generator_step"}
        student.load_state_dict(named)

    if has_network:
        put_in(0)
    flow = flow_of_start(spec, student, teacher, noise, samples["held_out"])
    maps, transport, constants = named_maps(noise, samples, flow, spec.transport_pairs)
    z = torch.from_numpy(noise["paired"][: spec.jacobian_points])
    sampler = spec.pairs.teacher_samples.sampler
    noise_range = spec.pairs.student.noise_range

    def teacher_map(rows: Tensor) -> Tensor:
        return probability_flow(teacher, noise_range.sigma_max * rows, noise_range, sampler.steps)

    constants["jacobian_asymmetry_teacher"] = jacobian_asymmetry(jacobians(teacher_map, z.to(dtype)))

    rows: list[dict[str, Any]] = []
    for k, generator_step in enumerate(pairs["generator_step"].tolist()):
        step.progress(k, len(pairs["generator_step"]))
        values = dict.fromkeys(MAP_METRICS, np.nan) | constants
        outputs = pairs["student"][k].astype(np.float64)
        if np.isfinite(outputs).all():
            values |= {f"rho_{name}": relative_pair_error(outputs, points) for name, points in maps.items()}
            values["rho_transport"] = transport.rho(outputs[: int(constants["transport_pairs"])])
            if has_network:
                put_in(k)
                asked = z.to(next(student.parameters()).dtype)
                values["jacobian_asymmetry"] = jacobian_asymmetry(jacobians(student, asked))
        rows += [
            {"generator_step": generator_step, "metric": name, "value": float(values[name])}
            for name in (*MAP_METRICS, *MAP_CONSTANTS)
        ]
    step.write_table("maps.parquet", pd.DataFrame(rows))
