"""Rule evidence: one study's results table."""

from dmdpipe.artifacts.step import open_step
from dmdpipe.evidence.study import gather_evidence

with open_step(snakemake.params.spec, snakemake.output.manifest, snakemake.log[0]) as step:
    gather_evidence(step)
