"""The verdicts step: all studies' tables put together, and the claims judged on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from dmdpipe.evidence.sensitivity import sensitivity_table
from dmdpipe.evidence.verdicts import evaluate_claims, findings_table, verdict_records, verdict_table

if TYPE_CHECKING:
    from dmdpipe.artifacts.step import Step
    from dmdpipe.specs.report import VerdictsSpec


def judge_claims(step: Step) -> None:
    """The ``verdicts`` step: all studies' results and gallery, the verdicts, their criteria and their sensitivity.

    verdicts.csv, which opens the report, is short: claims' full statements stand in verdicts.parquet and .json.
    """
    spec: VerdictsSpec = step.spec
    results = pd.concat([step.read_table(study, "results.parquet") for study in spec.studies], ignore_index=True)
    gallery = pd.concat([step.read_table(study, "gallery.parquet") for study in spec.studies], ignore_index=True)
    verdicts = evaluate_claims(spec.claims, results)
    tables = {
        "verdicts": verdict_table(verdicts),
        "criteria": findings_table(verdicts).rename(columns={"claim": "id"}),
        "sensitivity": sensitivity_table(spec.claims, results),
    }
    for name, table in tables.items():
        step.write_table(f"{name}.parquet", table)
        short = table.drop(columns=["statement", "level_of_evidence"], errors="ignore")
        step.write_text(f"{name}.csv", short.to_csv(index=False, lineterminator="\n"))
    step.write_json("verdicts.json", verdict_records(verdicts))
    step.write_table("results.parquet", results)
    step.write_table("gallery.parquet", gallery)
