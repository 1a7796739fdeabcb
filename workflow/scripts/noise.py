"""Rule noise: draw the paired-noise bank of one dimension."""

from dmdpipe.artifacts.step import open_step
from dmdpipe.pairing.bank import make_noise_bank

with open_step(snakemake.params.spec, snakemake.output.manifest, snakemake.log[0]) as step:
    make_noise_bank(step)
