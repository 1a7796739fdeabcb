"""Planted pairs come out of the metrics, the tables and the verdicts as what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from planted_pairs import (
    Bank,
    correlation_of,
    measured,
    noise_bank,
    pairs,
    quarter_turn,
    reading,
    student_noise,
    teacher,
)
from planted_studies import labels

from dmdpipe.copying.measure import measure
from dmdpipe.evidence.intervals import student_t_interval
from dmdpipe.evidence.readings import read_criterion
from dmdpipe.evidence.results import AGGREGATE, results_table, seed_pair_errors
from dmdpipe.evidence.verdicts import evaluate_claims
from dmdpipe.specs.claims import Claim, Claims, Criterion

SEEDS = 8


def over_seeds(d: int, n: int, truth: dict[str, float], seeds: int = SEEDS) -> pd.DataFrame:
    """The readings of independent seeds, each with a noise bank of its own: one row a seed."""
    rng = np.random.default_rng(17)
    return pd.DataFrame([reading(measured(noise_bank(rng, d, n), rng, truth, seed=s)) for s in range(seeds)])


def assert_reads(values: pd.Series, truth: float, bias: float) -> None:
    """The truth lies within four standard errors of the mean, give or take the bias of a finite N."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - truth) < 4 * error + bias, (values.mean(), error, truth)


@pytest.mark.parametrize("d", [2, 16])
@pytest.mark.parametrize(
    "truth",
    [
        {"rho": 0.0, "rho_affine": 0.3, "rho_floor": 0.0},
        {"rho": 0.2, "rho_rotated": 0.9, "rho_affine": 0.1, "rho_floor": 0.05},
        {"rho": 0.5, "rho_rotated": 0.4, "rho_affine": 0.5, "rho_floor": 0.01},
        {"rho": 1.0, "rho_rotated": 0.2, "rho_affine": 0.0, "rho_floor": 0.2},
        {"rho": 1.3, "rho_rotated": 1.0, "rho_affine": 0.1, "rho_floor": 0.01},
    ],
    ids=["copy", "near", "between", "rotated", "anti-paired"],
)
def test_planted_errors_are_read_as_planted(d: int, truth: dict[str, float]) -> None:
    found = over_seeds(d, 300, truth)
    for metric, value in truth.items():
        assert_reads(found[metric], value, bias=0.01)
    assert_reads(found["rho_shuffled"], 1.0, bias=0.01)
    assert (found["gate_ratio"] < 2).all()


def test_a_planted_rotation_is_read_from_samples() -> None:
    """A linear student A = T·Q: both ρ follow from the traces of Q and of Q·J⁻¹, of any Q."""
    d, n = 4, 800
    rng = np.random.default_rng(3)
    bank = noise_bank(rng, d, n)
    q, _ = np.linalg.qr(rng.standard_normal((d, d)))
    found = reading(measured(bank, rng, {}, student=bank.z @ q.T))
    turn = quarter_turn(np.eye(d)).T
    assert found["rho"] == pytest.approx(1 - np.trace(q) / d, abs=0.05)
    assert found["rho_rotated"] == pytest.approx(1 - np.trace(q @ turn.T) / d, abs=0.05)
    # The mean Jacobians are Q and the identity, each with an error of √(d·d/N).
    assert found["jacobian_alignment"] == pytest.approx(np.trace(q) / d, abs=0.15)
    exact = reading(measured(bank, rng, {}, student=quarter_turn(bank.z)))
    assert exact["rho_rotated"] == 0 and exact["rho"] == pytest.approx(1, abs=0.02)


def ring(
    rng: np.random.Generator, n: int, kappa: float, shares: np.ndarray | None = None
) -> tuple[dict[str, Any], np.ndarray]:
    """Pairs on a ring of eight modes that agree on the mode with planted κ; the student uses modes in these shares."""
    modes, spread = 8, 0.02
    angles = 2 * np.pi * np.arange(modes) / modes
    centres = np.column_stack([np.cos(angles), np.sin(angles)])

    def sample(which: np.ndarray) -> np.ndarray:
        return centres[which] + spread * rng.standard_normal((*which.shape, 2))

    own = rng.integers(modes, size=n)
    other = rng.choice(modes, size=n, p=shares)
    agrees = rng.random(n) < kappa
    bank = noise_bank(rng, 2, n)
    given = {
        "z": bank.z,
        "teacher": sample(own),
        "student": sample(np.where(agrees, own, other))[None],
        "generator_step": np.array([100]),
        "teacher_doubled": sample(own),
        "teacher_rotated": sample(rng.permutation(own)),
        "teacher_held_out": sample(rng.integers(modes, size=len(bank.held_out))),
        "reference": sample(rng.integers(modes, size=(3, n))),
        "noise_held_out": bank.held_out,
        "data_held_out": sample(rng.integers(modes, size=n)),
        "training": sample(rng.integers(modes, size=n)),
        "modes": centres,
        "projections": 8,
    }
    return given, centres


@pytest.mark.parametrize("kappa", [0.0, 0.3, 0.9, 1.0])
def test_planted_mode_agreement_is_read_as_planted(kappa: float) -> None:
    rng = np.random.default_rng(5)
    found = pd.DataFrame([reading(measure(**ring(rng, 300, kappa)[0])) for _ in range(SEEDS)])
    assert_reads(found["mode_agreement"], kappa, bias=1e-3)
    # In its mode a student is independent of T, up to which C_pair is (1 − κ)·C_rand.
    within = 2 * 0.02**2
    assert_reads(found["rho"], (within + 1 - kappa) / (within + 1), bias=5e-3)
    # Two draws of 300 fill eight modes unequally: by chance one may be over the gate.
    assert found["gate_ratio"].median() < 1.5


def studies_of(point: dict[str, Any], tables: list[pd.DataFrame]) -> pd.DataFrame:
    return results_table("s", "test", [({**point, "seed": s}, one) for s, one in enumerate(tables)], {})


def claim(metric: str, predicts: str, threshold: float, statistic: str = "value") -> Claims:
    number = {"metric": metric} if statistic == "value" else {"metric": metric, "against": "d"}
    one = Criterion.model_validate(
        {"name": "n", "study": "s", "statistic": {statistic: number}}
        | {"predicts": predicts, "threshold": threshold, "because": "b"}
    )
    return Claims(claims=(Claim(id="C", title="t", statement="s", level_of_evidence="l", criteria=(one,)),))


def verdict(results: pd.DataFrame, *one: Any) -> tuple[str, str]:
    (found,) = evaluate_claims(claim(*one), results)
    return found.verdict, found.findings[0].cause


def collapsed(bank: Bank, rng: np.random.Generator) -> dict[str, Any]:
    """All of a student's samples near the teacher's mean, in the teacher's own pairing."""
    return pairs(bank, rng, {}, student=0.05 * bank.z)


def few_modes(bank: Bank, rng: np.random.Generator) -> dict[str, Any]:
    """Two of eight modes, half of them in the teacher's pairing."""
    return ring(rng, len(bank.z), 0.5, shares=np.array([0.5, 0.5, 0, 0, 0, 0, 0, 0]))[0]


@pytest.mark.parametrize("student", [collapsed, few_modes])
def test_a_student_that_has_not_converged_decides_nothing_and_says_so(student: Any) -> None:
    rng = np.random.default_rng(6)
    tables = [measure(**student(noise_bank(rng, 2, 300), rng)) for _ in range(SEEDS)]
    results = studies_of(labels("ring", 2), tables)
    for predicts, threshold in (("below", 5.0), ("above", -5.0), ("below", -5.0)):
        assert verdict(results, "rho", predicts, threshold) == ("inconclusive", "not converged")
    kept = results[(results["metric"] == "rho") & (results["seed"] >= 0)]
    assert len(kept) == SEEDS and kept["value"].notna().all() and not kept["converged"].any()


def test_an_independent_student_does_not_copy_whatever_the_metric() -> None:
    rng = np.random.default_rng(7)
    tables = [measured(noise_bank(rng, 4, 200), rng, {"rho": 1.0}, seed=s) for s in range(SEEDS)]
    results = studies_of(labels("digits-2x2", 4), tables)
    for metric in ("rho", "delta_e", "rho_rotated", "rho_shuffled"):
        assert verdict(results, metric, "below", 0.5)[0] == "refuted"
    assert verdict(results, "retrieval_at_1", "above", 0.5)[0] == "refuted"
    assert verdict(results, "cosine", "above", 0.5)[0] == "refuted"


DIMENSIONS = (4, 16, 64, 256, 784)


@pytest.fixture(scope="module")
def weakly_correlated() -> pd.DataFrame:
    """Students with a correlation of 0.05 in every coordinate, at d = 4…784, as in ``dimension_matched_null``."""
    rng = np.random.default_rng(8)
    cells = [
        ({**labels(f"d{d}", d), "seed": seed}, measured(noise_bank(rng, d, 64, 2), rng, {"rho": 0.95}))
        for d in DIMENSIONS
        for seed in range(3)
    ]
    return results_table("s", "test", cells, {})


def test_a_constant_weak_correlation_is_copying_to_delta_e_alone(weakly_correlated: pd.DataFrame) -> None:
    """More dimensions, more copying? ρ says no, and a criterion about ΔE, a reconstruction, would say yes."""
    assert verdict(weakly_correlated, "rho", "below", -0.025, "slope")[0] != "supported"
    assert verdict(weakly_correlated, "rho", "below", 0.5)[0] == "refuted"
    assert verdict(weakly_correlated, "delta_e", "below", -0.025, "slope")[0] == "supported"
    at_readout = weakly_correlated[weakly_correlated["seed"] == AGGREGATE].pivot(
        index="d", columns="metric", values="value"
    )
    assert (at_readout["rho"] - 0.95).abs().max() < 0.05
    assert at_readout["delta_e"].diff().max() < 0.05  # it falls, give or take three seeds of 64 pairs
    assert at_readout["delta_e"].loc[4] - at_readout["delta_e"].loc[784] > 0.4
    # Beside it stands what the null reads at the same d and N, and it says the same.
    assert (at_readout["delta_e"] - at_readout["delta_e_null"]).abs().max() < 0.15


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("copies", [True, False])
def test_a_memorizing_teacher_is_neither_copied_nor_not_copied_by_that(share: float, copies: bool) -> None:
    """Training points make up this share of its samples: ρ reads the pairing, and the gate the distribution."""
    n, d = 300, 4
    rng = np.random.default_rng(9)
    train = rng.standard_normal((40, d))

    def hoarding(samples: np.ndarray) -> np.ndarray:
        stolen = train[rng.integers(len(train), size=len(samples))] + 0.01 * rng.standard_normal(samples.shape)
        return np.where(rng.random((len(samples), 1)) < share, stolen, samples)

    readings = []
    for _ in range(4):
        bank = noise_bank(rng, d, n)
        t = hoarding(bank.z)
        own = t + 0.01 * rng.standard_normal(t.shape) if copies else hoarding(rng.standard_normal((n, d)))
        given = pairs(bank, rng, {}, student=own) | {"teacher": t, "teacher_doubled": t, "teacher_rotated": t}
        given["reference"] = np.stack([hoarding(noise) for noise in bank.reference])
        readings.append(reading(measure(**given)))
    found = pd.DataFrame(readings)
    assert_reads(found["rho"], 0.0 if copies else 1.0, bias=0.02)
    assert (found["gate_ratio"] < 2).all()


# What is planted is what the closed forms say


def test_the_students_noise_is_standard_normal_and_the_teacher_has_unit_variance() -> None:
    rng = np.random.default_rng(10)
    z = rng.standard_normal((200_000, 2))
    w = student_noise(z, rng, 0.5, 0.6, 0.4)
    np.testing.assert_allclose(np.cov(w.T), np.eye(2), atol=0.02)
    np.testing.assert_allclose(np.cov(teacher(w, 0.4).T), np.eye(2), atol=0.03)


def test_what_no_student_can_read_is_refused() -> None:
    with pytest.raises(ValueError, match="at once"):
        student_noise(np.zeros((3, 2)), np.random.default_rng(0), 0.1, 0.1)
    with pytest.raises(ValueError, match="no correlation"):
        correlation_of(1.5, 0.5)


def test_the_seed_seed_error_of_planted_students_is_covered() -> None:
    """S_a and S_b share z only: their correlation is r_a·r_b, so ρ(S_a, S_b) = 1 − r²."""
    rng = np.random.default_rng(11)
    bank = noise_bank(rng, 4, 4_000)
    students = {seed: student_noise(bank.z, rng, 0.4) for seed in range(5)}
    errors = seed_pair_errors(students)
    assert np.mean(list(errors.values())) == pytest.approx(1 - 0.6**2, abs=0.01)
    assert student_t_interval(list(errors.values())).mean == pytest.approx(1 - 0.6**2, abs=0.01)


def test_a_planted_criterion_reads_every_seed() -> None:
    rng = np.random.default_rng(12)
    tables = [measured(noise_bank(rng, 2, 100), rng, {"rho": 0.3}) for _ in range(4)]
    results = studies_of(labels("ring", 2), tables)
    (criterion,) = claim("rho", "below", 0.5).claims[0].criteria
    (group,) = read_criterion(criterion, results[results["seed"] >= 0]).groups
    assert group.tolist() == [reading(table)["rho"] for table in tables]
