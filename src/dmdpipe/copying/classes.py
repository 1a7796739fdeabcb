"""Metrics of a student that is asked for classes: within each class, where having the same class is no copying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.copying.baselines import class_means, fit_affine, match_variance
from dmdpipe.copying.distances import Array
from dmdpipe.copying.distribution import (
    Distances,
    SampleSet,
    gate_ratio,
    mean_distances,
    reference_floors,
    sample_set,
)
from dmdpipe.copying.nulls import shuffled_within
from dmdpipe.copying.pairing_metrics import (
    matching_costs,
    pair_error_within_groups,
    pair_ranks,
    pairing_inefficiency,
    relative_pair_error,
    retrieval_at_k,
    same_group_error,
)

if TYPE_CHECKING:
    import numpy.typing as npt

Groups = list[tuple["npt.NDArray[np.intp]", list[SampleSet]]]


@dataclass(frozen=True)
class WithinClasses:
    """What a snapshot is held against, class by class.

    Attributes:
        classes: of the pairs [N].
        teacher: T(z) [N, d].
        shuffled: which row each has for its partner in the null [N]: another one of its class.
        groups: for each class the rows of its pairs, and its part of each independent teacher set.
        floors: the distances between these parts, averaged over classes by their numbers of pairs.
        projections: directions of the sliced distance.
        constants: baselines and nulls, by name.
    """

    classes: npt.NDArray[np.int64]
    teacher: Array
    shuffled: npt.NDArray[np.intp]
    groups: Groups
    floors: Distances
    projections: Array
    constants: dict[str, float]

    def read(self, student: Array) -> dict[str, float]:
        """Return the metrics within classes of one finite snapshot [N, d], by name."""
        own = [sample_set(student[rows], self.projections) for rows, _ in self.groups]
        distances = _averaged(
            self.groups,
            [mean_distances(list(product([x], sets))) for x, (_, sets) in zip(own, self.groups, strict=True)],
        )
        return {
            "rho_within_class": pair_error_within_groups(student, self.teacher, self.classes),
            "rho_within_class_shuffled": pair_error_within_groups(student, self.teacher[self.shuffled], self.classes),
            "gate_ratio_within_class": gate_ratio(distances, self.floors),
        }


def within_classes(arrays: Mapping[str, npt.NDArray], projections: Array, seed: int) -> WithinClasses:
    """Return the instrument for students that are asked for classes.

    Args:
        arrays: as ``dmdpipe.copying.measure.measure`` is given them, the classes among them.
        projections: directions of the sliced distance [P, d].
        seed: of the shuffle.
    """
    classes, teacher = arrays["classes"], arrays["teacher"]
    groups = _groups(classes, arrays["reference"], arrays["classes_reference"], projections)
    return WithinClasses(
        classes=classes,
        teacher=teacher,
        shuffled=shuffled_within(classes, seed),
        groups=groups,
        floors=_averaged(groups, [reference_floors(sets) for _, sets in groups]),
        projections=projections,
        constants={"rho_same_class": same_group_error(teacher, classes)} | _affine(arrays) | _partners(arrays),
    )


def _groups(
    classes: npt.NDArray[np.int64], reference: Array, of_reference: npt.NDArray[np.int64], projections: Array
) -> Groups:
    """Return the groups of ``WithinClasses``; a class that has not two samples in each set is left out."""
    groups: Groups = []
    for one in np.unique(classes):
        rows = np.flatnonzero(classes == one)
        parts = [points[own == one] for points, own in zip(reference, of_reference, strict=True)]
        if min(len(rows), *map(len, parts)) > 1:
            groups.append((rows, [sample_set(points, projections) for points in parts]))
    return groups


def _averaged(groups: Groups, distances: Sequence[Distances]) -> Distances:
    if not groups:
        return Distances(np.nan, np.nan)
    shares = [len(rows) for rows, _ in groups]
    names = ("sliced_w2", "energy")
    return Distances(
        *(float(np.average([getattr(each, name) for each in distances], weights=shares)) for name in names)
    )


def _affine(arrays: Mapping[str, npt.NDArray]) -> dict[str, float]:
    """Return what the best affine map reads that knows the mean of each class."""
    z, teacher, noise, held_out = (arrays[name] for name in ("z", "teacher", "noise_held_out", "teacher_held_out"))
    means, means_held_out = class_means(held_out, arrays["classes"], arrays["classes_held_out"])
    about_means = held_out - means_held_out
    affine = fit_affine(noise, about_means)
    linear = means + affine(z)
    matched = means + match_variance(affine, noise, about_means)(z)
    return {
        "rho_affine": relative_pair_error(linear, teacher),
        "rho_affine_matched": relative_pair_error(matched, teacher),
        "rho_affine_within_class": pair_error_within_groups(linear, teacher, arrays["classes"]),
    }


def _partners(arrays: Mapping[str, npt.NDArray]) -> dict[str, float]:
    """Return what ΔE and retrieval read of other teacher samples of the same classes, which copy nothing else.

    A class with fewer independent samples than pairs keeps as many of its pairs as there are.
    """
    classes, teacher = arrays["classes"], arrays["teacher"]
    pool, of_pool = arrays["reference"].reshape(-1, teacher.shape[1]), arrays["classes_reference"].ravel()
    kept: list[int] = []
    partners: list[int] = []
    for one in np.unique(classes):
        rows, others = np.flatnonzero(classes == one), np.flatnonzero(of_pool == one)
        count = min(len(rows), len(others))
        kept += rows[:count].tolist()
        partners += others[:count].tolist()
    if len(kept) < 2:
        return {"delta_e_same_class": np.nan, "retrieval_same_class": np.nan}
    s, t = pool[partners], teacher[kept]
    return {
        "delta_e_same_class": pairing_inefficiency(matching_costs(s, t)),
        "retrieval_same_class": retrieval_at_k(pair_ranks(s, t), 1),
    }
