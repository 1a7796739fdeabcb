"""Reading the tables that figures are drawn from, and cutting them into the part that one figure shows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from dmdpipe.artifacts.tables import decode_table
from dmdpipe.errors import UserError

AGGREGATE = -1

RESULT_COLUMNS = (
    *("study", "scale", "point", "data", "d", "init", "recipe", "sigma_max", "seed", "generator_step"),
    *("metric", "value", "low", "high", "n_seeds", "gate_ratio", "converged", "readout"),
)
VERDICT_COLUMNS = ("id", "title", "verdict", "reason")
CRITERION_COLUMNS = (
    "id",
    "criterion",
    "study",
    "value",
    "low",
    "high",
    "threshold",
    "predicts",
    "outcome",
    "cause",
    "reason",
    "n_seeds",
    "spread",
    "effect",
    "detectable",
    "seeds_needed",
)
SENSITIVITY_COLUMNS = ("id", "title", "declared", "choice", "option", "as_declared", "verdict", "change")
GALLERY_COLUMNS = (*("point", "study", "data", "d", "init", "recipe", "sigma_max", "seed", "row", "role", "x"),)

DRAWN_COLUMNS = (
    *("study", "point", "data", "d", "init", "recipe", "sigma_max", "seed", "generator_step"),
    *("metric", "value", "low", "high", "n_seeds", "converged"),
)


def read_table(path: Path | str, columns: Sequence[str]) -> pd.DataFrame:
    """Read a parquet, CSV or JSON (list of records) table and check that it has these columns.

    Raises:
        UserError: the file is missing, of another kind, or lacks a column.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".csv", ".json"):
        raise UserError(f"{path}: a table must end in .parquet, .csv or .json")
    if not path.is_file():
        raise UserError(f"{path}: no such table; has the evidence step run?")
    match path.suffix:
        case ".parquet":
            table = decode_table(path.read_bytes(), str(path))
        case ".csv":
            table = pd.read_csv(path)
        case _:
            table = pd.read_json(path)
    missing = [column for column in columns if column not in table.columns]
    if missing and len(table):
        raise UserError(f"{path}: column '{missing[0]}' is missing; expected {', '.join(columns)}")
    return table.reindex(columns=[*table.columns, *missing])


def read_results(path: Path | str) -> pd.DataFrame:
    """Read the tidy results of one or more studies, with the data's family added as column ``family``."""
    return with_family(read_table(path, RESULT_COLUMNS))


def read_gallery(path: Path | str) -> pd.DataFrame:
    """Read the paired samples that the grids show, with the data's family added as column ``family``."""
    return with_family(read_table(path, GALLERY_COLUMNS))


def of_study(table: pd.DataFrame, study: str) -> pd.DataFrame:
    """Return the rows of one study."""
    return table[table["study"] == study].reset_index(drop=True)


def with_family(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the column ``family``: ``digits`` for the data ``digits-4x4``."""
    return table.assign(family=table["data"].astype(str).str.split("-").str[0])


def parts(table: pd.DataFrame, by: Sequence[str], varies: str | None = None) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield ``(name, rows)`` for every combination of values of the columns ``by``, in sorted order.

    Args:
        table: results or gallery.
        by: columns that are constant within a part; their values make its name, fit for a file name.
        varies: leave out the parts in which this column has only one value.
    """
    for values, rows in table.groupby(list(by), sort=True):
        if varies is None or rows[varies].nunique() > 1:
            yield re.sub(r"[^\w.]+", "-", "-".join(f"{value}" for value in values)).strip("-"), rows


def at_readout(results: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """Return the rows of these metrics at the generator step that each study declared for reading."""
    return results[results["readout"].astype(bool) & results["metric"].isin(metrics)]


def per_seed(results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of single seeds."""
    return results[results["seed"] != AGGREGATE]


def over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per point, generator step and metric: the aggregate over seeds, with its interval.

    Where a table has none (a run too small for intervals), the plain mean of the seeds stands in, without an
    interval, and counts as converged if all its seeds are.
    """
    keys = ["study", "point", "generator_step", "metric"]
    aggregates = results[results["seed"] == AGGREGATE]
    seeds = per_seed(results)
    have = pd.MultiIndex.from_frame(aggregates[keys])
    seeds = seeds[~pd.MultiIndex.from_frame(seeds[keys]).isin(have)]
    if seeds.empty:
        return aggregates
    groups = seeds.groupby(keys, sort=False)
    means = groups.first().assign(
        seed=AGGREGATE,
        value=groups["value"].mean(),
        low=float("nan"),
        high=float("nan"),
        n_seeds=groups["seed"].nunique(),
        gate_ratio=groups["gate_ratio"].max(),
        converged=groups["converged"].all(),
    )
    means = means.reset_index()[list(results.columns)]
    return means if aggregates.empty else pd.concat([aggregates, means], ignore_index=True)


def series_of(table: pd.DataFrame, *columns: str, apart: Sequence[str] = ()) -> pd.Series:
    """Return the label of the curve that each row belongs to.

    The label is the start, then those of ``columns`` that vary in the table, then whatever else tells points
    apart that agree in all of these: the parts of their names (``key=value, key=value``) that they do not
    share.

    Args:
        table: rows of one study, with columns data, init, point and those named here.
        columns: what may tell curves apart.
        apart: columns that the panels of a figure separate already, so that curves need not name them.
    """
    label = table["init"].astype(str)
    for column in columns:
        if table[column].nunique() > 1:
            name, value = ("σ_max =", "{:g}") if column == "sigma_max" else (column, "{}")
            label = label + f", {name} " + table[column].map(value.format)
    same = ["data", "init", *columns, *apart]
    variants: dict[tuple[object, ...], str] = {}
    for key, points in table.groupby(same, sort=True)["point"]:
        variants |= {(*key, point): rest for point, rest in own_words(points).items()}
    rest = [variants[row] for row in table[[*same, "point"]].itertuples(index=False, name=None)]
    return label + pd.Series([f", {words}" if words else "" for words in rest], index=table.index, dtype=object)


def own_words(points: pd.Series) -> dict[str, str]:
    """Return each point's name without the parts (``key=value``) that all these points share."""
    names = {point: point.split(", ") for point in sorted(points.unique())}
    shared = set.intersection(*(set(words) for words in names.values()))
    return {point: ", ".join(word for word in words if word not in shared) for point, words in names.items()}


def drawn(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the figure data of tidy rows: the columns that a reader needs, in a fixed order of rows."""
    columns = list(DRAWN_COLUMNS)
    return rows[columns].sort_values(columns[:-5], kind="stable").reset_index(drop=True)
