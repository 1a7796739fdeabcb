# The report's notebooks, executed on the verdicts step's tables.


rule figures:
    input:
        parents_of("figures"),
    output:
        manifest=f"{RESULTS}/report/{{step}}/manifest.json",
        notebook=f"{RESULTS}/report/{{step}}/notebook.ipynb",
        page=report(
            f"{RESULTS}/report/{{step}}/notebook.html",
            caption="../reports/page.rst",
            category="Report",
            labels=labels_of_page,
        ),
    log:
        f"{RESULTS}/logs/figures/{{step}}.log",
    wildcard_constraints:
        step="[^/]+/[^/]+",
    resources:
        mem_mb=memory_of("figures"),
        runtime=minutes_of("figures"),
        notebook=1,
    params:
        spec=spec_of("figures"),
    script:
        "../workflow/scripts/figures.py"
