"""Paired samples with planted answers, which the real metrics measure as they measure a trained student's.

The noise z is standard normal in d dimensions, d even. The teacher is

    T(z) = √(1 − β²)·z + β·h(z),   h(z) = (z² − 1)/√2 in every coordinate,

of unit variance, since z and h(z) are uncorrelated (Hermite polynomials). Its best affine map is the first term. A
student is the same map of another standard normal noise,

    S(z) = T(w),   w = r·z + q·Jz + √(1 − r² − q²)·z',

with z' of its own and J a quarter turn in every plane (z₁, z₂), (z₃, z₄), … So S has the teacher's distribution
exactly, whatever it copies. (Jz)_j is another coordinate of z and independent of z_j, so w_j has correlation r with z_j
and q with (Jz)_j, and T_j(w) has the correlation (1 − β²)·r + β²·r² with T_j(z) (Mehler's formula). Hence, for N → ∞,
the closed forms of ``student_noise``, ``share_of_curvature``, ``doubling_error`` and ``correlation_of_signs``.

The training points are new draws of T, but for those that lie beside a sample of the teacher's, or beside new data:
a share of each that is planted. Nothing else of the pairs changes with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from dmdpipe.copying.measure import measure

Array = npt.NDArray[np.float64]

REFERENCE_SETS = 3
PROJECTIONS = 8
BESIDE = 1e-3  # distance in each coordinate of a repeated training point from the sample that repeats it


class Bank(NamedTuple):
    """Noise: that of the pairs [N, d], held-out [M, d], of R independent teacher sets [R, N, d], and of the data.

    The last two are new data [N, d] and training points [2, N, d]: one beside each pair, one beside each datum.
    """

    z: Array
    held_out: Array
    reference: Array
    data: Array
    training: Array


def noise_bank(rng: np.random.Generator, d: int, n: int, held_out_per_dimension: int = 10) -> Bank:
    """Draw a bank for ``n`` pairs in ``d`` dimensions, and held-out noise for an affine fit: at least 100 rows."""
    return Bank(
        rng.standard_normal((n, d)),
        rng.standard_normal((max(100, held_out_per_dimension * d), d)),
        rng.standard_normal((REFERENCE_SETS, n, d)),
        rng.standard_normal((n, d)),
        rng.standard_normal((2, n, d)),
    )


def teacher(z: Array, curvature: float = 0.0) -> Array:
    """Return T(z) for z [..., d]; ``curvature`` is β², 0…1."""
    return math.sqrt(1 - curvature) * z + math.sqrt(curvature / 2) * (z**2 - 1)


def quarter_turn(z: Array) -> Array:
    """Return Jz for z [..., d], d even: a rotation that is orthogonal to the identity."""
    turned = np.empty_like(z)
    turned[..., 0::2], turned[..., 1::2] = -z[..., 1::2], z[..., 0::2]
    return turned


def share_of_curvature(rho_affine: float, d: int, held_out: int) -> float:
    """Return the β² at which the affine map fitted on ``held_out`` = M pairs reads ρ(L, T) = ``rho_affine``.

    With the best affine map ρ = β²/(2 − β²). A fitted one errs by a share k of β² more, k ≈ (d + 5)/(M − d − 6): in
    each coordinate d − 1 directions in which z and h(z) are independent, one with E[z²h²] = 5, and the mean.
    """
    k = (d + 5) / (held_out - d - 6)
    return 2 * rho_affine / (1 + k + rho_affine * (1 - k))


def doubling_error(rho_floor: float) -> float:
    """Return the standard deviation ε of a sampler's error at which ρ(T, T + ε) = ε²/(2 + ε²) is the floor."""
    return math.sqrt(2 * rho_floor / (1 - rho_floor))


def correlation_of_signs(mode_agreement: float) -> float:
    """Return the r at which z₁ and w₁ have the same sign with κ = ``mode_agreement``, −1…1, beyond chance.

    They do with probability 1/2 + arcsin(r)/π (Sheppard 1899), which is 1/2 by chance: κ = 2·arcsin(r)/π.
    """
    return math.sin(math.pi * mode_agreement / 2)


def correlation_of(rho: float, curvature: float) -> float:
    """Return the r at which ρ = 1 − (1 − β²)·r − β²·r².

    Raises:
        ValueError: if no r in −1…1 gives so large or so small a ρ.
    """
    if curvature == 0:
        r = 1 - rho
    else:
        linear = 1 - curvature
        inside = linear**2 + 4 * curvature * (1 - rho)
        if inside < 0:
            raise ValueError(f"no correlation gives rho = {rho} at curvature {curvature}")
        r = (math.sqrt(inside) - linear) / (2 * curvature)
    if not -1 <= r <= 1:
        raise ValueError(f"no correlation gives rho = {rho} at curvature {curvature}")
    return r


def student_noise(
    z: Array, rng: np.random.Generator, rho: float, rho_rotated: float = 1.0, curvature: float = 0.0
) -> Array:
    """Return w [N, d], so that T(w) reads ρ = ``rho`` against T(z) and ``rho_rotated`` against T(Jz).

    Raises:
        ValueError: if no student reads both.
    """
    r, q = correlation_of(rho, curvature), correlation_of(rho_rotated, curvature)
    if r**2 + q**2 > 1 + 1e-12:
        raise ValueError(f"no student reads rho = {rho} and rho_rotated = {rho_rotated} at once")
    left = math.sqrt(max(0.0, 1 - r**2 - q**2))
    return r * z + q * quarter_turn(z) + left * rng.standard_normal(z.shape)


def pairs(
    bank: Bank, rng: np.random.Generator, truth: Mapping[str, float], student: Array | None = None
) -> dict[str, Any]:
    """Return the arguments of ``measure`` for a student with planted ``truth``.

    ``truth`` may hold rho (1 if left out), rho_rotated (1), rho_affine (0), rho_floor (0), memorized (0) and
    memorized_held_out (0), the shares of the teacher's samples and of new data that lie beside a training point; and,
    in place of rho and of rho_affine, mode_agreement, of two modes that are the signs of the first coordinate.
    ``student`` [N, d] takes the place of the student that they describe.
    """
    d = bank.z.shape[1]
    curvature = share_of_curvature(truth.get("rho_affine", 0.0), d, len(bank.held_out))
    rho, modes = truth.get("rho", 1.0), {}
    if "mode_agreement" in truth:
        assert not {"rho", "rho_affine"} & truth.keys(), "mode_agreement takes the place of rho and of rho_affine"
        rho = 1 - correlation_of_signs(truth["mode_agreement"])
        modes = {"modes": np.outer([-1.0, 1.0], np.eye(d)[0])}
    t = teacher(bank.z, curvature)
    if student is None:
        w = student_noise(bank.z, rng, rho, truth.get("rho_rotated", 1.0), curvature)
        student = teacher(w, curvature)
    data = teacher(bank.data, curvature)
    return {
        "z": bank.z,
        "teacher": t,
        "student": student[None],
        "generator_step": np.array([100]),
        "teacher_doubled": t + doubling_error(truth.get("rho_floor", 0.0)) * rng.standard_normal(t.shape),
        "teacher_rotated": teacher(quarter_turn(bank.z), curvature),
        "teacher_held_out": teacher(bank.held_out, curvature),
        "reference": teacher(bank.reference, curvature),
        "noise_held_out": bank.held_out,
        "data_held_out": data,
        "training": np.concatenate(
            [
                beside(rng, t, teacher(bank.training[0], curvature), truth.get("memorized", 0.0)),
                beside(rng, data, teacher(bank.training[1], curvature), truth.get("memorized_held_out", 0.0)),
            ]
        ),
        "projections": PROJECTIONS,
        **modes,
    }


def beside(rng: np.random.Generator, samples: Array, others: Array, share: float) -> Array:
    """Return ``others`` [N, d], of which this share, drawn at random, lie beside the sample [N, d] in the same row."""
    moved = samples + BESIDE * rng.standard_normal(samples.shape)
    return np.where(rng.random((len(samples), 1)) < share, moved, others)


def measured(
    bank: Bank, rng: np.random.Generator, truth: Mapping[str, float], student: Array | None = None, seed: int = 0
) -> pd.DataFrame:
    """Return the metrics table of a planted student: every real metric of ``dmdpipe.copying.measure``."""
    return measure(**pairs(bank, rng, truth, student), seed=seed)


def reading(table: pd.DataFrame) -> dict[str, float]:
    """Return the values of a metrics table by name, at its last generator step."""
    last = table[table["generator_step"] == table["generator_step"].max()]
    return dict(zip(last["metric"], last["value"], strict=True))
