"""Copying metrics of any two maps of the same noise, as far as what is given goes; the rest says what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dmdpipe.copying.baselines import (
    PAIRS_PER_DIMENSION,
    class_means,
    fit_affine,
    jacobian_alignment,
    match_variance,
    mean_jacobian,
    scale_ratio,
)
from dmdpipe.copying.distances import Array, as_pairs, as_points
from dmdpipe.copying.distribution import (
    fixed_projections,
    gate_ratio,
    mean_distances,
    reference_floors,
    sample_set,
)
from dmdpipe.copying.gate import GATE
from dmdpipe.copying.measure import SEED
from dmdpipe.copying.nulls import dimension_matched_null, shuffled_pairing
from dmdpipe.copying.pairing_metrics import (
    ASSIGNMENT_LIMIT,
    cosine,
    matching_costs,
    normalised_excess_cost,
    normalised_rank,
    pair_error_within_groups,
    pair_ranks,
    pairing_inefficiency,
    relative_pair_error,
    retrieval_at_k,
    same_group_error,
    whitening,
)
from dmdpipe.seeds import derive_seed
from dmdpipe.specs.pairs import MetricsSpec

if TYPE_CHECKING:
    import numpy.typing as npt

# As a study has them if it says nothing else.
PROJECTIONS: int = MetricsSpec.model_fields["projections"].default
WHITENED_VARIANCE: float = MetricsSpec.model_fields["whitened_variance"].default

READINGS = {
    "rho": "relative pair error: 0 a copy, 1 a pairing that has nothing to do with the teacher's",
    "rho_floor": "what the teacher's sampler alone is off by: rho of the teacher with twice the steps",
    "rho_affine": "rho of the best affine map of the noise: what linear structure alone reads",
    "rho_affine_matched": "the same map, scaled to the teacher's spread",
    "linear_excess": "rho - rho_affine: above 0, the student copies less than the best affine map does",
    "rho_shuffled": "rho with the teacher's samples in another order: must read about 1",
    "delta_e": "a reconstruction (the paper publishes no formula): 0 pairs as near as the best matching, 1 independent",
    "delta_e_null": "delta_e of Gaussian pairs with correlation 0.05, of this dimension and number",
    "retrieval_at_1": "share of samples whose nearest teacher sample is their own",
    "retrieval_null": "retrieval_at_1 of the same Gaussian pairs",
    "normalised_rank": "mean rank of the own teacher sample over N: 1/N always the nearest, about 0.5 by chance",
    "normalised_excess_cost": "excess of the pairs' cost over that of the best matching, in units of the latter",
    "assignment_pairs": "how many pairs the best matching was taken over: the first ones",
    "cosine": "mean cosine between centred samples: 1 a copy, 0 independent",
    "cosine_whitened": "the same after whitening by the teacher's principal axes",
    "jacobian_alignment": "cosine between both maps' mean Jacobians, estimated from the pairs",
    "scale_ratio": "the student's spread over the teacher's",
    "sliced_w2": "sliced Wasserstein distance of the student's samples from independent teacher samples",
    "sliced_w2_floor": "the same between independent teacher samples",
    "energy": "energy distance, likewise",
    "energy_floor": "the same between independent teacher samples",
    "gate_ratio": "the larger of both distances over their floors",
    "converged": f"1 if gate_ratio is at most {GATE:g}; else the student lacks the teacher's distribution, and rho may"
    " mean anything",
}
"""Every metric of the table, in its order, and how to read it."""


CLASS_READINGS = {
    "rho_within_class": "relative pair error among samples of one class: 0 a copy, 1 nothing but the class is kept",
    "rho_same_class": "what rho reads of the teacher's own samples, each for another noise of the same class",
}
"""Likewise, where samples have classes; after the others."""


def measure_pairs(
    teacher: npt.ArrayLike,
    student: npt.ArrayLike,
    *,
    z: npt.ArrayLike | None = None,
    doubled: npt.ArrayLike | None = None,
    z_held_out: npt.ArrayLike | None = None,
    teacher_held_out: npt.ArrayLike | None = None,
    classes: npt.ArrayLike | None = None,
    classes_held_out: npt.ArrayLike | None = None,
) -> pd.DataFrame:
    """Return every metric of ``READINGS`` (with classes, of ``CLASS_READINGS``) for paired samples, or what it lacks.

    The values are those of ``dmdpipe.copying.measure.measure`` where that is given the same arrays. For the distances,
    the held-out samples, in sets of N, are the independent teacher samples; where there are no two sets, the pairs are
    halved, and a half of the student's is held against the teacher's other half.

    Args:
        teacher: T(z) [N, d].
        student: S(z) [N, d].
        z: the noise [N, d], standard normal.
        doubled: T(z) with twice the sampler's steps [N, d].
        z_held_out: other noise [M, d].
        teacher_held_out: T of it [M, d], or other teacher samples whose noise is not known.
        classes: that of each pair [N], integers, known to teacher and student alike.
        classes_held_out: that of each held-out sample [M], with ``classes``; the affine map then has a mean for each.

    Returns:
        Columns metric (str), value (float64; NaN where it could not be computed), reads (how to read it) and lacks
        (what it would need; empty where there is a value).

    Raises:
        ValueError: unless shapes agree, with N ≥ 2.
    """
    t, s = as_pairs(teacher, student)
    n, d = t.shape
    noise = None if z is None else as_points(z)
    other_noise = None if z_held_out is None else as_points(z_held_out)
    held_out = None if teacher_held_out is None else as_points(teacher_held_out)
    _check_shapes(t, noise, doubled, other_noise, held_out)
    values = _of_pairs(t, s)
    lacks: dict[str, str] = {}

    if doubled is None:
        lacks["rho_floor"] = "the teacher's samples with twice the sampler's steps"
    else:
        values["rho_floor"] = relative_pair_error(t, doubled)

    affine = ("rho_affine", "rho_affine_matched", "linear_excess")
    needed, there = PAIRS_PER_DIMENSION * d, 0 if other_noise is None else len(other_noise)
    if noise is None:
        lacks |= dict.fromkeys(
            affine, f"the noise behind the samples, and {needed} pairs of other noise and its sample"
        )
    elif other_noise is None or held_out is None or there < needed:
        others = f"{needed} pairs of noise and teacher sample beside these (2·d), not {there}"
        lacks |= dict.fromkeys(affine, others)
    else:
        means: tuple[Array, Array] | tuple[float, float] = (0.0, 0.0)
        if classes is not None and classes_held_out is not None:
            means = class_means(held_out, np.asarray(classes), np.asarray(classes_held_out))
        values |= _affine(noise, t, other_noise, held_out, *means)
        values["linear_excess"] = values["rho"] - values["rho_affine"]

    if noise is None:
        lacks["jacobian_alignment"] = "the noise behind the samples"
    else:
        values["jacobian_alignment"] = jacobian_alignment(mean_jacobian(noise, s), mean_jacobian(noise, t))

    if held_out is None or len(held_out) <= d:
        lacks["cosine_whitened"] = f"more than {d} teacher samples beside these (d)"
    else:
        axes = whitening(held_out, WHITENED_VARIANCE)
        values["cosine_whitened"] = cosine(s @ axes, t @ axes)

    sets = [] if held_out is None else [held_out[i : i + n] for i in range(0, len(held_out) - n + 1, n)]
    if len(sets) < 2:
        # Half of the student's samples against the teacher's of the other half's noise: independent, too.
        half = n // 2
        first, second = slice(0, half), slice(half, 2 * half)
        values |= _distribution([(s[first], t[second]), (s[second], t[first])], [t[first], t[second]])
    else:
        values |= _distribution([(s, points) for points in sets], sets)

    readings = dict(READINGS)
    if classes is not None:
        readings |= CLASS_READINGS
        of_classes = _of_classes(t, s, np.asarray(classes))
        values |= of_classes
        if not of_classes:
            lacks |= dict.fromkeys(CLASS_READINGS, "two noises of one class: draw from fewer classes, or more noises")

    lacks |= {name: "samples that vary" for name, value in values.items() if np.isnan(value)}
    return pd.DataFrame(
        {
            "metric": list(readings),
            "value": [values.get(name, np.nan) for name in readings],
            "reads": list(readings.values()),
            "lacks": [lacks.get(name, "") for name in readings],
        }
    )


def _check_shapes(
    teacher: Array, z: Array | None, doubled: npt.ArrayLike | None, z_held_out: Array | None, held_out: Array | None
) -> None:
    of_pairs = (("z", z), ("doubled", doubled))
    for name, array in of_pairs:
        if array is not None and np.shape(array) != teacher.shape:
            raise ValueError(f"{name} has shape {np.shape(array)}, but the teacher's samples {teacher.shape}")
    if held_out is not None and held_out.shape[1] != teacher.shape[1]:
        raise ValueError(f"held-out samples have {held_out.shape[1]} coordinates, the others {teacher.shape[1]}")
    if z_held_out is not None and (held_out is None or z_held_out.shape != held_out.shape):
        raise ValueError("z_held_out must be the noise of teacher_held_out, of the same shape")


def _of_pairs(t: Array, s: Array) -> dict[str, float]:
    n, d = t.shape
    costs = matching_costs(s, t)
    ranks = pair_ranks(s, t)
    # Seeds as in the step metrics: projections and nulls are part of the instrument.
    null = dimension_matched_null(d, n, seed=derive_seed(SEED, "copying", "null"))
    shuffled = t[shuffled_pairing(n, derive_seed(SEED, "copying", "shuffle"))]
    return {
        "rho": relative_pair_error(s, t),
        "rho_shuffled": relative_pair_error(s, shuffled),
        "delta_e": pairing_inefficiency(costs),
        "delta_e_null": null.delta_e,
        "retrieval_at_1": retrieval_at_k(ranks, 1),
        "retrieval_null": null.retrieval_at_1,
        "normalised_rank": normalised_rank(ranks),
        "normalised_excess_cost": normalised_excess_cost(costs),
        "assignment_pairs": float(min(n, ASSIGNMENT_LIMIT)),
        "cosine": cosine(s, t),
        "scale_ratio": scale_ratio(s, t),
    }


def _of_classes(t: Array, s: Array, classes: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return the metrics of ``CLASS_READINGS``; none if no class has two pairs."""
    if len(np.unique(classes)) == len(classes):
        return {}
    return {
        "rho_within_class": pair_error_within_groups(s, t, classes),
        "rho_same_class": same_group_error(t, classes),
    }


def _affine(
    z: Array, t: Array, z_held_out: Array, held_out: Array, means: Array | float, means_held_out: Array | float
) -> dict[str, float]:
    """Return what the best affine map reads, with what is known of each sample's mean without its noise."""
    about_means = held_out - means_held_out
    affine = fit_affine(z_held_out, about_means)
    matched = match_variance(affine, z_held_out, about_means)
    return {
        "rho_affine": relative_pair_error(means + affine(z), t),
        "rho_affine_matched": relative_pair_error(means + matched(z), t),
    }


def _distribution(apart: Sequence[tuple[Array, Array]], sets: Sequence[Array]) -> dict[str, float]:
    """Return the mean distances of pairs of sets [n, d], and what independent teacher sets read."""
    directions = fixed_projections(sets[0].shape[1], PROJECTIONS, derive_seed(SEED, "copying", "projections"))
    floors = reference_floors([sample_set(points, directions) for points in sets])
    own = mean_distances([(sample_set(a, directions), sample_set(b, directions)) for a, b in apart])
    gate = gate_ratio(own, floors)
    return {
        "sliced_w2": own.sliced_w2,
        "sliced_w2_floor": floors.sliced_w2,
        "energy": own.energy,
        "energy_floor": floors.energy,
        "gate_ratio": gate,
        "converged": float(gate <= GATE),
    }
