"""Copying within classes, of planted students: one that copies, one that keeps its class alone, one that does not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from dmdpipe.copying.measure import SPECIAL_METRICS, measure
from dmdpipe.copying.nulls import shuffled_within
from dmdpipe.copying.pairing_metrics import pair_error_within_groups, relative_pair_error

N, D, C = 600, 4, 5
OF_CLASSES = {name for name, known in SPECIAL_METRICS.items() if known == "classes"}
rng = np.random.default_rng(0)
CENTRES = 2 * rng.standard_normal((C, D))
TURNED = np.linalg.qr(rng.standard_normal((D, D)))[0]


def teacher_map(z, classes):
    """A linear map within each class, and not the identity."""
    return CENTRES[classes] + 0.5 * z @ TURNED


def instrument(seed=1):
    own = np.random.default_rng(seed)
    z, held_out, reference = (own.standard_normal(shape) for shape in ((N, D), (2 * N, D), (3, N, D)))
    classes, of_held_out, of_reference = (own.integers(0, C, shape) for shape in (N, 2 * N, (3, N)))
    t = teacher_map(z, classes)
    return {
        "z": z,
        "teacher": t,
        "generator_step": np.array([0]),
        "teacher_doubled": t + 1e-6,
        "teacher_rotated": teacher_map(z[:, ::-1], classes),
        "teacher_held_out": teacher_map(held_out, of_held_out),
        "reference": teacher_map(reference, of_reference),
        "noise_held_out": held_out,
        "data_held_out": teacher_map(own.standard_normal((N, D)), own.integers(0, C, N)),
        "training": teacher_map(own.standard_normal((N, D)), own.integers(0, C, N)),
        "classes": classes,
        "classes_held_out": of_held_out,
        "classes_reference": of_reference,
    }


def read(student, seed=1, **changed):
    arrays = instrument(seed) | {"student": student[None]} | changed
    return measure(**arrays).set_index("metric")["value"]


def test_a_student_that_keeps_its_class_alone_copies_nothing_within_it():
    arrays = instrument()
    student = teacher_map(np.random.default_rng(9).standard_normal((N, D)), arrays["classes"])
    reading = read(student)
    assert reading["rho_within_class"] == pytest.approx(1, abs=0.1)
    assert reading["rho"] < 0.3
    # The nulls of the class say how much of that is the class.
    assert reading["rho"] == pytest.approx(reading["rho_same_class"], abs=0.03)
    assert reading["delta_e"] == pytest.approx(reading["delta_e_same_class"], abs=0.05)
    assert reading["retrieval_at_1"] == pytest.approx(reading["retrieval_same_class"], abs=0.03)
    assert reading["converged"] == 1


def test_a_copy_reads_0_within_classes_and_over_all():
    arrays = instrument()
    reading = read(arrays["teacher"] + 1e-3)
    assert max(reading["rho_within_class"], reading["rho"]) < 1e-4
    assert reading["rho_within_class_shuffled"] == pytest.approx(1, abs=0.1)
    assert reading["converged"] == 1


def test_partners_are_permuted_within_the_class_and_the_null_is_1_in_the_mean():
    readings = [read(instrument(seed)["teacher"], seed)["rho_within_class_shuffled"] for seed in range(2, 14)]
    assert np.mean(readings) == pytest.approx(1, abs=0.03)
    classes = np.array([3, 1, 3, 3, 7, 1, 3])
    permutation = shuffled_within(classes, 5)
    assert sorted(permutation) == list(range(7)) and (classes[permutation] == classes).all()
    assert [row for row, partner in enumerate(permutation) if row == partner] == [4]


def test_a_student_that_heeds_no_class_is_over_the_gate():
    """It has the distribution of all classes together: the gate over all does not see it."""
    arrays = instrument()
    own = np.random.default_rng(9)
    student = teacher_map(own.standard_normal((N, D)), own.integers(0, C, N))
    without = {name: None for name in ("classes", "classes_held_out", "classes_reference")}
    assert read(student, **without)["converged"] == 1
    reading = read(student)
    assert reading["converged"] == 0 and reading["gate_ratio"] == reading["gate_ratio_within_class"] > 4
    assert arrays["classes"].max() == C - 1


def test_the_affine_map_knows_the_means_of_classes():
    """T is affine within each class: a map without their means explains less, one with them everything."""
    student = instrument()["teacher"] + 1e-3
    assert read(student)["rho_affine_within_class"] < 1e-2 and read(student)["rho_affine"] < 1e-2
    without = {name: None for name in ("classes", "classes_held_out", "classes_reference")}
    assert read(student, **without)["rho_affine"] > 0.3
    assert not OF_CLASSES & set(read(student, **without).index) and set(read(student).index) >= OF_CLASSES


def test_costs_within_a_class_are_means_over_its_other_rows():
    """Written out, row by row; a row that is alone in its class does not count."""
    own = np.random.default_rng(4)
    classes = np.array([0, 2, 0, 1, 2, 0])
    s, t = own.standard_normal((2, 6, 3))
    pair, random = [], []
    for i in range(6):
        others = [j for j in range(6) if j != i and classes[j] == classes[i]]
        if others:
            pair.append(((s[i] - t[i]) ** 2).sum())
            random.append(np.mean([((s[i] - t[j]) ** 2).sum() for j in others]))
    assert_allclose(pair_error_within_groups(s, t, classes), np.mean(pair) / np.mean(random))
    assert_allclose(pair_error_within_groups(s, t, np.zeros(6)), relative_pair_error(s, t))
    assert np.isnan(pair_error_within_groups(s, t, np.arange(6)))


def test_a_student_that_diverged_has_no_reading_within_classes():
    reading = read(np.full((N, D), np.nan))
    assert np.isnan(reading["rho_within_class"]) and reading["converged"] == 0
    assert np.isfinite(reading["rho_same_class"])
