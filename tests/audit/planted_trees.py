"""Trees of results with planted numbers: real specs, folders and manifests, but nothing was trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dmdpipe.artifacts.checked import json_text
from dmdpipe.artifacts.environment import Environment
from dmdpipe.artifacts.manifest import FILE_NAME, Equality, Manifest, read_manifest, sealed, seeds_in
from dmdpipe.artifacts.plan import PlannedStep, plan
from dmdpipe.artifacts.stages import STAGES
from dmdpipe.artifacts.tables import encode_table
from dmdpipe.artifacts.tensors import encode_tensors
from dmdpipe.evidence.results import results_table
from dmdpipe.specs.claims import Claims
from dmdpipe.specs.grid import expand
from dmdpipe.specs.report import FigureSpec, VerdictsSpec
from dmdpipe.specs.study import CellRef, EvidenceSpec, Scale, Study

HERE = Environment(
    python="3.11", platform="linux-x86_64", libraries={}, device="cpu", cpu="one", instruction_set="AVX2", threads=1
)
ELSEWHERE = HERE.model_copy(update={"instruction_set": "AVX512"})
STUDY = "planted"
POINT = "moons"

Files = Mapping[str, bytes]


def study(seeds: int) -> dict[str, PlannedStep]:
    """All steps of a study of one point by folder, parents first, its evidence, verdicts and a figure last."""
    words = {"number": 0, "title": "t", "question": "q", "prediction": "p", "base": {"data.family": "moons"}}
    scale = Scale.model_validate({"title": "t", "seeds": seeds})
    members = expand(STUDY, Study.model_validate(words), "tiny", scale)
    found: dict[str, PlannedStep] = {}

    def add(step: PlannedStep) -> PlannedStep:
        for parent in step.parents.values():
            add(parent)
        return found.setdefault(step.folder, step)

    cells, parents = [], {}
    for member in members:
        metrics = add(plan("metrics", member.spec))
        pairs = metrics.parents["pairs"]
        parents |= {metrics.folder: metrics, pairs.folder: pairs}
        labels = {**member.labels(), "point": POINT}
        cells.append(CellRef(**labels, metrics=metrics.folder, pairs=pairs.folder))
    spec = EvidenceSpec(study=STUDY, scale="tiny", cells=tuple(cells))
    evidence = add(PlannedStep("evidence", spec, parents))
    claims = Claims.model_construct(claims=())
    verdicts = add(
        PlannedStep("verdicts", VerdictsSpec(scale="tiny", studies=(STUDY,), claims=claims), {STUDY: evidence})
    )
    add(
        PlannedStep("figures", FigureSpec(notebook="overview", scale="tiny", source_sha256="0"), {"verdicts": verdicts})
    )
    return found


def plant(
    root: Path, steps: Mapping[str, PlannedStep], payload: Callable[[PlannedStep], Files], where: Environment = HERE
) -> Path:
    """Write the tree of these steps with manifests that vouch for what ``payload`` says of each; return its root."""
    for step in steps.values():
        write(root, step, payload(step), where)
    return root


def write(
    root: Path, step: PlannedStep, files: Files, where: Environment = HERE, equality: Equality | None = None
) -> None:
    """Write one step's folder; its parents must be there. ``equality`` is its stage's unless given."""
    folder = root / step.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    parents = {role: read_manifest(root / parent.folder / FILE_NAME) for role, parent in step.parents.items()}
    spec = step.spec.model_dump(mode="json")
    result = {
        "stage": step.stage,
        "spec": spec,
        "digest": step.digest,
        "seeds": seeds_in(spec),
        "payload": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()
        },
        "parents": {
            role: {"folder": step.parents[role].folder, "result_digest": parent.result.result_digest}
            for role, parent in parents.items()
        },
    }
    provenance = {
        "code": "0" * 16,
        "modules": {},
        "environment_lock": "unlocked",
        "environment": where.model_dump(),
        "equality": (equality or STAGES[step.stage].equality).model_dump(),
        "parents": {role: parent.provenance.provenance_digest for role, parent in parents.items()},
    }
    parts = {"result": sealed(result, "result_digest"), "provenance": sealed(provenance, "provenance_digest")}
    manifest = Manifest.model_validate(parts).model_dump(mode="json")
    (folder / FILE_NAME).write_text(json_text(manifest))


def payload_of(
    rho: Mapping[int, float], student_shift: float = 0.0, rounding: float = 0.0, word: str = "supported"
) -> Callable[[PlannedStep], Files]:
    """Return what each step holds: ``rho`` by seed at the read-out step, students whose weights are shifted by
    ``student_shift``, and teacher samples that are off by the factor 1 + ``rounding``; verdicts say ``word``."""

    def metrics(seed: int) -> pd.DataFrame:
        rows = [
            (step, metric, value)
            for step, value in ((0, 1.0), (10, rho[seed]))
            for metric, value in (("rho", value), ("gate_ratio", 1.0 + value / 10), ("converged", 1.0))
        ]
        return pd.DataFrame(rows, columns=["generator_step", "metric", "value"])

    def files(step: PlannedStep) -> Files:
        weights = np.arange(1.0, 7).reshape(2, 3)
        match step.stage:
            case "data" | "noise":
                tensors = encode_tensors({"x": weights})
                return (
                    {"data.safetensors": tensors, "facts.json": b"{}"}
                    if step.stage == "data"
                    else {"noise.safetensors": tensors}
                )
            case "teacher":
                return {"model.safetensors": encode_tensors({"w": weights}), "history.parquet": loss(1.0)}
            case "teacher_samples":
                return {"samples.safetensors": encode_tensors({"teacher": weights * (1 + rounding)})}
            case "student":
                return {
                    "snapshots.safetensors": encode_tensors({"w": weights + student_shift * (step.spec.seed + 1)}),
                    "history.parquet": loss(1.0 + student_shift),
                }
            case "pairs":
                return {"pairs.safetensors": encode_tensors({"student": weights + student_shift})}
            case "metrics":
                return {"metrics.parquet": encode_table(metrics(step.spec.pairs.student.seed))}
            case "evidence":
                cells = [(cell.model_dump(), metrics(cell.seed)) for cell in step.spec.cells]
                return {"results.parquet": encode_table(results_table(STUDY, "tiny", cells, {}))}
            case "verdicts":
                mean = float(np.mean(list(rho.values())))
                records = [{"id": "C1", "verdict": word, "reason": f"mean {mean!r}"}]
                return {"verdicts.json": json_text(records).encode()}
            case _:
                page = f"<p>mean {np.mean(list(rho.values()))!r}: {word}</p>\n"
                return {"notebook.html": page.encode()}

    return files


def loss(value: Any) -> bytes:
    """A history with one row."""
    return encode_table(pd.DataFrame({"loss": [value]}))
