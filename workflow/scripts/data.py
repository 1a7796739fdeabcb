"""Rule data: draw and scale one dataset."""

from dmdpipe.artifacts.step import open_step
from dmdpipe.data.prepare import prepare_data

with open_step(snakemake.params.spec, snakemake.output.manifest, snakemake.log[0]) as step:
    prepare_data(step)
