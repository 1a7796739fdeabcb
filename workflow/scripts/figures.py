"""Rule figures: run one notebook of the report."""

from dmdpipe.artifacts.step import open_step
from dmdpipe.figures.step import draw_figures

with open_step(snakemake.params.spec, snakemake.output.manifest, snakemake.log[0]) as step:
    draw_figures(step)
