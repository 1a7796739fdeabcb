# How far a student is from every map that its pairing could come from.


rule maps:
    input:
        parents_of("maps"),
    output:
        manifest=f"{RESULTS}/maps/{{step}}/manifest.json",
        table=f"{RESULTS}/maps/{{step}}/maps.parquet",
    log:
        f"{RESULTS}/logs/maps/{{step}}.log",
    resources:
        mem_mb=memory_of("maps"),
        runtime=minutes_of("maps"),
    params:
        spec=spec_of("maps"),
    script:
        "../workflow/scripts/maps.py"
