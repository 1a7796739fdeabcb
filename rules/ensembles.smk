# Students that differ in their seeds, trained together: one job for all of them, and a small one that takes each out.


rule ensemble:
    input:
        parents_of("ensemble"),
    output:
        manifest=f"{RESULTS}/ensembles/{{step}}/manifest.json",
        ensemble=f"{RESULTS}/ensembles/{{step}}/ensemble.safetensors",
    log:
        f"{RESULTS}/logs/ensemble/{{step}}.log",
    resources:
        mem_mb=memory_of("ensemble"),
        runtime=minutes_of("ensemble"),
        cpus_per_task=cpus_of("ensemble"),
        gpu=gpus_of("ensemble"),
        large_on_gpu=large_on_gpu_of("ensemble"),
        slurm_partition=partition_of("ensemble"),
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
    resources:
        mem_mb=memory_of("member"),
        runtime=minutes_of("member"),
    params:
        spec=spec_of("member"),
    script:
        "../workflow/scripts/member.py"
