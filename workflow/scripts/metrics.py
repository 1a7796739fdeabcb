"""Rule metrics: measure one student's copying."""

from dmdpipe.artifacts.step import open_step
from dmdpipe.copying.measure import measure_copying

with open_step(snakemake.params.spec, snakemake.output.manifest, snakemake.log[0]) as step:
    measure_copying(step)
