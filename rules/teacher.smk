# The denoiser that stands for the data: trained, or exact where the score is known.


rule teacher:
    input:
        parents_of("teacher"),
    output:
        manifest=f"{RESULTS}/teachers/{{step}}/manifest.json",
        model=f"{RESULTS}/teachers/{{step}}/model.safetensors",
        history=f"{RESULTS}/teachers/{{step}}/history.parquet",
    log:
        f"{RESULTS}/logs/teacher/{{step}}.log",
    resources:
        mem_mb=memory_of("teacher"),
        runtime=minutes_of("teacher"),
        cpus_per_task=cpus_of("teacher"),
        devices=devices_of("teacher"),
        gpu=gpus_of("teacher"),
        large_on_gpu=large_on_gpu_of("teacher"),
        nodes=1,
        slurm_partition=partition_of("teacher"),
    params:
        spec=spec_of("teacher"),
    script:
        "../workflow/scripts/teacher.py"
