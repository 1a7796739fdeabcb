"""Metrics of any pairs: those of the step `metrics` on the same arrays, and a reason wherever there is none."""

from __future__ import annotations

import numpy as np
import pytest

from dmdpipe.copying.measure import measure
from dmdpipe.copying.standalone import READINGS, measure_pairs

N, D, SETS = 60, 3, 4
RNG = np.random.default_rng(3)
MAP = RNG.standard_normal((D, D))


def teacher_of(z):
    return np.tanh(z @ MAP)


Z, Z_HELD_OUT = RNG.standard_normal((N, D)), RNG.standard_normal((SETS * N, D))
TEACHER, HELD_OUT = teacher_of(Z), teacher_of(Z_HELD_OUT)
STUDENT = TEACHER + 0.2 * RNG.standard_normal((N, D))
DOUBLED = TEACHER + 0.01 * RNG.standard_normal((N, D))
EVERYTHING = {"z": Z, "doubled": DOUBLED, "z_held_out": Z_HELD_OUT, "teacher_held_out": HELD_OUT}
OF_PAIRS = {
    "rho", "rho_shuffled", "delta_e", "delta_e_null", "retrieval_at_1", "retrieval_null", "normalised_rank",
    "normalised_excess_cost", "assignment_pairs", "cosine", "scale_ratio",
    "sliced_w2", "sliced_w2_floor", "energy", "energy_floor", "gate_ratio", "converged",
}  # fmt: skip


def values(table):
    return dict(zip(table["metric"], table["value"], strict=True))


def missing(table):
    assert ((table["lacks"] == "") == table["value"].notna()).all()
    return {row.metric: row.lacks for row in table.itertuples() if row.lacks}


def test_all_that_the_step_measures_is_the_same_here():
    table = measure_pairs(TEACHER, STUDENT, **EVERYTHING)
    assert list(table["metric"]) == list(READINGS) and not missing(table)
    of_step = measure(
        z=Z,
        teacher=TEACHER,
        student=STUDENT[None],
        generator_step=[0],
        teacher_doubled=DOUBLED,
        teacher_rotated=TEACHER,
        teacher_held_out=HELD_OUT,
        reference=HELD_OUT.reshape(SETS, N, D),
        noise_held_out=Z_HELD_OUT,
        data_held_out=HELD_OUT,
        training=HELD_OUT,
    )
    expected = values(of_step)
    for metric, value in values(table).items():
        assert value == pytest.approx(expected[metric], rel=1e-12), metric


def test_a_copy_and_a_stranger_read_as_such():
    copy = values(measure_pairs(TEACHER, TEACHER, **EVERYTHING))
    assert copy["rho"] == 0 and copy["cosine"] == pytest.approx(1) and copy["retrieval_at_1"] == 1
    assert copy["delta_e"] == pytest.approx(0, abs=1e-12) and copy["converged"] == 1
    stranger = values(measure_pairs(TEACHER, teacher_of(RNG.standard_normal((N, D))), **EVERYTHING))
    assert stranger["rho"] == pytest.approx(1, abs=0.3) and stranger["converged"] == 1
    apart = values(measure_pairs(TEACHER, TEACHER + 3, **EVERYTHING))
    assert apart["converged"] == 0 and apart["gate_ratio"] > 5


def test_an_affine_teacher_has_an_affine_baseline_of_zero():
    linear = {"z": Z, "z_held_out": Z_HELD_OUT, "teacher_held_out": Z_HELD_OUT @ MAP + 1}
    read = values(measure_pairs(Z @ MAP + 1, STUDENT, **linear))
    assert read["rho_affine"] == pytest.approx(0, abs=1e-12)
    assert read["linear_excess"] == pytest.approx(read["rho"], rel=1e-9)


def test_pairs_alone_say_what_the_rest_needs():
    table = measure_pairs(TEACHER, STUDENT)
    assert set(READINGS) - OF_PAIRS == set(missing(table))
    everything = values(measure_pairs(TEACHER, STUDENT, **EVERYTHING))
    same = OF_PAIRS - {"sliced_w2", "sliced_w2_floor", "energy", "energy_floor", "gate_ratio", "converged"}
    assert all(value == everything[name] for name, value in values(table).items() if name in same)
    few = measure_pairs(TEACHER, STUDENT, z=Z, z_held_out=Z_HELD_OUT[:5], teacher_held_out=HELD_OUT[:5])
    lacks = missing(few)
    assert "6 pairs" in lacks["rho_affine"] and "not 5" in lacks["rho_affine"]
    assert "cosine_whitened" not in lacks and "rho_floor" in lacks


def test_pairs_alone_tell_a_student_of_another_distribution():
    """Halved: a copy is as far from the other half as the teacher's halves are from each other."""
    assert values(measure_pairs(TEACHER, TEACHER))["gate_ratio"] == pytest.approx(1)
    wider = values(measure_pairs(TEACHER, 3 * TEACHER))
    assert wider["converged"] == 0
    read = measure_pairs(TEACHER[:41], STUDENT[:41])  # of an odd number, one is left out
    assert values(read)["energy"] == values(measure_pairs(TEACHER[:40], STUDENT[:40]))["energy"]


def test_a_collapsed_student_has_no_jacobian_and_says_so():
    lacks = missing(measure_pairs(TEACHER, np.zeros((N, D)), **EVERYTHING))
    assert lacks["jacobian_alignment"] == "samples that vary"


@pytest.mark.parametrize(
    "given",
    [
        {"z": Z[:-1]},
        {"doubled": TEACHER[:, :2]},
        {"teacher_held_out": HELD_OUT[:, :2]},
        {"z_held_out": Z_HELD_OUT},
        {"z_held_out": Z_HELD_OUT[:-1], "teacher_held_out": HELD_OUT},
    ],
)
def test_shapes_that_disagree_are_refused(given):
    with pytest.raises(ValueError):
        measure_pairs(TEACHER, STUDENT, **given)
