"""Rule verdicts: the claims, judged on all studies."""

from dmdpipe.artifacts.step import open_step
from dmdpipe.evidence.judge import judge_claims

with open_step(snakemake.params.spec, snakemake.output.manifest, snakemake.log[0]) as step:
    judge_claims(step)
