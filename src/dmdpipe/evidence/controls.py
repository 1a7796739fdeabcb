"""Verdicts on the controls (``config/controls.yaml``), by the rules for claims and as a family of their own."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from dmdpipe.evidence.derived import with_derived
from dmdpipe.evidence.verdicts import evaluate_claims, findings_table, verdict_table
from dmdpipe.specs.claims import Claims

NOT_RUN = "not run"


class Controls(NamedTuple):
    """What became of the controls.

    Attributes:
        verdicts: as ``verdict_table`` has them, but that a control is ``not run`` where a study is missing and what is
            there does not decide it.
        criteria: as ``findings_table``, with ``id`` for ``claim``, and then the control's ``title`` and ``verdict``.
    """

    verdicts: pd.DataFrame
    criteria: pd.DataFrame


def judge_controls(controls: Claims, results: pd.DataFrame) -> Controls:
    """Return what became of the controls; 0.05 is shared by all of them, and by nothing else.

    ``results`` is as ``dmdpipe.evidence.verdicts.evaluate_claims`` takes it, with the rows over seeds.

    Raises:
        ValueError: as ``evaluate_claims``.
    """
    every = with_derived(results)
    judged = evaluate_claims(controls, every[every["metric"].isin(controls.metrics)])
    verdicts, criteria = verdict_table(judged), findings_table(judged).rename(columns={"claim": "id"})
    without_study = set(criteria.loc[criteria["cause"] == "no study", "id"])
    open_for_it = (verdicts["verdict"] == "inconclusive") & verdicts["id"].isin(without_study)
    verdicts = verdicts.assign(verdict=verdicts["verdict"].mask(open_for_it, NOT_RUN))
    told = verdicts[["id", "title", "verdict"]].merge(criteria, on="id", how="right", validate="one_to_many")
    return Controls(verdicts, told)
