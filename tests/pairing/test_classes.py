"""Classes of noises: each from a random stream of its own, the same for teacher and student."""

from __future__ import annotations

import numpy as np
import pytest

from dmdpipe.copying.standalone import CLASS_READINGS, READINGS, measure_pairs
from dmdpipe.pairing.classes import Classes


def test_a_class_depends_on_its_own_noise_alone() -> None:
    drawn = Classes(1_000, drawn_from=50)
    many = drawn.of_noises(400, 3, "paired")
    assert many[:7].tolist() == drawn.of_noises(7, 3, "paired").tolist()
    for other in (drawn.of_noises(400, 4, "paired"), drawn.of_noises(400, 3, "held_out")):
        assert (many == other).mean() < 0.2
    # Paired and held-out noises have the same classes; 400 draws miss one of 50 in about one seed of 60.
    assert set(many) == set(drawn.of_noises(400, 3, "held_out")) and len(set(many)) == 50
    assert set(many) != set(drawn.of_noises(400, 4, "paired"))


def test_all_classes_are_as_likely() -> None:
    counts = np.bincount(Classes(10).of_noises(5_000, 0, "paired"), minlength=10)
    # Five standard deviations of a binomial count.
    assert abs(counts - 500).max() < 5 * np.sqrt(5_000 * 0.1 * 0.9)


def test_one_class_is_no_draw() -> None:
    assert Classes(10, label=7).of_noises(3, 0, "paired").tolist() == [7, 7, 7]


def by_hand(student: np.ndarray, teacher: np.ndarray, classes: np.ndarray) -> tuple[float, float]:
    """The same two numbers as sums over pairs of rows."""
    costs = ((student[:, None] - teacher[None]) ** 2).sum(axis=2)
    own = ((teacher[:, None] - teacher[None]) ** 2).sum(axis=2)
    same = (classes[:, None] == classes[None]) & ~np.eye(len(classes), dtype=bool)
    rows = same.any(axis=1)
    within = np.mean([costs[i][same[i]].mean() for i in np.flatnonzero(rows)])
    teachers = np.mean([own[i][same[i]].mean() for i in np.flatnonzero(rows)])
    return costs.diagonal()[rows].mean() / within, teachers / own[~np.eye(len(own), dtype=bool)].mean()


def test_costs_within_classes_are_their_sums() -> None:
    rng = np.random.default_rng(0)
    classes = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])  # the only one of class 2 has none to be held against
    teacher = rng.normal(size=(10, 3)) + 5 * classes[:, None]
    student = teacher + rng.normal(size=(10, 3))
    value = measure_pairs(teacher, student, classes=classes).set_index("metric")["value"]
    assert list(value.index) == [*READINGS, *CLASS_READINGS]
    within, same = by_hand(student, teacher, classes)
    assert value["rho_within_class"] == pytest.approx(within, rel=1e-9)
    assert value["rho_same_class"] == pytest.approx(same, rel=1e-9)


def test_a_student_that_keeps_the_class_alone_reads_1_within_and_little_over_all() -> None:
    rng = np.random.default_rng(1)
    classes = rng.integers(4, size=1_000)
    centres = 5 * rng.normal(size=(4, 6))[classes]
    teacher, student = (centres + rng.normal(size=(1_000, 6)) for _ in range(2))
    value = measure_pairs(teacher, student, classes=classes).set_index("metric")["value"]
    assert value["rho_within_class"] == pytest.approx(1, abs=0.1)
    assert value["rho"] == pytest.approx(value["rho_same_class"], rel=0.1) and value["rho"] < 0.2
    copied = measure_pairs(teacher, teacher, classes=classes).set_index("metric")["value"]
    assert copied["rho_within_class"] == 0


def test_the_affine_baseline_knows_the_class_as_the_student_does() -> None:
    rng = np.random.default_rng(3)
    z, z_held_out = rng.normal(size=(40, 3)), rng.normal(size=(4_000, 3))
    classes, classes_held_out = rng.integers(4, size=40), rng.integers(4, size=4_000)
    classes[0] = 4  # which no held-out noise has
    centres, weight = 5 * rng.normal(size=(5, 3)), rng.normal(size=(3, 3))
    teacher, held_out = z @ weight + centres[classes], z_held_out @ weight + centres[classes_held_out]
    given = {"z": z, "z_held_out": z_held_out, "teacher_held_out": held_out}
    told = measure_pairs(
        teacher[1:], teacher[1:], **given | {"z": z[1:]}, classes=classes[1:], classes_held_out=classes_held_out
    )
    untold = measure_pairs(teacher[1:], teacher[1:], **given | {"z": z[1:]}).set_index("metric")["value"]
    told = told.set_index("metric")["value"]
    assert told["rho_affine"] < 0.005 < 0.1 < untold["rho_affine"]
    assert told["rho_affine_matched"] < 0.005 and told["linear_excess"] == -told["rho_affine"]
    unknown = measure_pairs(teacher, teacher, **given, classes=classes, classes_held_out=classes_held_out)
    value = unknown.set_index("metric")["value"]["rho_affine"]
    # One of forty is off by its whole class.
    offset = ((centres[4] - held_out.mean(axis=0)) ** 2).sum() / 40
    costs = ((teacher[:, None] - teacher[None]) ** 2).sum(axis=2)
    assert value == pytest.approx(offset / costs[~np.eye(40, dtype=bool)].mean(), rel=0.3)


def test_without_two_noises_of_a_class_it_says_what_is_missing() -> None:
    points = np.random.default_rng(2).normal(size=(2, 5, 3))
    table = measure_pairs(*points, classes=np.arange(5)).set_index("metric")
    assert "fewer classes" in table["lacks"]["rho_within_class"] and np.isnan(table["value"]["rho_same_class"])
    assert set(measure_pairs(*points)["metric"]) == set(READINGS)
