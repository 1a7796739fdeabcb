# Students that differ in their seeds, trained together: one job for all of them, and a small one that takes each out.


rule ensemble:
    input:
        parents_of("ensemble"),
    output:
        manifest=f"{RESULTS}/ensembles/{{step}}/manifest.json",
        ensemble=f"{RESULTS}/ensembles/{{step}}/ensemble.safetensors",
    log:
        f"{RESULTS}/logs/ensemble/{{step}}.log",
    params:
        spec=spec_of("ensemble"),
    script:
        "../workflow/scripts/ensemble.py"


rule member:
    input:
        parents_of("member"),
    output:
        manifest=f"{RESULTS}/members/{{step}}/manifest.json",
        snapshots=f"{RESULTS}/members/{{step}}/snapshots.safetensors",
        history=f"{RESULTS}/members/{{step}}/history.parquet",
    log:
        f"{RESULTS}/logs/member/{{step}}.log",
    params:
        spec=spec_of("member"),
    script:
        "../workflow/scripts/member.py"
