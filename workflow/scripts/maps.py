"""Rule maps: one student's distances to the maps that its pairing could come from."""

from dmdpipe.artifacts.step import open_step
from dmdpipe.copying.maps import measure_maps

with open_step(snakemake.params.spec, snakemake.output.manifest, snakemake.log[0]) as step:
    measure_maps(step)
