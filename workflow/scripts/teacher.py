"""Rule teacher: train one teacher, or store an exact one."""

from dmdpipe.artifacts.step import open_step
from dmdpipe.diffusion.training import train_teacher

with open_step(snakemake.params.spec, snakemake.output.manifest, snakemake.log[0], snakemake.resources.devices) as step:
    train_teacher(step)
