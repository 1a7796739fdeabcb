"""The step ``metrics``: every copying metric and distribution distance of one student, at every snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from dmdpipe.copying.baselines import (
    PAIRS_PER_DIMENSION,
    fit_affine,
    jacobian_alignment,
    match_variance,
    mean_jacobian,
    scale_ratio,
)
from dmdpipe.copying.distances import Array
from dmdpipe.copying.distribution import (
    Distances,
    SampleSet,
    fixed_projections,
    gate_ratio,
    mean_distances,
    over_floor,
    reference_floors,
    sample_set,
)
from dmdpipe.copying.gate import GATE
from dmdpipe.copying.inference_cost import inference_cost
from dmdpipe.copying.memorization import memorized_share, nearest_distances, nearest_ratios
from dmdpipe.copying.nulls import dimension_matched_null, shuffled_pairing
from dmdpipe.copying.pairing_metrics import (
    ASSIGNMENT_LIMIT,
    cosine,
    matching_costs,
    mode_agreement,
    normalised_excess_cost,
    normalised_rank,
    pair_ranks,
    pairing_inefficiency,
    relative_pair_error,
    relative_pair_error_within,
    retrieval_at_k,
    same_mode_error,
    whitening,
)
from dmdpipe.copying.rotation import rotation
from dmdpipe.errors import UserError
from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from dmdpipe.artifacts.step import Step
    from dmdpipe.copying.classes import WithinClasses
    from dmdpipe.specs.pairs import MetricsSpec

SEED = 0  # projections and null are part of the instrument: the same for every student

SNAPSHOT_METRICS = (
    "rho",
    "rho_rotated",
    "rho_shuffled",
    "rho_resampled",
    "delta_e",
    "normalised_excess_cost",
    "cosine",
    "cosine_whitened",
    "retrieval_at_1",
    "normalised_rank",
    "linear_excess",
    "linear_excess_matched",
    "rho_initial",
    "sliced_w2",
    "sliced_w2_over_floor",
    "energy",
    "energy_over_floor",
    "sliced_w2_data",
    "energy_data",
    "gate_ratio",
    "converged",
    "novelty_teacher",
    "novelty_data",
    "scale_ratio",
    "jacobian_alignment",
)
"""Metrics of a snapshot that all data have."""

SPECIAL_METRICS = {
    "mode_agreement": "modes",
    "rho_within_mode": "modes",
    "rho_same_mode": "modes",
    "rotation": "covariance",
    "rho_within_class": "classes",
    "rho_within_class_shuffled": "classes",
    "rho_same_class": "classes",
    "rho_affine_within_class": "classes",
    "delta_e_same_class": "classes",
    "retrieval_same_class": "classes",
    "gate_ratio_within_class": "classes",
}
"""Metrics that need what is known of some data only, and the argument of ``measure`` that it is."""

CONSTANT_METRICS = (
    "rho_affine",
    "rho_affine_matched",
    "rho_floor",
    "rho_resampling",
    "sliced_w2_floor",
    "energy_floor",
    "delta_e_null",
    "retrieval_null",
    "nearest_ratio",
    "nearest_ratio_held_out",
    "memorized",
    "memorized_held_out",
    "assignment_pairs",
    "inference_cost",
)
"""Baselines, floors and nulls: they don't depend on how a student is trained, and are repeated at every step."""


class Source(NamedTuple):
    """Where an array lies: the parent's role, the file, the tensor."""

    role: str
    file: str
    tensor: str

    def __str__(self) -> str:
        return f"{self.role}: {self.file}, '{self.tensor}'"


SOURCES = {
    "z": Source("pairs", "pairs.safetensors", "z"),
    "teacher": Source("pairs", "pairs.safetensors", "teacher"),
    "student": Source("pairs", "pairs.safetensors", "student"),
    "generator_step": Source("pairs", "pairs.safetensors", "generator_step"),
    "resampled": Source("pairs", "pairs.safetensors", "resampled"),
    "teacher_doubled": Source("teacher_samples", "samples.safetensors", "teacher_doubled"),
    "teacher_rotated": Source("teacher_samples", "samples.safetensors", "teacher_rotated"),
    "teacher_held_out": Source("teacher_samples", "samples.safetensors", "held_out"),
    "reference": Source("teacher_samples", "samples.safetensors", "reference"),
    "noise_held_out": Source("noise", "noise.safetensors", "held_out"),
    "data_held_out": Source("data", "data.safetensors", "held_out"),
    "training": Source("data", "data.safetensors", "train"),
    "images": Source("data", "data.safetensors", "images"),
    "modes": Source("data", "data.safetensors", "modes"),
    "covariance": Source("data", "data.safetensors", "exact.variances"),
    "classes": Source("teacher_samples", "samples.safetensors", "classes"),
    "classes_held_out": Source("teacher_samples", "samples.safetensors", "classes_held_out"),
    "classes_reference": Source("teacher_samples", "samples.safetensors", "classes_reference"),
}
"""Where each array of ``measure`` comes from; those in ``MAY_BE_MISSING`` need not be there."""

OF_CLASSES = ("classes", "classes_held_out", "classes_reference")
MAY_BE_MISSING = ("resampled", "images", "modes", "covariance", *OF_CLASSES)

PAIRED_WITH = {
    "z": Source("noise", "noise.safetensors", "paired"),
    "teacher": Source("teacher_samples", "samples.safetensors", "teacher"),
}
"""What the pairs' own tensors must equal: otherwise they are pairs of something else."""


@dataclass(frozen=True)
class _Instrument:
    """All that a snapshot is held against; ``prices`` [N] are those of the last matching, where the next one begins."""

    z: Array
    teacher: Array
    teacher_whitened: Array
    teacher_jacobian: Array
    rotated: Array
    shuffled: Array
    resampled: Array
    initial: Array
    modes: Array | None
    covariance: Array | None
    classes: WithinClasses | None
    whitening: Array
    projections: Array
    references: list[SampleSet]
    data: SampleSet
    independent: Array
    training: Array
    apart: tuple[float, float]
    constants: dict[str, float]
    prices: Array

    def read(self, student: Array) -> dict[str, float]:
        """Return every metric of one snapshot [N, d] by name, the constants included."""
        values = dict.fromkeys(SNAPSHOT_METRICS, np.nan) | self.constants
        unread = (name for name, known in SPECIAL_METRICS.items() if getattr(self, known) is not None)
        values = dict.fromkeys(unread, np.nan) | values
        if np.isfinite(student).all():
            values |= self._pairing(student) | self._distribution(student) | self._novelty(student)
            if self.classes:
                values |= self.classes.read(student)
                # A student that heeds no class can have the distribution of all classes together.
                gate = np.fmax(values["gate_ratio"], values["gate_ratio_within_class"])
                values |= {"gate_ratio": float(gate), "converged": float(gate <= GATE)}
            return values
        return values | {"gate_ratio": np.inf, "converged": 0.0}

    def _pairing(self, student: Array) -> dict[str, float]:
        rho = relative_pair_error(student, self.teacher)
        costs = matching_costs(student, self.teacher, self.prices)
        ranks = pair_ranks(student, self.teacher)
        initial_is_finite = np.isfinite(self.initial).all()
        values = {
            "rho": rho,
            "rho_rotated": relative_pair_error(student, self.rotated),
            "rho_shuffled": relative_pair_error(student, self.shuffled),
            "rho_resampled": relative_pair_error(student, self.resampled),
            "delta_e": pairing_inefficiency(costs),
            "normalised_excess_cost": normalised_excess_cost(costs),
            "cosine": cosine(student, self.teacher),
            "cosine_whitened": cosine(student @ self.whitening, self.teacher_whitened),
            "retrieval_at_1": retrieval_at_k(ranks, 1),
            "normalised_rank": normalised_rank(ranks),
            "linear_excess": rho - self.constants["rho_affine"],
            "linear_excess_matched": rho - self.constants["rho_affine_matched"],
            "rho_initial": relative_pair_error(student, self.initial) if initial_is_finite else np.nan,
            "scale_ratio": scale_ratio(student, self.teacher),
            "jacobian_alignment": jacobian_alignment(mean_jacobian(self.z, student), self.teacher_jacobian),
        }
        if self.modes is not None:
            values["mode_agreement"] = mode_agreement(student, self.teacher, self.modes)
            values["rho_within_mode"] = relative_pair_error_within(student, self.teacher, self.modes)
        if self.covariance is not None:
            values["rotation"] = rotation(student, self.z, self.covariance)
        return values

    def _novelty(self, student: Array) -> dict[str, float]:
        sets = zip(("teacher", "data"), (self.independent, self.training), self.apart, strict=True)
        return {f"novelty_{name}": over_floor(_mean_nearest(student, points), usual) for name, points, usual in sets}

    def _distribution(self, student: Array) -> dict[str, float]:
        own = sample_set(student, self.projections)
        to_teacher = mean_distances(list(product([own], self.references)))
        to_data = mean_distances([(own, self.data)])
        floors = Distances(self.constants["sliced_w2_floor"], self.constants["energy_floor"])
        gate = gate_ratio(to_teacher, floors)
        return {
            "sliced_w2": to_teacher.sliced_w2,
            "sliced_w2_over_floor": over_floor(to_teacher.sliced_w2, floors.sliced_w2),
            "energy": to_teacher.energy,
            "energy_over_floor": over_floor(to_teacher.energy, floors.energy),
            "sliced_w2_data": to_data.sliced_w2,
            "energy_data": to_data.energy,
            "gate_ratio": gate,
            "converged": float(gate <= GATE),
        }


def measure(
    *,
    z: npt.ArrayLike,
    teacher: npt.ArrayLike,
    student: npt.ArrayLike,
    generator_step: npt.ArrayLike,
    teacher_doubled: npt.ArrayLike,
    teacher_rotated: npt.ArrayLike,
    teacher_held_out: npt.ArrayLike,
    reference: npt.ArrayLike,
    noise_held_out: npt.ArrayLike,
    data_held_out: npt.ArrayLike,
    training: npt.ArrayLike,
    modes: npt.ArrayLike | None = None,
    covariance: npt.ArrayLike | None = None,
    resampled: npt.ArrayLike | None = None,
    classes: npt.ArrayLike | None = None,
    classes_held_out: npt.ArrayLike | None = None,
    classes_reference: npt.ArrayLike | None = None,
    cost: float = 1.0,
    projections: int = 128,
    whitened_variance: float = 0.99,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """Return a tidy table of all metrics at every snapshot.

    A snapshot that is not finite (a student that diverged) reads NaN in all its metrics, gate_ratio infinite
    and converged 0. The distances to the data use the first N held-out samples: sets of one size, which
    compare with the distances to the teacher.

    Args:
        z: paired noise [N, d].
        teacher: T(z) [N, d].
        student: S(z) at K snapshots [K, N, d]; the first is the start S₀.
        generator_step: of each snapshot [K].
        teacher_doubled: T(z) with twice the sampler steps [N, d].
        teacher_rotated: T(Qz) [N, d].
        teacher_held_out: T of the held-out noise [M, d]: fits the affine map and the whitening.
        reference: R independent teacher sets [R, N, d], R ≥ 2.
        noise_held_out: [M, d].
        data_held_out: real data [m, d].
        training: what the teacher was trained on [n, d]: rows, or the distinct images behind them.
        modes: known mode centres [k, d].
        covariance: Σ [d, d] of the data, where they are known to be one Gaussian.
        resampled: the teacher with the student's noise between its steps [N, d]; T(z) itself if there is one step.
        classes: that both were asked for at each paired noise [N], integers; if they were, the next two as well.
        classes_held_out: at each held-out noise [M].
        classes_reference: at each noise of the teacher sets [R, N].
        cost: the student's inference cost (``dmdpipe.copying.inference_cost``).
        projections: directions of the sliced distance.
        whitened_variance: share of variance that the whitened cosine keeps, in (0, 1].
        seed: the student's. Every seed has its own shuffle: with one shuffle for all, its sampling error would be
            common to all seeds, and an interval over seeds would miss the null's true value, 1.
        progress: called with (snapshots done, K) after each.

    Returns:
        Columns generator_step (int64), metric (one of SNAPSHOT_METRICS, CONSTANT_METRICS or
        SPECIAL_METRICS) and value (float64), in order of snapshot, then metric.

    Raises:
        UserError: if shapes disagree, there are fewer than 2 pairs, 2 reference sets or 2d held-out pairs, or
            anything but the student holds values that are not finite.
    """
    given = {
        "z": z,
        "teacher": teacher,
        "student": student,
        "generator_step": generator_step,
        "teacher_doubled": teacher_doubled,
        "teacher_rotated": teacher_rotated,
        "teacher_held_out": teacher_held_out,
        "reference": reference,
        "noise_held_out": noise_held_out,
        "data_held_out": data_held_out,
        "training": training,
        "resampled": teacher if resampled is None else resampled,
    }
    special_ones = {"modes": modes, "covariance": covariance, "classes": classes}
    special_ones |= {"classes_held_out": classes_held_out, "classes_reference": classes_reference}
    given |= {name: known for name, known in special_ones.items() if known is not None}
    # The student has K snapshots and may be large: it is converted one snapshot at a time.
    as_stored = ("student", "generator_step", *OF_CLASSES)
    arrays = {name: np.asarray(value, dtype=None if name in as_stored else np.float64) for name, value in given.items()}
    _check(arrays)
    instrument = _set_up(arrays, cost, projections, whitened_variance, seed)

    special = (name for name, known in SPECIAL_METRICS.items() if known in given)
    names = [*SNAPSHOT_METRICS, *CONSTANT_METRICS, *special]
    steps = arrays["generator_step"].astype(np.int64)
    values: list[float] = []
    for done, snapshot in enumerate(arrays["student"], start=1):
        reading = instrument.read(snapshot.astype(np.float64))
        values += [reading[name] for name in names]
        progress(done, len(steps))
    return pd.DataFrame(
        {
            "generator_step": np.repeat(steps, len(names)),
            "metric": names * len(steps),
            "value": np.array(values, dtype=np.float64),
        }
    )


def _set_up(
    arrays: Mapping[str, npt.NDArray], cost: float, projections: int, whitened_variance: float, seed: int
) -> _Instrument:
    z, teacher = arrays["z"], arrays["teacher"]
    noise_held_out, teacher_held_out = arrays["noise_held_out"], arrays["teacher_held_out"]
    n, d = teacher.shape
    directions = fixed_projections(d, projections, derive_seed(SEED, "copying", "projections"))
    references = [sample_set(points, directions) for points in arrays["reference"]]
    floors = reference_floors(references)
    affine = fit_affine(noise_held_out, teacher_held_out)
    matched = match_variance(affine, noise_held_out, teacher_held_out)
    axes = whitening(teacher_held_out, whitened_variance)
    both = np.concatenate([teacher, arrays["data_held_out"][:n]])
    ratios, ratios_held_out = np.split(nearest_ratios(both, arrays["training"]), [n])
    independent = arrays["reference"].reshape(-1, d)
    null = dimension_matched_null(d, n, seed=derive_seed(SEED, "copying", "null"))
    within: WithinClasses | None = None
    if "classes" in arrays:
        # By name, so that an edit of it touches only the students that are asked for classes.
        within_classes = import_module("dmdpipe.copying.classes").within_classes
        within = within_classes(arrays, directions, derive_seed(seed, "copying", "shuffle"))
    return _Instrument(
        z=z,
        teacher=teacher,
        teacher_whitened=teacher @ axes,
        teacher_jacobian=mean_jacobian(z, teacher),
        rotated=arrays["teacher_rotated"],
        shuffled=teacher[shuffled_pairing(n, derive_seed(seed, "copying", "shuffle"))],
        resampled=arrays["resampled"],
        initial=arrays["student"][0].astype(np.float64),
        modes=arrays.get("modes"),
        covariance=arrays.get("covariance"),
        classes=within,
        whitening=axes,
        projections=directions,
        references=references,
        data=sample_set(arrays["data_held_out"][:n], directions),
        independent=independent,
        training=arrays["training"],
        apart=(_mean_nearest(teacher, independent), _mean_nearest(arrays["data_held_out"][:n], arrays["training"])),
        constants={
            "rho_affine": relative_pair_error(affine(z), teacher),
            "rho_affine_matched": relative_pair_error(matched(z), teacher),
            "rho_floor": relative_pair_error(teacher, arrays["teacher_doubled"]),
            "rho_resampling": relative_pair_error(arrays["resampled"], teacher),
            "sliced_w2_floor": floors.sliced_w2,
            "energy_floor": floors.energy,
            "delta_e_null": null.delta_e,
            "retrieval_null": null.retrieval_at_1,
            "nearest_ratio": float(ratios.mean()),
            "nearest_ratio_held_out": float(ratios_held_out.mean()),
            "memorized": memorized_share(ratios),
            "memorized_held_out": memorized_share(ratios_held_out),
            "assignment_pairs": float(min(n, ASSIGNMENT_LIMIT)),
            "inference_cost": cost,
            **({"rho_same_mode": same_mode_error(teacher, arrays["modes"])} if "modes" in arrays else {}),
            # Among them rho_affine and rho_affine_matched, of maps that know the classes' means.
            **(within.constants if within else {}),
        },
        prices=np.zeros(min(n, ASSIGNMENT_LIMIT)),
    )


def _mean_nearest(samples: Array, points: Array) -> float:
    return float(nearest_distances(samples, points).mean())


def _check(arrays: Mapping[str, npt.NDArray]) -> None:
    """Refuse arrays that disagree in shape, hold too few rows, or (but for the student) are not finite."""
    pairs = arrays["teacher"].shape
    if len(pairs) != 2 or pairs[0] < 2:
        raise UserError(f"{SOURCES['teacher']} has shape {pairs}, not (N, d) with N ≥ 2; rebuild that step")
    n, d = pairs
    sizes = {"N": n, "d": d}
    shapes = {
        "z": "N d",
        "student": "K N d",
        "generator_step": "K",
        "teacher_doubled": "N d",
        "resampled": "N d",
        "teacher_rotated": "N d",
        "teacher_held_out": "M d",
        "reference": "R N d",
        "noise_held_out": "M d",
        "data_held_out": "m d",
        "training": "n d",
        "modes": "k d",
        "covariance": "d d",
        "classes": "N",
        "classes_held_out": "M",
        "classes_reference": "R N",
    }
    missing = [name for name in OF_CLASSES if "classes" in arrays and name not in arrays]
    if missing:
        raise UserError(f"{SOURCES[missing[0]]} is missing, though the pairs have classes; rebuild that step")
    for name, axes in shapes.items():
        if name not in arrays:
            continue
        shape = arrays[name].shape
        known = axes.split()
        agrees = len(shape) == len(known) and all(
            length == sizes.setdefault(axis, length) for axis, length in zip(known, shape, strict=True)
        )
        if not agrees or 0 in shape:
            expected = ", ".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in known)
            raise UserError(f"{SOURCES[name]} has shape {shape}, not ({expected}); rebuild that step")
    if sizes["R"] < 2:
        raise UserError(f"{SOURCES['reference']} holds 1 set, but a floor needs two; raise n_reference_sets")
    if sizes["M"] < PAIRS_PER_DIMENSION * d:
        raise UserError(
            f"{SOURCES['noise_held_out']} holds {sizes['M']} noises, too few for an affine fit in d={d}; "
            f"raise n_held_out to {PAIRS_PER_DIMENSION * d} or more"
        )
    for name, array in arrays.items():
        if name != "student" and not np.isfinite(array).all():
            raise UserError(f"{SOURCES[name]} holds values that are not finite; rebuild or mend that step")
    for name in ("teacher", "teacher_held_out"):
        if not np.ptp(arrays[name], axis=0).any():
            raise UserError(f"{SOURCES[name]} does not vary: the teacher has collapsed; train another")


def _covariance(data: Mapping[str, npt.NDArray]) -> npt.NDArray | None:
    """Return Σ [d, d] of data that are known to be one Gaussian, from the tensors of the data step."""
    if len(data.get("exact.weights", ())) != 1:
        return None
    return data["exact.basis"] * data["exact.variances"][0] @ data["exact.basis"].T


def measure_copying(step: Step) -> None:
    """Measure one student: read its pairs and their parents, write ``metrics.parquet`` (see ``measure``).

    Raises:
        UserError: if a tensor is missing, the pairs were not drawn from this teacher and this noise bank, or
            ``measure`` refuses them.
    """
    spec: MetricsSpec = step.spec
    files = {(source.role, source.file) for source in [*SOURCES.values(), *PAIRED_WITH.values()]}
    tensors = {(role, file): step.read_tensors(role, file) for role, file in sorted(files)}

    def array(source: Source) -> npt.NDArray:
        held = tensors[source.role, source.file]
        if source.tensor not in held:
            raise UserError(f"{source} is missing; rebuild that step")
        return held[source.tensor]

    arrays = {name: array(source) for name, source in SOURCES.items() if name not in MAY_BE_MISSING}
    images = SOURCES["images"]
    # Rows show an image many times under other noise: the nearest two would be one image.
    arrays["training"] = tensors[images.role, images.file].get(images.tensor, arrays["training"])
    for name, source in PAIRED_WITH.items():
        if not np.array_equal(arrays[name], array(source), equal_nan=True):
            raise UserError(f"{SOURCES[name]} differs from {source}: not its pairs; rebuild the step pairs")

    def if_there(source: Source) -> npt.NDArray | None:
        return tensors[source.role, source.file].get(source.tensor)

    table = measure(
        **arrays,
        modes=if_there(SOURCES["modes"]),
        covariance=_covariance(tensors[SOURCES["covariance"].role, SOURCES["covariance"].file]),
        resampled=if_there(SOURCES["resampled"]),
        classes=if_there(SOURCES["classes"]),
        classes_held_out=if_there(SOURCES["classes_held_out"]),
        classes_reference=if_there(SOURCES["classes_reference"]),
        cost=inference_cost(spec.pairs.student),
        projections=spec.projections,
        whitened_variance=spec.whitened_variance,
        seed=spec.pairs.student.seed,
        progress=step.progress,
    )
    step.write_table("metrics.parquet", table)
