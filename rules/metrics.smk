# How much a student copies, and how far its distribution is from the teacher's.


rule metrics:
    input:
        parents_of("metrics"),
    output:
        manifest=f"{RESULTS}/metrics/{{step}}/manifest.json",
        metrics=f"{RESULTS}/metrics/{{step}}/metrics.parquet",
    log:
        f"{RESULTS}/logs/metrics/{{step}}.log",
    resources:
        mem_mb=memory_of("metrics"),
        runtime=minutes_of("metrics"),
    params:
        spec=spec_of("metrics"),
    script:
        "../workflow/scripts/metrics.py"
