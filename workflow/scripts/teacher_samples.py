"""Rule teacher_samples: the teacher's map over the noise bank."""

from dmdpipe.artifacts.step import open_step
from dmdpipe.pairing.maps import sample_teacher

with open_step(snakemake.params.spec, snakemake.output.manifest, snakemake.log[0]) as step:
    sample_teacher(step)
