"""Numbers of the pipeline computed a second time, from stored files alone and by code of another making."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

Array = NDArray[np.float64]
SIGMA_DATA = 0.5


def copying(student: Array, teacher: Array) -> dict[str, float]:
    """ρ, ΔE and retrieval@1 of paired samples [N, d], by the table of distances between all of them."""
    squared = cdist(student.astype(float), teacher.astype(float), "sqeuclidean")
    n = len(squared)
    paired = float(np.trace(squared)) / n
    independent = float(squared.sum() - np.trace(squared)) / (n * (n - 1))
    rows, columns = linear_sum_assignment(squared)
    best = float(squared[rows, columns].mean())
    return {
        "rho": paired / independent,
        "delta_e": (paired - best) / (independent - best),
        "retrieval_at_1": float(np.mean(squared.argmin(axis=1) == np.arange(n))),
    }


def denoised(x: Array, sigma: float, model: dict[str, Array], spec: dict[str, Any]) -> Array:
    """D(x, σ) [B, d] of a stored teacher: EDM's preconditioning of its network, or the exact posterior mean."""
    if spec["score"]["kind"] == "exact":
        return _posterior_mean(x, sigma, model)
    c_in = 1 / np.sqrt(sigma**2 + SIGMA_DATA**2)
    c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    c_out = sigma * SIGMA_DATA / np.sqrt(sigma**2 + SIGMA_DATA**2)
    return c_skip * x + c_out * _network(c_in * x, np.log(sigma) / 4, model, spec["score"]["network"])


def _network(x: Array, label: float, model: dict[str, Array], spec: dict[str, Any]) -> Array:
    def layer(name: str, h: Array) -> Array:
        return h @ model[f"{name}.weight"].T.astype(float) + model[f"{name}.bias"].astype(float)

    def silu(h: Array) -> Array:
        return h / (1 + np.exp(-h))

    angles = label * 2 ** np.linspace(0, 5, spec["embedding"] // 2)
    embedding = silu(layer("noise_embedding", np.concatenate([np.cos(angles), np.sin(angles)])))
    h = layer("input", x)
    for i in range(spec["depth"]):
        h = h + silu(layer(f"blocks.{i}", h) + embedding)
    return layer("output", h)


def _posterior_mean(x: Array, sigma: float, model: dict[str, Array]) -> Array:
    weights, means = model["exact.weights"], model["exact.means"]
    basis, variances = model["exact.basis"], model["exact.variances"]
    total, log_weight = 0.0, []
    answers = []
    for weight, mean, variance in zip(weights, means, variances, strict=True):
        covariance = basis @ np.diag(variance) @ basis.T
        noisy = covariance + sigma**2 * np.eye(len(mean))
        gain = covariance @ np.linalg.inv(noisy)
        offset = x - mean
        answers.append(mean + offset @ gain.T)
        distance = np.einsum("bi,ij,bj->b", offset, np.linalg.inv(noisy), offset)
        log_weight.append(np.log(weight) - distance / 2 - np.linalg.slogdet(noisy)[1] / 2)
    log_weights = np.array(log_weight)
    responsibilities = np.exp(log_weights - log_weights.max(axis=0))
    for responsibility, answer in zip(responsibilities / responsibilities.sum(axis=0), answers, strict=True):
        total = total + responsibility[:, None] * answer
    return np.asarray(total)


def teacher_map(z: Array, model: dict[str, Array], spec: dict[str, Any], noise_range: dict[str, float]) -> Array:
    """T(z) [B, d] by adaptive integration (Dormand–Prince, order 8) in ln σ from σ_max to a hundredth of σ_min."""
    first, last = np.log(noise_range["sigma_max"]), np.log(noise_range["sigma_min"] / 100)

    def slope(log_sigma: float, flat: Array) -> Array:
        x = flat.reshape(z.shape)
        return (x - denoised(x, float(np.exp(log_sigma)), model, spec)).ravel()

    start = (noise_range["sigma_max"] * z.astype(float)).ravel()
    solved = solve_ivp(slope, (first, last), start, method="DOP853", rtol=1e-8, atol=1e-8)
    assert solved.success, solved.message
    return solved.y[:, -1].reshape(z.shape)
