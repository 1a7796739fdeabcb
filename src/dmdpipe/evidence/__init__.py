"""From seeds to verdicts: intervals, the results table of a study, and the judgement of claims."""
