# One-step students, with snapshots of their weights over training time.


rule student:
    input:
        parents_of("student"),
    output:
        manifest=f"{RESULTS}/students/{{step}}/manifest.json",
        snapshots=f"{RESULTS}/students/{{step}}/snapshots.safetensors",
        history=f"{RESULTS}/students/{{step}}/history.parquet",
    log:
        f"{RESULTS}/logs/student/{{step}}.log",
    resources:
        mem_mb=memory_of("student"),
        runtime=minutes_of("student"),
        cpus_per_task=cpus_of("student"),
        devices=devices_of("student"),
        gpu=gpus_of("student"),
        large_on_gpu=large_on_gpu_of("student"),
        nodes=1,
        slurm_partition=partition_of("student"),
    params:
        spec=spec_of("student"),
    script:
        "../workflow/scripts/student.py"
