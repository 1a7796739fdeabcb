"""``dmdpipe audit``, what an auditor asks of results, and ``dmdpipe bundle``."""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dmdpipe.audit.tree import Artifact, read_artifact, step_folders
from dmdpipe.errors import UserError, did_you_mean
from dmdpipe.specs.claims import load_claims
from dmdpipe.specs.config import CONFIG_FOLDER, load_config, study_names
from dmdpipe.tables import Format, render

audit_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Check results: what they are, what made them, whether they can be made again.

    \b
    dmdpipe audit verify                                    is every file what its manifest says, and up to date?
    dmdpipe audit explain results/report/smoke/overview     what it was made from, and why it would run again
    dmdpipe audit reproduce --sample 10                     run ten random steps again and compare the bytes
    dmdpipe audit diff results elsewhere                    two trees of results, artifact by artifact
    dmdpipe audit accept results/students --reason cosmetic  for the record: a change alters nothing
    dmdpipe audit export dimension                          a study as a Workflow Run RO-Crate
    """,
)

KEYED_NAME = re.compile("-[0-9a-f]{16}$")
ResultsOption = Annotated[Path | None, typer.Option("--results", help="root of the results; the configured one")]
FormatOption = Annotated[Format, typer.Option("--format", help="how to print: table or json")]


def results_folder() -> Path:
    """Return the folder of results that the configuration names."""
    return Path(load_config().results)


def refuse_csv(form: Format) -> None:
    """Check that what is no table is not asked for as one; raises UserError if it is."""
    if form is Format.csv:
        raise UserError("--format: 'csv' is not offered here; use table or json")


@audit_app.command("verify")
def verify(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="a folder of results, or artifacts; the configured results if left out")
    ] = None,
    form: FormatOption = Format.table,
) -> None:
    """Verify results: hash every file, walk every chain of parents, compare with today's configuration and code.

    Prints one line for each problem and cause, then a summary with the digest of each study. Exit status 0: nothing
    is wrong. 1: something is. 2: the question was wrong.

    \b
    Kinds of problem: tampered, missing, truncated, orphan (belongs to nothing), cycle, unknown schema, stale config,
    stale code, stale parent (made from another state of its parent), foreign environment.

    \b
    dmdpipe audit verify                                         everything in the configured results
    dmdpipe audit verify results/report/smoke/overview           one page, with all that it was made from
    dmdpipe audit verify --format json > audit.json
    """
    from dmdpipe.audit.verify import verify_tree
    from dmdpipe.audit.words import audit_json, audit_text

    refuse_csv(form)
    audits = []
    for results, only in trees_of(paths or [results_folder()]):
        with progress_bar() as progress:
            audits.append(verify_tree(results, only, progress=progress))
    if form is Format.json:
        typer.echo(json.dumps([audit_json(audit) for audit in audits], indent=1))
    else:
        typer.echo("\n\n".join(audit_text(audit) for audit in audits))
    raise typer.Exit(int(any(audit.problems for audit in audits)))


@audit_app.command("explain")
def explain(
    artifact: Annotated[Path, typer.Argument(help="a step's folder, or any file in it")],
    form: FormatOption = Format.table,
) -> None:
    """Explain an artifact: all that it was made from, as a tree, and why each step would run again now, or not.

    Each line names a step's folder; below it stand the seeds, the digest of the code, when and where it ran and for
    how long. Reasons are named differences: "recipe.generator.learning_rate: 0.0001 → 0.0002",
    "code: distill/dmd.py::dm_gradient changed".

    Example: dmdpipe audit explain results/report/smoke/overview/notebook.html
    """
    from dmdpipe.audit.explain import explain_artifact, explanation_text

    refuse_csv(form)
    explanation = explain_artifact(read_artifact(artifact))
    typer.echo(json.dumps(asdict(explanation), indent=1) if form is Format.json else explanation_text(explanation))


@audit_app.command("accept")
def accept(
    steps: Annotated[list[Path], typer.Argument(help="steps' folders, or folders of steps such as results/students")],
    reason: Annotated[str, typer.Option("--reason", help="why the change cannot alter the result; for the log")],
    unchecked: Annotated[bool, typer.Option("--unchecked", help="make no step again first")] = False,
    seed: Annotated[int | None, typer.Option(help="of the steps that are made again; a new one if left out")] = None,
) -> None:
    """Record that a change alters nothing of a step: it counts as current, and does not run again.

    A change of its code, if you know that; or parents that were made again since, by other code or elsewhere, and have
    the same bytes. A step of which a parent has other bytes is refused: exit status 1, after the others are accepted.

    Where code changed, one random step of each kind and each set of changes is made again first, in a scratch folder.
    If its bytes differ, all that are alike are not accepted, and the exit status is 1. --unchecked leaves that out.

    The entry says who, when, why and what changed, and stays in audit/accepted.jsonl in the results for good; verify
    and explain show it. A later change of the same code, or another making of a parent, needs an entry of its own.

    \b
    dmdpipe audit accept results/students --reason "renamed a variable in dm_gradient"
    dmdpipe audit accept results --reason "teachers were made again by newer code, with the same bytes"
    """
    from dmdpipe.audit.accepted import accept as write_acceptances
    from dmdpipe.audit.differences import few
    from dmdpipe.audit.words import printable, some

    artifacts = artifacts_at(steps)
    failed = [] if unchecked else _made_otherwise(artifacts, secrets.randbelow(2**32) if seed is None else seed)
    outcome = write_acceptances([artifact for artifact in artifacts if artifact not in failed], reason)
    accepted: dict[str, list[str]] = defaultdict(list)
    for entry in outcome.entries:
        accepted[few(list(entry.differences))].append(entry.step)
    for differences, places in accepted.items():
        typer.echo(printable(f"accepted for {some(places)}: {differences}"))
    for step, others in outcome.refused.items():
        typer.echo(printable(f"not accepted for {step}: {others}; ./run makes it again"))
    if not (outcome.entries or outcome.refused or failed):
        typer.echo("nothing to accept: all of it is as today's code and these parents make it, or accepted already")
    raise typer.Exit(int(bool(outcome.refused or failed)))


def _made_otherwise(artifacts: list[Artifact], seed: int) -> list[Artifact]:
    """Make one of each group of artifacts again whose code changed alike; return the groups that came out otherwise."""
    from dmdpipe.audit.accepted import alike
    from dmdpipe.audit.reproduce import reproduce, scratch_folder
    from dmdpipe.audit.words import printable, some

    generator = random.Random(seed)
    groups = alike(artifacts)
    failed = []
    scratch = scratch_folder()
    try:
        for number, group in enumerate(groups, 1):
            chosen = generator.choice(group)
            try:
                found = reproduce(chosen, scratch / str(number))
                outcome, is_same = found.outcome, found.reproduced
            except UserError as error:
                outcome, is_same = str(error), False
            typer.echo(printable(f"{number}/{len(groups)} made again (seed {seed}): {chosen.folder}: {outcome}"))
            if not is_same:
                failed += group
                folders = [artifact.folder for artifact in group]
                typer.echo(printable(f"not accepted for {some(folders)}: their code gives other bytes, or none"))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return failed


@audit_app.command("diff")
def diff(
    run_a: Annotated[Path, typer.Argument(help="a folder of results", show_default=False)],
    run_b: Annotated[Path, typer.Argument(help="another", show_default=False)],
    form: Annotated[Format, typer.Option("--format", help="table, json or csv")] = Format.table,
) -> None:
    """Compare two trees of results artifact by artifact; each gets a class, and a reason if it is not identical.

    \b
    identical                 the same bytes; every file is read, no manifest is believed
    equal within tolerance    numbers and pictures differ by rounding only
    statistically compatible  trained again; in its studies no metric's seeds differ by more than chance (Welch's t)
    different                 anything else
    only in A, only in B      a step of a spec that the other tree lacks

    Printed are the counts, then every artifact that is not identical, worst first: the file that differs most, where in
    it the largest difference is and how large, and the reason for the class.

    The exit status is 0 if B reproduces A (the first three classes), 1 if not, 2 if a path holds no results. Logs and
    run.json, which say when and where, are not compared.

    Example: dmdpipe audit diff results /mnt/cluster/results
    """
    from dmdpipe.audit.diff import diff_trees
    from dmdpipe.audit.diff_text import diff_json, diff_table, diff_text

    with progress_bar() as progress:
        comparisons = diff_trees(run_a, run_b, progress)
    match form:
        case Format.table:
            typer.echo(diff_text(comparisons))
        case Format.json:
            typer.echo(diff_json(comparisons))
        case Format.csv:
            typer.echo(render(diff_table(comparisons), form))
    if not all(comparison.agreement.reproduces for comparison in comparisons):
        raise typer.Exit(1)


@audit_app.command("reproduce")
def reproduce(
    artifacts: Annotated[list[Path] | None, typer.Argument(help="folders of steps, or files in them")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="rerun so many random steps instead")] = None,
    seed: Annotated[int | None, typer.Option(help="of the sample; a new one if left out")] = None,
    results: ResultsOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="keep the scratch folder and print its path")] = False,
    form: Annotated[Format, typer.Option("--format", help="how to print: table or json")] = Format.table,
) -> None:
    """Rerun steps in a scratch folder, each from its manifest and its parents alone, and compare the bytes.

    Exits with 0 if all are reproduced, with 1 if one is not, with 2 if an artifact is damaged or the command is wrong.

    \b
    dmdpipe audit reproduce results/report/smoke/overview
    dmdpipe audit reproduce --sample 10 --seed 1
    """
    from dmdpipe.audit import reproduce as reruns
    from dmdpipe.audit.rerun import check_intact

    if bool(artifacts) == bool(sample):
        raise UserError("audit reproduce: name artifacts, or a number of random ones with --sample")
    refuse_csv(form)
    aside = form is Format.json
    if sample:
        seed = secrets.randbelow(2**32) if seed is None else seed
        steps = reruns.sample_steps(results or results_folder(), sample, seed)
        typer.echo(f"seed {seed}", err=aside)
    else:
        steps = [read_artifact(path) for path in artifacts or []]
    for step in steps:
        check_intact(step)
    scratch = reruns.scratch_folder()
    found = []
    with ExitStack() as cleaning:
        if keep:
            typer.echo(f"scratch folder: {scratch}", err=aside)
        else:
            cleaning.callback(shutil.rmtree, scratch, ignore_errors=True)
        for number, step in enumerate(steps, 1):
            started = time.monotonic()
            found.append(reruns.reproduce(step, scratch / str(number)))
            took = time.monotonic() - started
            typer.echo(f"{number}/{len(steps)} {step.folder}: {found[-1].outcome} [{took:.1f} s]", err=aside)
    reproduced = sum(reproduction.reproduced for reproduction in found)
    if form is Format.json:
        typer.echo(json.dumps([reproduction.as_json() for reproduction in found], indent=1, ensure_ascii=False))
    else:
        typer.echo(f"{reproduced} of {len(found)} steps reproduced bitwise")
    if reproduced < len(found):
        raise typer.Exit(1)


@audit_app.command("export")
def export(
    study: Annotated[str | None, typer.Argument(help="a study, e.g. dimension; all of a run if left out")] = None,
    scale: Annotated[str | None, typer.Option(help="smoke, laptop, …; the configured one if left out")] = None,
    results: ResultsOption = None,
    output: Annotated[Path | None, typer.Option(help="the folder to make; crate-STUDY-SCALE if left out")] = None,
) -> None:
    """Write a study as a Workflow Run RO-Crate: every file, and which step made it from what.

    Example: dmdpipe audit export dimension --scale smoke
    """
    from dmdpipe.artifacts.stages import STAGES
    from dmdpipe.audit.crate import write_crate
    from dmdpipe.specs.config import load_config, study_names

    if study and study not in study_names():
        raise UserError(f"config/studies: there is no study '{study}'{did_you_mean(study, study_names())}")
    config = load_config({"scale": scale} if scale else {})
    root = results or Path(config.results)
    leaf = (
        root / STAGES["evidence"].folder / study / config.scale
        if study
        else root / STAGES["verdicts"].folder / config.scale
    )
    folder = write_crate(read_artifact(leaf), output or Path(f"crate-{study or 'all'}-{config.scale}"))
    typer.echo(f"{folder}: a crate of {leaf.relative_to(root)}")


@audit_app.command("publish")
def publish(
    results: Annotated[Path | None, typer.Argument(help="the results; the configured ones if left out")] = None,
) -> None:
    """Write the result root of each study, verdicts and page here into config/published.json, by environment class.

    For maintainers: others' runs are then compared with it. Refused while verify finds a problem.

    Example: dmdpipe audit publish results
    """
    from dmdpipe.audit.published import FILE, PublishedRoot
    from dmdpipe.audit.published import publish as write_published
    from dmdpipe.audit.verify import verify_tree
    from dmdpipe.audit.words import problem_lines

    audit = verify_tree(results or results_folder())
    if audit.problems:
        raise UserError(f"{audit.results}: not published, since {problem_lines(audit)[0]}")
    for root in audit.roots:
        own = PublishedRoot(spec=root.spec, result_root=root.result)
        write_published({root.scale: {root.name: own}}, root.environment)
        typer.echo(f"{FILE}: {root.name} ({root.scale}) {root.result}")


def bundle(
    artifact: Annotated[Path, typer.Argument(help="a step's folder, or a file in it")],
    output: Annotated[Path | None, typer.Option(help="the archive; named after the step if left out")] = None,
    today: Annotated[bool, typer.Option("--today", help="pack today's code even if it is not the step's")] = False,
) -> None:
    """Pack one step into an archive that reruns it on another machine, without Snakemake.

    Unpack it there and follow its README.md: `python rerun.py` says whether the bytes are the recorded ones.

    Example: dmdpipe bundle results/report/smoke/overview
    """
    from dmdpipe.audit.bundle import bundle_name, write_bundle

    step = read_artifact(artifact)
    archive = output or Path(f"{bundle_name(step)}.tar.gz")
    write_bundle(step, archive, today=today)
    typer.echo(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB; unpack it, then: python rerun.py")


def findings(
    scale: Annotated[str | None, typer.Option(help="the configured one if left out")] = None,
    out: Annotated[Path, typer.Option(help="the folder of findings.md and reference/")] = Path("docs"),
    only: Annotated[
        list[str] | None,
        typer.Option("--study", help="write this study alone, which no claim reads; may be given several times"),
    ] = None,
    results: ResultsOption = None,
) -> None:
    """Write what a finished run found, to commit it: the scale's block in docs/findings.md, and docs/reference/.

    Every number with its interval, every verdict on claims and controls, the commands and the digests; per study its
    numbers at the read-out, figures and manifests. No weights. Equal results give equal files. Refused if a study or a
    page is not the one that the verdicts stand on.

    With --study, what is written already stays, but for this study and the controls that read nothing else.

    \b
    dmdpipe findings --scale laptop
    dmdpipe findings --scale laptop --study photos_wide
    """
    from dmdpipe.audit.findings import write_findings

    controls = load_claims(CONFIG_FOLDER / "controls.yaml", study_names(), controls=True)
    written = write_findings(results or results_folder(), scale or load_config().scale, out, controls, only or ())
    size = sum(path.stat().st_size for path in written)
    typer.echo(f"{out / 'findings.md'}, and {len(written) - 1} files in {out / 'reference'}: {size / 2**20:.1f} MiB")


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Show on a terminal how many steps are done; the block is given what to tell: how many, and how many of them."""
    from tqdm import tqdm

    with tqdm(disable=None, leave=False, unit="step") as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell


def trees_of(paths: list[Path]) -> list[tuple[Path, list[str] | None]]:
    """Return the trees that paths name: roots of results (with None), or roots with the folders of artifacts in them.

    Raises:
        UserError: for a path that holds neither.
    """
    trees: dict[Path, list[str] | None] = {}
    for path in paths:
        steps = [path] if is_step(path) else steps_below_stage(path)
        for step in steps:
            results, folder = locate(step)
            chosen = trees.setdefault(results, [])
            if chosen is not None:
                chosen.append(folder)
        if not steps:
            trees[path] = None
    return list(trees.items())


def is_step(path: Path) -> bool:
    """Whether a path is a step's folder, or no folder at all."""
    return not path.is_dir() or os.path.lexists(path / "manifest.json")


def steps_below_stage(path: Path) -> list[Path]:
    """Return the steps in a folder such as results/students; none if it is a root of results."""
    from dmdpipe.artifacts.stages import STAGES

    folders = step_folders(path)
    if any(folder.startswith(f"{stage.folder}/") for folder in folders for stage in STAGES.values() if stage.keyed):
        return []
    return [path / folder for folder in folders]


def locate(path: Path) -> tuple[Path, str]:
    """Return the root of the results and the folder of the artifact at ``path``, whose manifest may be damaged.

    Raises:
        UserError: if there is none.
    """
    from dmdpipe.artifacts.stages import STAGES

    folder = path if path.is_dir() else path.parent
    if not os.path.lexists(folder / "manifest.json"):
        raise UserError(f"{path}: is no artifact; name a folder with a manifest.json, a file in one, or results")
    keyed = [stage.folder for stage in STAGES.values() if stage.keyed]
    others = [stage.folder for stage in STAGES.values() if not stage.keyed]
    whole = Path(os.path.abspath(folder))
    # studies/STUDY/SCALE and report/SCALE/PAGE lie deeper than all others; STUDY may be called as a stage is.
    for depth, names in ((2, keyed if KEYED_NAME.search(whole.name) else []), (3, others), (2, [*others, *keyed])):
        if len(whole.parts) > depth and whole.parts[-depth] in names:
            results = whole.parents[depth - 1]
            return results, whole.relative_to(results).as_posix()
    raise UserError(f"{path}: lies in no folder of results")


def artifacts_at(paths: list[Path]) -> list[Artifact]:
    """Return the artifacts at paths, each a step's folder, a file in one, or a folder that holds steps.

    Raises:
        UserError: if a path holds none, or a manifest is damaged.
    """
    found = []
    for path in paths:
        if path.is_dir() and not (path / "manifest.json").exists():
            folders = step_folders(path)
            if not folders:
                raise UserError(f"{path}: holds no artifacts")
            found += [read_artifact(path / folder) for folder in folders]
        else:
            found.append(read_artifact(path))
    return found
