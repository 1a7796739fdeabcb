"""The ``dmdpipe`` command: what exists, what it costs, what came out."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmdpipe.artifacts.disk import failures_told
from dmdpipe.audit.commands import audit_app, bundle, findings
from dmdpipe.audit.tree import read_table
from dmdpipe.bench.commands import bench_app
from dmdpipe.errors import UserError, did_you_mean
from dmdpipe.measuring.commands import cost, measure
from dmdpipe.measuring.convert import convert
from dmdpipe.tables import (
    RESULT_COLUMNS,
    SENSITIVITY_COLUMNS,
    VERDICT_COLUMNS,
    Format,
    render,
    sensitivity_text,
    verdict_text,
)

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Why do DMD students reproduce their teacher's noise-to-sample pairing?

    \b
    dmdpipe studies               what can be run
    dmdpipe studies plan          how many steps, and about how long
    dmdpipe run                   run the configured studies and make the report
    dmdpipe status                how far a run is, and what failed in it
    dmdpipe verdicts              what became of the claims
    dmdpipe results --format csv  every number behind them
    dmdpipe findings              what to commit of it: docs/findings.md, docs/reference/
    dmdpipe measure --help        whether a student that you have copies its teacher
    dmdpipe cost --help           what that takes, of large networks
    dmdpipe convert --help        the one way in for weights that are pickled
    dmdpipe audit verify          whether all of it can be trusted
    dmdpipe bench training        what training costs on this machine
    """,
)
studies_app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="""What exists, what it varies, and what it costs.

    \b
    dmdpipe studies                               list all studies
    dmdpipe studies show dimension                one study: question, prediction, grid
    dmdpipe studies plan dimension --scale smoke  its steps and their cost
    """,
)
config_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""The configuration.

    \b
    dmdpipe config check                  every study at every scale, and the claims
    """,
)
app.add_typer(studies_app, name="studies")
app.add_typer(config_app, name="config")
app.add_typer(audit_app, name="audit")
app.add_typer(bench_app, name="bench")
app.command()(bundle)
app.command()(findings)
app.command()(measure)
app.command()(cost)
app.command()(convert)

NO_MEMORY = ("can't allocate memory", "out of memory")  # PyTorch's words: of the machine's, of a GPU's

ScaleOption = Annotated[str | None, typer.Option("--scale", help="smoke, laptop, …; the configured one if left out")]
FormatOption = Annotated[Format, typer.Option("--format", help="how to print")]


def main() -> None:
    """Run the command line; a mistake of the user's, a failing disk or too little memory is one line on stderr and exit
    status 2.
    """
    try:
        with failures_told(Path("standard output")), _limits_told():
            app()
    except UserError as error:
        print(f"dmdpipe: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


@contextmanager
def _limits_told() -> Iterator[None]:
    """Turn what no machine, or not this one, can hold into one line for the user.

    Raises:
        UserError: instead of the error of a name that is too long, or of memory that is not there.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = max(Path(str(error.filename)).parts, key=len)
        raise UserError(f"{name[:40]}…: no file can have so long a name; choose a shorter one") from None
    except (MemoryError, RuntimeError) as error:
        # Of the machine's memory PyTorch has a RuntimeError like any other, of a GPU's a kind of its own.
        said = " ".join(str(error).split())
        if not (isinstance(error, MemoryError) or any(words in said for words in NO_MEMORY)):
            raise
        raise UserError(f"there is not enough memory for that ({said[:120]}); ask for less at a time") from None


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def run(context: typer.Context) -> None:
    """Run Snakemake on the configured studies, then make the report and print the verdicts.

    \b
    Everything after `run` goes to Snakemake:
      dmdpipe run                          the laptop scale, all default studies
      dmdpipe run --config scale=smoke     the same, small
      dmdpipe run -n                       what would run, and why
      dmdpipe run study_dimension          one study
    """
    from dmdpipe.runner import run_workflow

    if {"-h", "--help"} & set(context.args):
        typer.echo(context.get_help())
        return
    raise typer.Exit(run_workflow(context.args))


@app.command()
def status(
    results: Annotated[Path | None, typer.Option("--results", help="root of the results; the configured one")] = None,
) -> None:
    """Show how far a run is: what runs, what failed and why, what waits, and about how long it still takes.

    It reads files in the results, so it may be asked from any machine that sees them, also of a run on a cluster.

    Example: dmdpipe status
    """
    import time

    from dmdpipe.progress import look_at, progress_text
    from dmdpipe.specs.config import load_config

    typer.echo(progress_text(look_at(results or Path(load_config().results)), time.time()))


@studies_app.callback()
def studies(context: typer.Context) -> None:
    """List all studies unless a subcommand says otherwise."""
    if context.invoked_subcommand is None:
        list_studies()


@studies_app.command("list")
def list_studies(form: FormatOption = Format.table) -> None:
    """List all studies: number, name, title, axes, points at every scale, and whether it runs by default.

    Example: dmdpipe studies list --format csv
    """
    import pandas as pd

    from dmdpipe.specs.config import load_config, load_study, members_of, scale_names, study_names

    default = load_config().studies
    rows = []
    for name in study_names():
        study = load_study(name)
        points = {scale: len({m.point for m in members_of(name, scale)}) for scale in scale_names()}
        rows.append(
            {
                "number": study.number,
                "name": name,
                "title": study.title,
                "varies": ", ".join(study.axes) or "-",
                **{f"points_{scale}": count for scale, count in points.items()},
                "default": name in default,
            }
        )
    typer.echo(render(pd.DataFrame(rows), form))


@studies_app.command("show")
def show_study(name: Annotated[str, typer.Argument(help="a study, e.g. dimension")], scale: ScaleOption = None) -> None:
    """Show one study: its question, its prediction, and its grid at a scale.

    Example: dmdpipe studies show sigma_max --scale laptop
    """
    from dmdpipe.specs.config import load_config, load_study, members_of

    study = load_study(_known_study(name))
    scale = scale or load_config().scale
    members = members_of(name, scale)
    typer.echo(f"study {study.number}: {study.title}\n\nquestion:   {study.question}\nprediction: {study.prediction}\n")
    for axis, labels in study.axes.items():
        typer.echo(f"varies {axis}: {', '.join(labels)}")
    seeds: dict[str, list[int]] = {}
    for member in members:
        seeds.setdefault(member.point, []).append(member.seed)
    said = {point: f"{len(own)} seeds, {own[0]} to {own[-1]}" for point, own in seeds.items()}
    alike = len(set(said.values())) == 1
    number = f"{next(iter(said.values()))} " if alike else "with seeds "
    typer.echo(f"\nat scale {scale}, {number}(teacher and student re-seeded):")
    for point, of_point in said.items():
        typer.echo(f"  {point}" if alike else f"  {point}: {of_point}")


@studies_app.command("plan")
def plan_studies(
    name: Annotated[str | None, typer.Argument(help="a study; all configured ones if left out")] = None,
    scale: ScaleOption = None,
    used: Annotated[bool, typer.Option("--used", help="what finished steps used of what SLURM is asked for")] = False,
    form: FormatOption = Format.table,
) -> None:
    """Show how many steps will run, how many training updates they make, and about how long they take.

    Steps that studies share are counted once. The times are estimates for one core, from measured milliseconds per
    update; a run on n cores takes about an n-th. With --used: of each rule the longest finished step and the largest,
    and the largest share that one took of the time limit and of the memory that a job for it asks for.

    \b
    dmdpipe studies plan dimension --scale laptop
    dmdpipe studies plan --used
    """
    import pandas as pd

    from dmdpipe.artifacts.dag import plan_run, plan_study, steps_below
    from dmdpipe.cost import estimated_seconds, training_updates
    from dmdpipe.specs.config import load_config
    from dmdpipe.usage import usage_by_rule

    overrides = {"scale": scale} if scale else {}
    if name:
        steps = list(steps_below(plan_study(_known_study(name), load_config(overrides).scale).evidence))
    else:
        steps = list(plan_run(overrides).steps.values())
    results = Path(load_config(overrides).results)
    if used:
        typer.echo(render(usage_by_rule(steps, results), form))
        return
    rows = pd.DataFrame(
        {
            "rule": step.stage,
            "steps": 1,
            "finished": int((results / step.folder / "manifest.json").exists()),
            "updates": training_updates(step),
            "core_minutes": estimated_seconds(step) / 60,
        }
        for step in steps
    )
    table = rows.groupby("rule", sort=False).sum().reset_index()
    total = {"rule": "total", **table.drop(columns="rule").sum().to_dict()}
    table = pd.concat([table, pd.DataFrame([total])], ignore_index=True)
    integers = ["steps", "finished", "updates"]
    typer.echo(render(table.astype(dict.fromkeys(integers, int)), form))
    if form is Format.table:
        minutes = total["core_minutes"]
        typer.echo(f"\nabout {minutes:.0f} core minutes: {minutes / 2:.0f} minutes on 2 cores")


@app.command()
def results(
    study: Annotated[str | None, typer.Option(help="one study; all if left out")] = None,
    scale: ScaleOption = None,
    metric: Annotated[str | None, typer.Option(help="one metric, e.g. rho")] = None,
    readout: Annotated[bool, typer.Option("--readout", help="only the declared read-out step")] = False,
    form: FormatOption = Format.table,
) -> None:
    """Print the tidy table of everything that was measured.

    \b
    dmdpipe results --study dimension --metric rho --readout
    dmdpipe results --format csv > results.csv
    """
    table = _read_results(study, scale).astype({"metric": str, "readout": bool})
    if metric:
        if metric not in set(table["metric"]):
            raise UserError(f"--metric: there is no '{metric}'{did_you_mean(metric, set(table['metric']))}")
        table = table[table["metric"] == metric]
    typer.echo(render(table[table["readout"]] if readout else table, form))


@app.command()
def verdicts(
    scale: ScaleOption = None,
    criteria: Annotated[bool, typer.Option("--criteria", help="every criterion with its numbers")] = False,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="what each claim's verdict would be with other choices")
    ] = False,
    controls: Annotated[
        bool, typer.Option("--controls", help="the controls in place of the claims; with --criteria, their numbers")
    ] = False,
    form: FormatOption = Format.table,
) -> None:
    """Print what became of each claim. Verdicts are computed from the results by the rules in config/claims.yaml.

    With --sensitivity, the same results as judged with another gate, another metric, another snapshot or another
    recipe, one at a time. That shows on which choices a verdict hangs; it changes none.

    With --controls, the same results are judged by config/controls.yaml: what else might explain the copying, or its
    absence, and which claims that could sink. Controls are a family of their own and change no claim's verdict. One
    whose study is not among these results is not run.

    \b
    dmdpipe verdicts --format json
    dmdpipe verdicts --controls --criteria --format csv
    """
    from dmdpipe.specs.config import load_config

    if sensitivity and (criteria or controls):
        raise UserError(f"--{'criteria' if criteria else 'controls'} and --sensitivity are two tables; ask for one")
    config = load_config({"scale": scale} if scale else {})
    folder = Path(config.results, "verdicts", config.scale)
    numbers = "criteria.csv" if criteria else "sensitivity.parquet" if sensitivity else "verdicts.csv"
    path = folder / ("results.parquet" if controls else numbers)
    if not path.exists():
        raise UserError(f"{path}: not there yet; run ./run --config scale={config.scale} first")
    needed = () if criteria else SENSITIVITY_COLUMNS if sensitivity else VERDICT_COLUMNS
    table = _controls(path, criteria) if controls else read_table(path, needed)
    if form is not Format.table or criteria:
        typer.echo(render(table, form))
    elif sensitivity:
        typer.echo(sensitivity_text(table))
    else:
        rows = table.astype(str).to_dict("records")
        typer.echo(verdict_text([{str(column): value for column, value in row.items()} for row in rows]))


def _controls(results: Path, criteria: bool) -> pd.DataFrame:
    from dmdpipe.evidence.controls import judge_controls
    from dmdpipe.evidence.results import COLUMNS
    from dmdpipe.specs.claims import load_claims
    from dmdpipe.specs.config import CONFIG_FOLDER, study_names

    declared = load_claims(CONFIG_FOLDER / "controls.yaml", study_names(), controls=True)
    judged = judge_controls(declared, read_table(results, COLUMNS))
    return judged.criteria if criteria else judged.verdicts.drop(columns=["statement", "level_of_evidence"])


@config_app.command("check")
def check_config() -> None:
    """Check the whole configuration: every study at every scale, every scale, the claims, the controls.

    Prints one line and exits with 0 if all is well; else one line that names file and key, and exits with 2.

    Example: dmdpipe config check
    """
    from dmdpipe.artifacts.dag import plan_run
    from dmdpipe.specs.claims import load_claims
    from dmdpipe.specs.config import CONFIG_FOLDER, load_config, members_of, scale_names, study_names

    counts = {scale: sum(len(members_of(name, scale)) for name in study_names()) for scale in scale_names()}
    run_plan = plan_run()
    load_claims(CONFIG_FOLDER / "controls.yaml", study_names(), controls=True)
    typer.echo(
        f"configuration is valid: {len(study_names())} studies, scales "
        + ", ".join(f"{scale} ({count} students)" for scale, count in counts.items())
        + f"; the configured run has {len(run_plan.steps)} steps at scale {load_config().scale}"
    )


def _known_study(name: str) -> str:
    from dmdpipe.specs.config import study_names

    if name not in study_names():
        raise UserError(f"config/studies: there is no study '{name}'{did_you_mean(name, study_names())}")
    return name


def _read_results(study: str | None, scale: str | None) -> pd.DataFrame:
    import pandas as pd

    from dmdpipe.specs.config import load_config

    config = load_config({"scale": scale} if scale else {})
    names = [_known_study(study)] if study else config.studies
    paths = [Path(config.results, "studies", name, config.scale, "results.parquet") for name in names]
    found = [path for path in paths if path.exists()]
    if not found:
        raise UserError(f"{paths[0]}: not there yet; run ./run --config scale={config.scale} first")
    return pd.concat([read_table(path, RESULT_COLUMNS) for path in found], ignore_index=True)
