"""Rule ensemble: distil students that differ in their seeds together."""

from dmdpipe.artifacts.step import open_step
from dmdpipe.distill.together import train_together

with open_step(snakemake.params.spec, snakemake.output.manifest, snakemake.log[0]) as step:
    train_together(step)
