"""The comparison of two trees of results as text for people, and as rows for programs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dmdpipe.audit.diff import Agreement, ArtifactComparison

if TYPE_CHECKING:
    import pandas as pd

    from dmdpipe.audit.formats.difference import Difference


def diff_text(comparisons: Sequence[ArtifactComparison]) -> str:
    """Return the number of artifacts of each class, and a line on each that is not identical, worst first."""
    counts = Counter(comparison.agreement for comparison in comparisons)
    lines = [f"{counts[agreement]:5}  {agreement}" for agreement in reversed(Agreement) if counts[agreement]]
    lines += ["", *map(_line, worst_first(comparisons))]
    return "\n".join(lines).rstrip()


def worst_first(comparisons: Sequence[ArtifactComparison]) -> list[ArtifactComparison]:
    """Return the comparisons that are not identical, the worst class first, by folder within a class."""
    order = list(Agreement)
    changed = [comparison for comparison in comparisons if comparison.agreement is not Agreement.identical]
    return sorted(changed, key=lambda comparison: (order.index(comparison.agreement), comparison.folder))


def diff_rows(comparisons: Sequence[ArtifactComparison]) -> list[dict[str, Any]]:
    """Return every comparison in plain JSON types; ``excess`` is null where no number says how large it is."""
    return [
        {
            "folder": comparison.folder,
            "stage": comparison.stage or None,
            "class": str(comparison.agreement),
            "reason": comparison.reason or None,
            "file": comparison.largest.name if comparison.largest else None,
            "first": _plain(comparison.largest.first if comparison.largest else None),
            "largest": _plain(comparison.largest.largest if comparison.largest else None),
        }
        for comparison in comparisons
    ]


def diff_json(comparisons: Sequence[ArtifactComparison]) -> str:
    """Return the rows of ``diff_rows`` as JSON."""
    return json.dumps(diff_rows(comparisons), indent=1, allow_nan=False, ensure_ascii=False)


def diff_table(comparisons: Sequence[ArtifactComparison]) -> pd.DataFrame:
    """Return the same as a table: one row per artifact, the largest difference as one text."""
    import pandas as pd

    texts = [str(row.largest.largest or "") if row.largest else "" for row in comparisons]
    rows = [{key: row[key] for key in ("folder", "stage", "class", "reason", "file")} for row in diff_rows(comparisons)]
    return pd.DataFrame(rows).assign(largest=texts)


def _line(comparison: ArtifactComparison) -> str:
    """Return class, folder and the file in it that differs most, its largest difference and where, and the reason."""
    file = comparison.largest
    place = f"{comparison.folder}/{file.name}" if file else comparison.folder
    difference = [str(file.largest or "other bytes, same content")] if file else []
    return " | ".join([f"{comparison.agreement}: {place}", *difference, comparison.reason])


def _plain(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    numbers = {"size": difference.size, "excess": difference.excess}
    finite = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
    return {"where": difference.where, "what": difference.what, **finite, "unit": difference.unit or None}
