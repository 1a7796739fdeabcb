# The same noise through teacher and student.


rule teacher_samples:
    input:
        parents_of("teacher_samples"),
    output:
        manifest=f"{RESULTS}/teacher_samples/{{step}}/manifest.json",
        samples=f"{RESULTS}/teacher_samples/{{step}}/samples.safetensors",
    log:
        f"{RESULTS}/logs/teacher_samples/{{step}}.log",
    resources:
        mem_mb=memory_of("teacher_samples"),
        runtime=minutes_of("teacher_samples"),
        gpu=gpus_of("teacher_samples"),
        large_on_gpu=large_on_gpu_of("teacher_samples"),
        slurm_partition=partition_of("teacher_samples"),
    params:
        spec=spec_of("teacher_samples"),
    script:
        "../workflow/scripts/teacher_samples.py"


rule pairs:
    input:
        parents_of("pairs"),
    output:
        manifest=f"{RESULTS}/pairs/{{step}}/manifest.json",
        pairs=f"{RESULTS}/pairs/{{step}}/pairs.safetensors",
    log:
        f"{RESULTS}/logs/pairs/{{step}}.log",
    resources:
        mem_mb=memory_of("pairs"),
        runtime=minutes_of("pairs"),
        gpu=gpus_of("pairs"),
        large_on_gpu=large_on_gpu_of("pairs"),
        slurm_partition=partition_of("pairs"),
    params:
        spec=spec_of("pairs"),
    script:
        "../workflow/scripts/pairs.py"
