# From cells to studies, from studies to verdicts. These folders carry no digest: they are what people open.


rule evidence:
    input:
        parents_of("evidence"),
    output:
        manifest=f"{RESULTS}/studies/{{step}}/manifest.json",
        results=f"{RESULTS}/studies/{{step}}/results.parquet",
        table=report(f"{RESULTS}/studies/{{step}}/results.csv", caption="../reports/results.rst", category="Tables"),
        gallery=f"{RESULTS}/studies/{{step}}/gallery.parquet",
    log:
        f"{RESULTS}/logs/evidence/{{step}}.log",
    wildcard_constraints:
        step="[^/]+/[^/]+",
    resources:
        mem_mb=memory_of("evidence"),
        runtime=minutes_of("evidence"),
    params:
        spec=spec_of("evidence"),
    script:
        "../workflow/scripts/evidence.py"


rule verdicts:
    input:
        parents_of("verdicts"),
    output:
        manifest=f"{RESULTS}/verdicts/{{step}}/manifest.json",
        verdicts=report(
            f"{RESULTS}/verdicts/{{step}}/verdicts.csv", caption="../reports/verdicts.rst", category="Verdicts"
        ),
        verdicts_json=f"{RESULTS}/verdicts/{{step}}/verdicts.json",
        verdicts_parquet=f"{RESULTS}/verdicts/{{step}}/verdicts.parquet",
        criteria=f"{RESULTS}/verdicts/{{step}}/criteria.csv",
        criteria_parquet=f"{RESULTS}/verdicts/{{step}}/criteria.parquet",
        sensitivity=f"{RESULTS}/verdicts/{{step}}/sensitivity.csv",
        sensitivity_parquet=f"{RESULTS}/verdicts/{{step}}/sensitivity.parquet",
        results=f"{RESULTS}/verdicts/{{step}}/results.parquet",
        gallery=f"{RESULTS}/verdicts/{{step}}/gallery.parquet",
    log:
        f"{RESULTS}/logs/verdicts/{{step}}.log",
    resources:
        mem_mb=memory_of("verdicts"),
        runtime=minutes_of("verdicts"),
    params:
        spec=spec_of("verdicts"),
    script:
        "../workflow/scripts/verdicts.py"


for study in RUN.studies.values():

    rule:
        name:
            f"study_{study.name}"
        input:
            files_of(study.evidence),
