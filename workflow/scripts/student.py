"""Rule student: distil one student."""

from dmdpipe.artifacts.step import open_step
from dmdpipe.distill.loop import distil_student

with open_step(snakemake.params.spec, snakemake.output.manifest, snakemake.log[0], snakemake.resources.devices) as step:
    distil_student(step)
