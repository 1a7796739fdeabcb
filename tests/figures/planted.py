"""Tables with planted, plausible numbers, in the columns that the evidence step writes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dmdpipe.specs.claims import Criterion
from dmdpipe.specs.report import Axis, Reader, StudyPage

STEPS = (0, 1, 4, 16, 63, 250, 1000)
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def _run(data: str, d: int, init: str, sigma_max: float, step: int, noise: np.random.Generator) -> dict[str, float]:
    done = np.log1p(step) / np.log1p(STEPS[-1])
    wrong_start = sigma_max > 10 and d < 8
    start, end = {
        "teacher": (0.85, 0.9 if wrong_start else 0.22),
        "random-head": (1.0, 1.02),
        "edm-default": (0.8, 0.35),
        "kd-rotated": (1.0, 0.97),
    }[init]
    rho = start + (end - start) * done + 0.03 * noise.standard_normal()
    rotated = (0.12 if init == "kd-rotated" else 1.0) + 0.02 * noise.standard_normal()
    ratio = 1.1 + 8 * (1 - done) + (2.0 if init == "random-head" and d > 32 else 0.0) + 0.2 * noise.random()
    matched = min(1.0, 1.05 - 0.06 * np.log2(d))
    return {
        "rho": rho, "rho_rotated": rotated, "rho_affine": 0.02 + 0.025 * np.log2(d), "rho_floor": 0.001,
        "delta_e": rho * matched, "delta_e_null": 0.95 * matched, "retrieval_at_1": max(0.0, 1 - rho) ** 2,
        "retrieval_null": min(0.9, 0.001 * d), "jacobian_alignment": 0.9 - 0.8 * rho,
        "scale_ratio": 0.1 + 0.9 * done, "rho_initial": 0.9 * done, "jacobian_asymmetry": 0.3 * done,
        "jacobian_asymmetry_teacher": 0.2, "rho_transport": 0.5, "rho_gaussian_transport": 0.55, "rho_linear": 0.6,
        "rho_flow": 0.7,
        "rho_resampled": rho, "rho_resampling": 0.0, "novelty_teacher": 0.9, "novelty_data": 0.95,
        "inference_cost": 2.0 if init == "edm-default" else 1.0,
        "sliced_w2_over_floor": ratio, "energy_over_floor": 0.9 * ratio, "gate_ratio": ratio,
    }  # fmt: skip


def results(seeds: int = 3, smoke: bool = False) -> pd.DataFrame:
    """Two studies, ``dimension`` (d × σ_max × start) and ``start`` (starts at two d), aggregates too."""
    grid = [
        ("dimension", f"digits-{s}x{s}", s * s, init, sigma)
        for s in (2, 4, 8)
        for sigma in (8.0, 80.0)
        for init in ("teacher", "random-head")
    ]
    grid += [
        ("start", data, d, init, 80.0)
        for data, d in (("ring", 2), ("digits-4x4", 16))
        for init in ("teacher", "edm-default", "random-head", "kd-rotated")
    ]
    if smoke:
        grid = [("dimension", "digits-2x2", 4, "teacher", 80.0)]
    rows = []
    for number, (study, data, d, init, sigma) in enumerate(grid):
        keys = {"study": study, "scale": "smoke" if smoke else "laptop", "data": data, "d": d, "init": init}
        keys |= {
            "point": f"data={data}, start={init}, sigma_max={sigma:g}",
            "network": "mlp-64x3",
            "recipe": "dmd2",
            "sigma_max": sigma,
        }
        for step in STEPS:
            mark = {"generator_step": step, "readout": step == STEPS[-1]}
            runs = [
                _run(data, d, init, sigma, step, np.random.default_rng([number, seed, step])) for seed in range(seeds)
            ]
            for metric in runs[0]:
                values = np.array([run[metric] for run in runs])
                for seed, run in enumerate(runs):
                    rows.append(keys | mark | _row(metric, run[metric], seed, 1, run["gate_ratio"]))
                if seeds > 1:
                    half = STUDENT_T[seeds] * values.std(ddof=1) / np.sqrt(seeds)
                    mean = values.mean()
                    worst = max(run["gate_ratio"] for run in runs)
                    rows.append(keys | mark | _row(metric, mean, -1, seeds, worst, mean - half, mean + half))
    return pd.DataFrame(rows)


def _row(
    metric: str, value: float, seed: int, n_seeds: int, gate: float, low: float = np.nan, high: float = np.nan
) -> dict[str, object]:
    row = {"metric": metric, "value": value, "seed": seed, "n_seeds": n_seeds, "low": low, "high": high}
    return row | {"gate_ratio": gate, "converged": gate <= 2.0}


def gallery() -> pd.DataFrame:
    """Paired samples of study ``start``: ring (200 pairs) and digits-like images (8 pairs), four starts."""
    noise = np.random.default_rng(0)
    rows = []
    for data, d, n in (("ring", 2, 200), ("digits-4x4", 16, 8)):
        angle = 2 * np.pi * noise.integers(0, 8, n) / 8
        teacher = np.stack([np.cos(angle), np.sin(angle)], 1) * 0.7 if d == 2 else 0.5 * noise.standard_normal((n, d))
        teacher = teacher + 0.03 * noise.standard_normal((n, d))
        for init, copies in (
            ("teacher", 0.9),
            ("edm-default", 0.6),
            ("random-head", 0.0),
            ("kd-rotated", 0.0),
        ):
            other = teacher[noise.permutation(n)]
            student = np.where(noise.random((n, 1)) < copies, teacher, other) + 0.03 * noise.standard_normal((n, d))
            keys = {
                "point": f"data={data}, start={init}, sigma_max=80",
                "study": "start",
                "data": data,
                "d": d,
            }
            keys |= {"init": init, "recipe": "dmd2", "sigma_max": 80.0, "seed": 0}
            for role, x in (
                ("noise", noise.standard_normal((n, d))),
                ("teacher", teacher),
                ("student", student),
            ):
                rows += [keys | {"row": i, "role": role, "x": list(x[i])} for i in range(n)]
    return pd.DataFrame(rows)


def verdicts() -> pd.DataFrame:
    """Three claims, one per verdict."""
    return pd.DataFrame(
        [
            ("C1", "low dimension: freedom", "refuted", 'copies < & > "quotes" at d = 2', "It remaps."),
            ("C2", "high dimension: copying", "supported", "every criterion holds", "The student copies."),
            ("C4", "not memorization", "inconclusive", "no study has been run", None),
        ],
        columns=["id", "title", "verdict", "reason", "statement"],
    )  # fmt: skip


def criteria() -> pd.DataFrame:
    """Criteria of C1 and C2, with and without bounds."""
    inf, nan = np.inf, np.nan
    rows = [
        (
            "C1",
            "ρ at d = 2",
            0.05,
            -0.01,
            0.11,
            0.5,
            "above",
            "fails",
            "0.05 is below 0.5",
            5,
            0.03,
            -15.0,
            0.0567,
            3.0,
        ),
        ("C2", "ρ at d = 64", 0.2, -inf, 0.25, 0.5, "below", "holds", "0.2 is below 0.5", 5, 0.02, 15.0, 0.04, 3.0),
        ("C2", "ρ less affine", nan, nan, nan, 0.0, "below", "undecided", "not converged", 0, nan, nan, nan, nan),
    ]
    columns = ["id", "criterion", "value", "low", "high", "threshold", "predicts", "outcome", "reason", "n_seeds"]
    table = pd.DataFrame(rows, columns=[*columns, "spread", "effect", "detectable", "seeds_needed"])
    return table.assign(study="start", cause=["", "", "not converged"])


def sensitivity() -> pd.DataFrame:
    """C1 and C2 of ``verdicts`` with three gates, and C2 with another recipe."""
    rows = [
        ("C1", "gate", "1.5", False, "inconclusive", "lost"),
        ("C1", "gate", "2", True, "refuted", ""),
        ("C2", "gate", "1.5", False, "supported", ""),
        ("C2", "gate", "2", True, "supported", ""),
        ("C2", "recipe", "<gan>", False, "refuted", "reversed"),
    ]
    table = pd.DataFrame(rows, columns=["id", "choice", "option", "as_declared", "verdict", "change"])
    words = verdicts().set_index("id")
    return table.assign(title=table["id"].map(words["title"]), declared=table["id"].map(words["verdict"]))


def study_page(name: str) -> StudyPage:
    """What a study declares that C2 reads, by the criteria of ``criteria``."""
    words = {"study": name, "statistic": {"value": {"metric": "rho"}}, "predicts": "below", "because": "x < y"}
    readers = [("C2", "ρ at d = 64", 0.5), ("C2", "ρ less affine", 0.0), ("C1", "ρ at d = 2", 0.5)]
    return StudyPage(
        name=name,
        number=1,
        title="Planted",
        question="Is it so?",
        prediction="It is < 1.",
        changes_mind="",
        axes=(Axis(name="start", labels=("teacher", "random-head")),),
        students=(),
        readers=tuple(
            Reader(claim=claim, title="t", criterion=Criterion.model_validate({**words, "name": one, "threshold": at}))
            for claim, one, at in readers
        ),
    )


def training() -> pd.DataFrame:
    """Thinned histories of two points, two seeds each: one with an adversarial term, one that diverges."""
    steps = np.arange(1, 11) * 10
    common = {"generator_step": steps, "fake_loss": 1.0 / steps, "student_gradient": 2.0 / steps}
    none = {"adversarial_loss": np.nan, "discriminator_loss": np.nan, "regression_loss": np.nan}
    parts = []
    for seed in (0, 1):
        healthy = {**common, **none, "dm_loss": 0.1 + 1.0 / steps, "adversarial_loss": 0.7 - seed / steps}
        diverged = {**common, **none, "dm_loss": np.where(steps > 50, np.nan, 1.0 * steps)}
        parts += [
            pd.DataFrame({"point": point, "seed": seed, **one})
            for point, one in (("case=gan", healthy), ("case=fast", diverged))
        ]
    return pd.concat(parts, ignore_index=True)
