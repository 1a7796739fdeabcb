# What everything starts from: prepared data, and the noise that teacher and students share.


rule fetch:
    output:
        # Not removed before the rule runs: who put the file there may have no network.
        update(f"{FOLDER}/{{file}}"),
    log:
        f"{RESULTS}/logs/fetch/{{file}}.log",
    # Where ./run was started: a cluster's nodes may have no network.
    localrule: True
    script:
        "../workflow/scripts/fetch.py"


rule data:
    input:
        parents_of("data"),
        fetched=fetched,
    output:
        manifest=f"{RESULTS}/data/{{step}}/manifest.json",
        data=f"{RESULTS}/data/{{step}}/data.safetensors",
        facts=f"{RESULTS}/data/{{step}}/facts.json",
    log:
        f"{RESULTS}/logs/data/{{step}}.log",
    resources:
        mem_mb=memory_of("data"),
        runtime=minutes_of("data"),
    params:
        spec=spec_of("data"),
    script:
        "../workflow/scripts/data.py"


rule noise:
    input:
        parents_of("noise"),
    output:
        manifest=f"{RESULTS}/noise/{{step}}/manifest.json",
        noise=f"{RESULTS}/noise/{{step}}/noise.safetensors",
    log:
        f"{RESULTS}/logs/noise/{{step}}.log",
    resources:
        mem_mb=memory_of("noise"),
        runtime=minutes_of("noise"),
    params:
        spec=spec_of("noise"),
    script:
        "../workflow/scripts/noise.py"
