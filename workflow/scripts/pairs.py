"""Rule pairs: one student over the paired noise."""

from dmdpipe.artifacts.step import open_step
from dmdpipe.pairing.maps import pair_samples

with open_step(snakemake.params.spec, snakemake.output.manifest, snakemake.log[0]) as step:
    pair_samples(step)
