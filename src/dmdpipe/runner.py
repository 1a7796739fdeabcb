"""``dmdpipe run``: check the configuration, run Snakemake, make the report, say what came out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from dmdpipe.artifacts.dag import RunPlan, plan_run
from dmdpipe.cost import seconds_by_rule
from dmdpipe.errors import UserError
from dmdpipe.tables import verdict_text

# Threads are part of a step's spec; a library must not take more on its own.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def run_workflow(arguments: list[str]) -> int:
    """Run Snakemake with ``arguments`` and, after a whole run, make the report and print the verdicts.

    Returns:
        Snakemake's exit status.

    Raises:
        UserError: if the configuration is wrong; nothing is run then.
    """
    if not Path("Snakefile").exists():
        raise UserError("there is no Snakefile here; run this in the folder of your checkout")
    overrides = config_overrides(arguments)
    run_plan = plan_run(overrides)
    results = Path(run_plan.config.results)
    _write_estimates(run_plan, results)
    os.environ.update({**ONE_THREAD, "DMDPIPE_RESULTS": str(results)})
    status = _snakemake(arguments)
    if status == 0 and _is_whole_run(arguments):
        _report(run_plan, results, overrides)
    return status


def config_overrides(arguments: list[str]) -> dict[str, Any]:
    """Return the ``key=value`` pairs after ``--config`` or ``-C``, values read as YAML as Snakemake does.

    Raises:
        UserError: for a word that is no pair.
    """
    overrides: dict[str, Any] = {}
    inside = False
    for word in arguments:
        if word in ("--config", "-C"):
            inside = True
        elif word.startswith("-"):
            inside = False
        elif inside:
            key, equals, value = word.partition("=")
            if not equals:
                raise UserError(f"--config: '{word}' is no key=value pair, e.g. scale=smoke")
            overrides[key] = yaml.safe_load(value)
    return overrides


def _is_whole_run(arguments: list[str]) -> bool:
    """Whether the arguments ask for the default target and really run it."""
    options_only = not [w for w in arguments if not w.startswith("-") and "=" not in w and not w.isdigit()]
    looks_only = {
        "-n",
        "--dry-run",
        "--dryrun",
        "--unlock",
        "--lint",
        "--dag",
        "--rulegraph",
        "--summary",
        "--list",
    }
    return options_only and not looks_only & set(arguments)


def _snakemake(arguments: list[str]) -> int:
    process = subprocess.Popen([sys.executable, "-m", "snakemake", *arguments])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # Snakemake got the same signal and is stopping its jobs; wait for it to finish cleanly.
            continue


def _write_estimates(run_plan: RunPlan, results: Path) -> None:
    folder = results / ".progress"
    folder.mkdir(parents=True, exist_ok=True)
    estimates = {"seconds": seconds_by_rule(run_plan.steps.values())}
    (folder / "plan.json").write_text(json.dumps(estimates))


def _report(run_plan: RunPlan, results: Path, overrides: dict[str, Any]) -> None:
    import pandas as pd

    folder = results / "report" / run_plan.config.scale
    report = folder / "report.html"
    verdicts = results / run_plan.verdicts.folder
    newest = max(
        (results / step.folder / "manifest.json").stat().st_mtime
        for step in [run_plan.verdicts, *run_plan.notebooks.values()]
    )
    if not report.exists() or report.stat().st_mtime < newest:
        given = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
        quiet = ["--quiet", "all"]
        if _snakemake(["--report", str(report), *quiet, *(["--config", *given] if given else [])]):
            raise UserError(f"{report}: Snakemake could not make its report; the pages in {folder} are complete")
    print(f"\nverdicts ({run_plan.config.scale} scale)\n")
    print(verdict_text(pd.read_csv(verdicts / "verdicts.csv")))
    print(f"\nreport:       {folder / 'overview' / 'notebook.html'}  (start here)")
    print(f"all pages:    {report}")
    print(f"every number: dmdpipe results --scale {run_plan.config.scale} --format csv")
