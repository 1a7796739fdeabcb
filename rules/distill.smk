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
    params:
        spec=spec_of("student"),
    # Long steps first: the short ones that follow fill the end of a run evenly.
    priority: 1
    script:
        "../workflow/scripts/student.py"
