"""Rule member: take one student out of its ensemble."""

from dmdpipe.artifacts.step import open_step
from dmdpipe.distill.together import take_member

with open_step(snakemake.params.spec, snakemake.output.manifest, snakemake.log[0]) as step:
    take_member(step)
