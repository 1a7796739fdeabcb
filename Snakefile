# dmdpipe: teacher → student → paired samples → copying metrics → evidence → verdicts → report.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


include: "rules/common.smk"


report: "reports/workflow.rst"


rule all:
    default_target: True
    input:
        [files_of(study.evidence) for study in RUN.studies.values()],
        files_of(RUN.verdicts),
        [files_of(notebook) for notebook in RUN.notebooks.values()],


include: "rules/data.smk"
include: "rules/teacher.smk"
include: "rules/distill.smk"
include: "rules/ensembles.smk"
include: "rules/pairs.smk"
include: "rules/metrics.smk"
include: "rules/maps.smk"
include: "rules/evidence.smk"
include: "rules/figures.smk"
