"""What a card of the first page says would decide an inconclusive claim."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from dmdpipe.figures.claims import missing_evidence

CAUSES = {
    "no study": "study s, which has not been run",
    "no matching run": "study s with more of its points than this scale has",
    "interval crosses": "12 seeds of study s",
    "statistic undefined": "study s where its number is defined for every seed",
    "too few seeds": "more converged seeds of study s",
}


def criteria(*rows: dict[str, object]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"study": "s", "outcome": "undecided", "cause": "", "seeds_needed": 12.0} | row for row in rows]
    )


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_says_what_would_decide(cause: str) -> None:
    assert missing_evidence("inconclusive", criteria({"cause": cause})) == f"What would decide it: {CAUSES[cause]}."


def test_a_number_of_seeds_that_nobody_can_run_is_not_given() -> None:
    said = missing_evidence("inconclusive", criteria({"cause": "interval crosses", "seeds_needed": math.nan}))
    assert said == "What would decide it: more seeds of study s than can be run."


def test_equal_needs_are_said_once_and_a_failed_premise_first() -> None:
    rows = [{"cause": "no study"}, {"outcome": "fails"}, {"cause": "no study"}, {"outcome": "holds"}]
    said = missing_evidence("inconclusive", criteria(*rows))
    assert said == (
        "What would decide it: a run in which the premises hold, since without them nothing is tested;"
        " study s, which has not been run."
    )


@pytest.mark.parametrize("verdict", ["supported", "refuted"])
def test_a_decided_claim_needs_nothing(verdict: str) -> None:
    assert missing_evidence(verdict, criteria({"cause": "no study"})) == ""
