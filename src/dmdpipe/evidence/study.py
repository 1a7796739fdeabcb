"""The evidence step: one study's cells become one table, and a few paired samples to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from dmdpipe.evidence.results import results_table, seed_pair_errors

if TYPE_CHECKING:
    import numpy as np

    from dmdpipe.artifacts.step import Step
    from dmdpipe.specs.study import CellRef, EvidenceSpec

GALLERY_ROWS = 16
GALLERY_ROWS_2D = 300


def gather_evidence(step: Step) -> None:
    """The ``evidence`` step: results.parquet and .csv (see ``results_table``), and gallery.parquet.

    The gallery holds the first paired samples of each point's first seed at the read-out step: one row per
    sample, with the point's labels, ``row`` (which noise), ``role`` (noise, teacher or student) and ``x``
    (list of d floats).
    """
    spec: EvidenceSpec = step.spec
    cells = []
    gallery: list[dict[str, Any]] = []
    readouts: dict[str, dict[int, np.ndarray]] = {}
    for done, cell in enumerate(spec.cells):
        step.progress(done, len(spec.cells))
        metrics = step.read_table(cell.metrics, "metrics.parquet")
        if cell.maps:
            metrics = pd.concat([metrics, step.read_table(cell.maps, "maps.parquet")], ignore_index=True)
        cells.append((cell.model_dump(), metrics))
        pairs = step.read_tensors(cell.pairs, "pairs.safetensors")
        seen = readouts.setdefault(cell.point, {})
        if not seen:
            gallery += gallery_rows(spec, cell, pairs)
        seen[cell.seed] = pairs["student"][-1]
    seed_pairs = {point: seed_pair_errors(students) for point, students in readouts.items()}
    table = results_table(spec.study, spec.scale, cells, seed_pairs)
    step.write_table("results.parquet", table)
    step.write_text("results.csv", table.to_csv(index=False, lineterminator="\n"))
    step.write_table("gallery.parquet", pd.DataFrame(gallery))


def gallery_rows(spec: EvidenceSpec, cell: CellRef, pairs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the gallery's rows of one cell: noise, teacher and student samples at the read-out step."""
    labels = cell.model_dump(exclude={"metrics", "pairs", "maps"})
    roles = {"noise": pairs["z"], "teacher": pairs["teacher"], "student": pairs["student"][-1]}
    count = GALLERY_ROWS_2D if cell.d == 2 else GALLERY_ROWS
    return [
        {
            "study": spec.study,
            "scale": spec.scale,
            **labels,
            "row": row,
            "role": role,
            "x": samples[row].tolist(),
        }
        for role, samples in roles.items()
        for row in range(min(count, len(samples)))
    ]
