"""``dmdpipe audit``: what an auditor asks of results."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dmdpipe.audit.tree import Artifact, read_artifact, step_folders
from dmdpipe.errors import UserError
from dmdpipe.specs.config import load_config
from dmdpipe.tables import Format

audit_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Check results: what they are, what made them, whether they can be made again.

    \b
    dmdpipe audit verify                     is every file what its manifest says, made by today's config and code?
    dmdpipe audit explain results/report/…   what a figure was made from, and why it would run again or not
    """,
)

FormatOption = Annotated[Format, typer.Option("--format", help="how to print: table or json")]


def results_folder() -> Path:
    """Return the folder of results that the configuration names."""
    return Path(load_config().results)


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
    dmdpipe audit verify results/report/smoke/dimension          one page, with all that it was made from
    dmdpipe audit verify --format json > audit.json
    """
    from dmdpipe.audit.verify import verify_tree
    from dmdpipe.audit.words import audit_json, audit_text

    audits = [verify_tree(results, only) for results, only in trees_of(paths or [results_folder()])]
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

    Example: dmdpipe audit explain results/report/smoke/dimension/notebook.html
    """
    from dmdpipe.audit.explain import explain_artifact, explanation_text

    explanation = explain_artifact(read_artifact(artifact))
    typer.echo(json.dumps(asdict(explanation), indent=1) if form is Format.json else explanation_text(explanation))


@audit_app.command("accept")
def accept(
    steps: Annotated[list[Path], typer.Argument(help="steps' folders, or folders of steps such as results/students")],
    reason: Annotated[str, typer.Option("--reason", help="why the change cannot alter the result; for the log")],
) -> None:
    """Record that a change of the code is cosmetic for a step: it counts as current, and does not run again.

    The entry says who, when, why and what changed, and stays in audit/accepted.jsonl in the results for good; verify
    and explain show it. A later change of the same code needs an entry of its own.

    Example: dmdpipe audit accept results/students --reason "renamed a variable in dm_gradient"
    """
    from dmdpipe.audit.accepted import accept as write_acceptances

    entries = write_acceptances(artifacts_at(steps), reason)
    for entry in entries:
        typer.echo(f"accepted for {entry.step}: {'; '.join(entry.changes)}")
    if not entries:
        typer.echo("nothing to accept: today's code made these steps, or is accepted for them already")


@audit_app.command("publish")
def publish(
    results: Annotated[Path | None, typer.Argument(help="the results; the configured ones if left out")] = None,
) -> None:
    """Write the result root of each study here into config/published.json, for this environment class.

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
        write_published({root.scale: {root.study: own}}, root.environment)
        typer.echo(f"{FILE}: {root.study} ({root.scale}) {root.result}")


def trees_of(paths: list[Path]) -> list[tuple[Path, list[str] | None]]:
    """Return the trees that paths name: roots of results (with None), or roots with the folders of artifacts in them.

    Raises:
        UserError: for a path that holds neither.
    """
    trees: dict[Path, list[str] | None] = {}
    for path in paths:
        if path.is_dir() and not (path / "manifest.json").exists():
            trees[path] = None
        else:
            artifact = locate(path)
            chosen = trees.setdefault(artifact[0], [])
            if chosen is not None:
                chosen.append(artifact[1])
    return list(trees.items())


def locate(path: Path) -> tuple[Path, str]:
    """Return the root of the results and the folder of the artifact at ``path``, whose manifest may be damaged.

    Raises:
        UserError: if there is none.
    """
    from dmdpipe.artifacts.stages import STAGES
    from dmdpipe.audit.tree import results_above

    folder = path if path.is_dir() else path.parent
    if not (folder / "manifest.json").exists():
        raise UserError(f"{path}: is no artifact; name a folder with a manifest.json, a file in one, or results")
    for stage in STAGES.values():
        if stage.folder in folder.absolute().parts:
            results = results_above(folder, stage.folder)
            return results, folder.resolve().relative_to(results.resolve()).as_posix()
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
