"""What a finished run found, as text and small files to commit: ``docs/findings.md`` and ``docs/reference/``.

Everything comes from the tables and manifests of one scale, and equal results give equal bytes. Tables and figures
are copied as their steps made them, so that the manifests beside them still vouch for them; the texts are made from
the tables that are copied, so that anybody can make them again from ``docs/reference/`` alone. The controls are no
step's: they are judged here, as ``dmdpipe verdicts --controls`` prints them.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from dmdpipe.artifacts.atomic import write_atomically
from dmdpipe.artifacts.checked import read_bytes
from dmdpipe.artifacts.manifest import FILE_NAME, read_manifest
from dmdpipe.artifacts.stages import STAGES
from dmdpipe.audit.tree import Artifact, read_artifact, read_table
from dmdpipe.errors import UserError
from dmdpipe.evidence.controls import NOT_RUN, judge_controls
from dmdpipe.evidence.results import COLUMNS
from dmdpipe.specs.claims import Claims
from dmdpipe.specs.report import StudyPage

PAGE = "findings.md"
REFERENCE = "reference"
SENSITIVITY = "sensitivity.csv"
VERDICT_TABLES = ("verdicts.csv", "criteria.csv", SENSITIVITY)
CONTROLS = "controls.csv"
_NO_STUDIES = pd.DataFrame(columns=["study"])
STUDIES, NUMBERS, PAGE_MANIFEST, STUDY_TEXT = "studies.csv", "numbers.csv", "page.manifest.json", "README.md"
FIGURES, MAIN_FIGURE = (".png", ".csv"), "read_out-"
SHOWN = ("rho", "rho_floor", "rho_affine")


class Tables(NamedTuple):
    """What ``findings.md`` says of a scale, as the CSV files in ``reference/<scale>/`` have it.

    Attributes:
        verdicts, criteria: of the claims.
        sensitivity: likewise; None where a scale was written before the verdicts step made it.
        studies: columns study, number, title, points, seeds, runs, within_gate and root.
        controls: their criteria; None where a scale was written without them.
    """

    verdicts: pd.DataFrame
    criteria: pd.DataFrame
    sensitivity: pd.DataFrame | None
    studies: pd.DataFrame
    controls: pd.DataFrame | None


def write_findings(results: Path, scale: str, docs: Path, controls: Claims, only: Collection[str] = ()) -> list[Path]:
    """Write what a run at a scale found below ``docs``; return the files, in order.

    ``reference/<scale>/`` gets the verdicts, criteria and sensitivity with their manifest, the controls, judged
    here on the results that the verdicts stand on, a list of the studies, and a folder a study: its numbers
    at the read-out, the figures of its page, both manifests, and a text. The block of the scale in ``findings.md`` is
    replaced. Files that an earlier call left in these folders and that are no longer there go.

    With ``only``, studies that no claim reads, everything else that is there already stays: these studies are replaced
    or added, with the controls that read no other.

    Raises:
        UserError: if there are no verdicts, if a study or its page is not the one that they stand on or is damaged, if
            ``findings.md`` has no block for the scale; or, with ``only``, if one of them is not in the results or is
            read by a claim, if a control reads one of them and another study, or if nothing is there yet.
    """
    verdicts = read_artifact(results / STAGES["verdicts"].folder / scale)
    top = docs / REFERENCE / scale
    run = [str(name) for name in verdicts.manifest.result.spec["studies"]]
    judged = _table(_csv(judge_controls(controls, read_table(verdicts.path / "results.parquet", COLUMNS)).criteria))
    files: dict[Path, bytes] = {}
    if only:
        before, manifest = tables_in(top), read_manifest(top / FILE_NAME)
        judged = _with_controls(before, judged, controls, only, run)
    else:
        files |= {top / name: verdicts.read(name) for name in VERDICT_TABLES}
        files[top / FILE_NAME] = read_bytes(verdicts.path / FILE_NAME)
        claims, criteria, sensitivity = (_table(files[top / name]) for name in VERDICT_TABLES)
        before, manifest = Tables(claims, criteria, sensitivity, _NO_STUDIES, None), verdicts.manifest
    files[top / CONTROLS] = _csv(judged)
    every = pd.concat([before.criteria, judged])
    rows: dict[str, Any] = {row["study"]: row for row in before.studies.to_dict("records")}
    for name in only or run:
        rows[name], of_study = _study_files(results, scale, name, verdicts, every, top / name)
        files |= of_study
    files[top / STUDIES] = _csv(pd.DataFrame(rows.values()))
    tables = before._replace(controls=judged, studies=_table(files[top / STUDIES]))
    text = with_block(
        read_bytes(docs / PAGE).decode(), scale, scale_block(scale, manifest.result.result_digest, tables), docs / PAGE
    )
    files[docs / PAGE] = text.encode()
    folders = {path.parent for path in files} - {docs, top}
    _put(files, folders if only else [top, *(path for path in top.glob("*") if path.is_dir()), *folders])
    return sorted(files)


def tables_in(folder: Path) -> Tables:
    """Return the tables that ``reference/<scale>/`` holds.

    Raises:
        UserError: if it holds none.
    """
    if not (folder / STUDIES).exists():
        raise UserError(f"{folder}: holds no findings to which studies could be added; write all of them first")

    def table(name: str) -> Any:
        return _table(read_bytes(folder / name)) if (folder / name).exists() else None

    return Tables(*map(table, (*VERDICT_TABLES, STUDIES, CONTROLS)))


def _with_controls(
    before: Tables, judged: pd.DataFrame, controls: Claims, only: Collection[str], run: Collection[str]
) -> pd.DataFrame:
    """Return the controls that are there; those that read nothing but ``only`` as they were judged now."""
    for name in only:
        if name not in run:
            raise UserError(f"study '{name}' is not among those that the verdicts stand on: {', '.join(run)}")
        if name in set(before.criteria["study"]):
            raise UserError(f"study '{name}' is read by a claim: run all studies again, and write all findings")
    read_by = {one.id: {criterion.study for criterion in one.criteria} for one in controls.claims}
    for id_, studies in read_by.items():
        if studies & {*only} and (others := sorted(studies - {*only})):
            raise UserError(f"{id_} reads {', '.join(others)}, too: run and name all studies that it reads")
    now = {id_ for id_, studies in read_by.items() if studies <= {*only}}
    kept = judged.iloc[:0] if before.controls is None else before.controls[~before.controls["id"].isin(now)]
    place = {one.id: i for i, one in enumerate(controls.claims)}
    every = pd.concat([kept, judged[judged["id"].isin(now)]], ignore_index=True)
    return every.sort_values("id", key=lambda ids: ids.map(place), kind="stable", ignore_index=True)


def _study_files(
    results: Path, scale: str, name: str, verdicts: Artifact, criteria: pd.DataFrame, folder: Path
) -> tuple[dict[str, Any], dict[Path, bytes]]:
    """Return a study's row of ``studies.csv``, and the files of its folder."""
    study = _study(results, scale, name, verdicts)
    page = _page(results, scale, name, verdicts)
    readout = _readout(study)
    row = _study_row(page, study, readout)
    files = {folder / file: page.read(file) for file in page.manifest.result.payload if file.endswith(FIGURES)}
    figures = sorted(
        (path.name for path in files if path.suffix == ".png"),
        key=lambda figure: (not figure.startswith(MAIN_FIGURE), figure),
    )
    words = StudyPage.model_validate(page.manifest.result.spec["study"])
    files[folder / NUMBERS] = _csv(readout)
    files[folder / FILE_NAME] = read_bytes(study.path / FILE_NAME)
    files[folder / PAGE_MANIFEST] = read_bytes(page.path / FILE_NAME)
    files[folder / STUDY_TEXT] = study_text(words, scale, row, criteria, readout, figures).encode()
    return row, files


def scale_block(scale: str, root: str, tables: Tables) -> str:
    """Return what ``findings.md`` says of a scale: commands, verdicts, criteria, controls, every study's root.

    Args:
        scale: which.
        root: the result digest of the verdicts.
        tables: of the scale.
    """
    verdicts, criteria, sensitivity, studies, controls = tables
    names = ", ".join(studies["study"])
    roots = dict(zip(studies["study"], studies["root"], strict=True))
    lines = [
        *(
            "```sh",
            f"./run --config scale={scale} 'studies=[{names}]'",
            f"./run exec dmdpipe findings --scale {scale}",
            "```",
        ),
        "",
        f"Result root of the verdicts: `{root}`. Their tables and manifest: [reference/{scale}](reference/{scale}).",
        "",
        *_agreement(verdicts),
        "",
        "| claim | verdict |",
        "| --- | --- |",
        *(f"| {row['id']} {row['title']} | **{row['verdict']}** |" for row in verdicts.to_dict("records")),
        "",
        "Each criterion: its number, the bounds that decide it, and what so many seeds could see.",
        "",
        "| claim | criterion | statistic | number [bounds] | predicted | outcome | seeds | SD | effect | could see"
        " | command | result root |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_criterion_row(row, scale, roots) for row in criteria.to_dict("records")),
        "",
        *_open(verdicts, criteria),
        *(_hangs_on(scale, sensitivity) if sensitivity is not None else []),
        "| study | asks about | points | seeds | runs | within the gate | result root |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| [`{row['study']}`](reference/{scale}/{row['study']}/README.md) | {_cell(row['title'])}"
            f" | {row['points']} | {row['seeds']} | {row['runs']} | {row['within_gate']} | `{row['root'][:16]}…` |"
            for row in studies.to_dict("records")
        ),
    ]
    if controls is not None:
        lines += ["", *_controls(scale, controls, roots)]
    return "\n".join(lines) + "\n"


def study_text(
    page: StudyPage,
    scale: str,
    row: Mapping[str, Any],
    criteria: pd.DataFrame,
    readout: pd.DataFrame,
    figures: Iterable[str],
) -> str:
    """Return what a study's folder says: question, prediction, what its readers found, its numbers, its figures.

    Args:
        page: what the study declares.
        scale: which.
        row: its row of ``studies.csv``.
        criteria: those of all claims and controls, as in ``criteria.csv`` and ``controls.csv``.
        readout: its rows at the read-out, as in ``numbers.csv``.
        figures: names of its PNG files.
    """
    read_here = criteria[criteria["study"] == page.name].to_dict("records")
    found = [
        f"- **{one['id']}**, {one['criterion']}: **{one['outcome']}**. {_cell(one['reason'])}." for one in read_here
    ]
    lines = [
        f"# {page.title}",
        "",
        f"Study `{page.name}` at the scale `{scale}`: {row['points']} points, seeds {row['seeds']}, {row['runs']} runs,"
        f" {row['within_gate']} within the gate. Result root `{row['root']}`.",
        "",
        f"**Question.** {page.question}",
        "",
        f"**Prediction.** {page.prediction}",
        "",
        "**What came out.**",
        "",
        *(found or ["No claim and no control reads this study."]),
        "",
        *([f"**What would change our mind.** {page.changes_mind}", ""] if page.changes_mind else []),
        "Mean over all seeds at the read-out, converged or not, with its 95 % Student-t interval:",
        "",
        "| point | ρ [95 %] | floor | affine map | seeds | within the gate |",
        "| --- | --- | --- | --- | --- | --- |",
        *_point_rows(readout),
        "",
        "Every metric and seed: [numbers.csv](numbers.csv). ΔE (`delta_e`) is a reconstruction. A hollow mark has not"
        " converged.",
        *(line for name in figures for line in ("", f"![{name.removesuffix('.png')}]({name})")),
    ]
    return "\n".join(lines) + "\n"


def with_block(text: str, scale: str, block: str, source: Path) -> str:
    """Return a page with what stands between the two marks of a scale replaced.

    Raises:
        UserError: if the marks are not there, in this order and once each.
    """
    begin, end = (f"<!-- findings {scale}:{word} -->\n" for word in ("begin", "end"))
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed) or begin in after or end in after:
        raise UserError(f"{source}: needs the lines '{begin.strip()}' and '{end.strip()}', once each, for this scale")
    return f"{before}{begin}{block}{end}{after}"


def number(value: Any) -> str:
    """Return four digits of a number, as every table here shows it; a dash where there is none."""
    return "–" if value is None or value != value else f"{float(value):.4g}"


def _agreement(verdicts: pd.DataFrame) -> list[str]:
    said = {"supported": "Agrees with the text", "refuted": "Does not agree", "inconclusive": "Open"}
    of_text = verdicts["id"].str.startswith("C")
    lines = []
    for verdict, words in said.items():
        claims = verdicts[of_text & (verdicts["verdict"] == verdict)]["id"]
        lines.append(f"- {words}: {', '.join(claims) or 'none'}.")
    own = verdicts[~of_text]
    return [*lines, *(f"- Our own hypothesis {row['id']}: {row['verdict']}." for row in own.to_dict("records"))]


def _criterion_row(row: Mapping[Any, Any], scale: str, roots: Mapping[str, str]) -> str:
    cells = (
        *(row["id"], *_measured(row)),
        *(row["n_seeds"], number(row["spread"]), number(row.get("effect")), number(row["detectable"])),
        *_made_by(row["study"], scale, roots),
    )
    return f"| {' | '.join(map(str, cells))} |"


def _control_row(row: Mapping[Any, Any], scale: str, roots: Mapping[str, str]) -> str:
    told = f"{row['id']} {_cell(row['title'])}", f"**{row['verdict']}**"
    return f"| {' | '.join((*told, *_measured(row), *_made_by(row['study'], scale, roots)))} |"


def _measured(row: Mapping[Any, Any]) -> tuple[str, ...]:
    predicted = f"{row['predicts']} {number(row['threshold'])}"
    return _cell(row["criterion"]), _cell(row["statistic"]), _interval(row), predicted, _outcome(row)


def _made_by(study: str, scale: str, roots: Mapping[str, str]) -> tuple[str, str]:
    """Return the command that makes a study, and its result root with a link to its folder."""
    root = f"[`{roots[study][:16]}…`](reference/{scale}/{study}/README.md)" if study in roots else "not run"
    return f"`./run study_{study} --config scale={scale}`", root


def _open(verdicts: pd.DataFrame, criteria: pd.DataFrame) -> list[str]:
    """Return what would close the inconclusive claims, a line for each undecided criterion."""
    inconclusive = verdicts.loc[verdicts["verdict"] == "inconclusive", "id"]
    undecided = criteria[criteria["id"].isin(inconclusive) & (criteria["outcome"] == "undecided")].to_dict("records")
    if not undecided:
        return []
    lines = ["What would close the open ones, if the truth is as measured and seeds differ as here:", ""]
    return [*lines, *(f"- {row['id']}, {_cell(row['criterion'])}: {_would_take(row)}." for row in undecided), ""]


def _would_take(row: Mapping[Any, Any]) -> str:
    if row["cause"] != "interval crosses":
        return str(row["cause"])
    needed = row["seeds_needed"]
    seeds = "more than 10,000" if needed != needed else f"{needed:.0f}"
    return f"{seeds} seeds that count decide a difference of this size with probability 0.8; here are {row['n_seeds']}"


def _hangs_on(scale: str, sensitivity: pd.DataFrame) -> list[str]:
    otherwise = sensitivity[~sensitivity["as_declared"].astype(bool)]
    changed = otherwise[otherwise["change"].notna()]
    lines = [
        "With one choice made otherwise, everything else as declared"
        " ([what is varied](studies.md#does-a-verdict-hang-on-a-choice)),"
        f" {len(changed)} of {len(otherwise)} readings give another verdict."
        f" All of them: [sensitivity.csv](reference/{scale}/{SENSITIVITY}).",
        "",
        "| claim | as declared | reversed | inconclusive then | decided then |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (id_, declared), of_claim in sensitivity.groupby(["id", "declared"], sort=False):
        by_change = {change: rows.to_dict("records") for change, rows in of_claim.groupby("change")}
        cells = (
            ", ".join(f"{row['choice']} {row['option']}" for row in by_change.get(change, []))
            for change in ("reversed", "lost", "gained")
        )
        lines.append(f"| {id_} | {declared} | {' | '.join(cell or '–' for cell in cells)} |")
    return [*lines, ""]


def _controls(scale: str, controls: pd.DataFrame, roots: Mapping[str, str]) -> list[str]:
    not_run = controls["verdict"] == NOT_RUN
    missing = ", ".join(dict.fromkeys(controls[not_run]["id"]))
    return [
        "The controls: what else might explain the copying, or its absence"
        " ([what each could sink](studies.md#the-controls)). Their levels stand apart from the claims'."
        f" All numbers: [controls.csv](reference/{scale}/{CONTROLS}).",
        "",
        *(
            f"- {len(ids)} {verdict}: {', '.join(ids)}."
            for verdict in ("supported", "refuted", "inconclusive")
            if len(ids := controls.loc[controls["verdict"] == verdict, "id"].unique())
        ),
        "",
        *([f"Not run at this scale: {missing}.", ""] if missing else []),
        "| control | verdict | criterion | statistic | number [bounds] | predicted | outcome | command | result root |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_control_row(row, scale, roots) for row in controls[~not_run].to_dict("records")),
    ]


def _outcome(row: Mapping[Any, Any]) -> str:
    cause = row["cause"]
    return f"**{row['outcome']}**" + (f" ({cause})" if isinstance(cause, str) and cause else "")


def _point_rows(readout: pd.DataFrame) -> list[str]:
    means, runs = readout[readout["seed"] < 0], readout[(readout["seed"] >= 0) & (readout["metric"] == "rho")]
    lines = []
    for point in dict.fromkeys(means["point"]):
        of_point = means[means["point"] == point].set_index("metric")
        shown = {name: of_point.loc[name] for name in SHOWN if name in of_point.index}
        levels = (number(shown[name]["value"]) if name in shown else "–" for name in SHOWN[1:])
        seeds = shown["rho"]["n_seeds"]
        within = int(runs.loc[runs["point"] == point, "converged"].astype(bool).sum())
        lines.append(f"| {_cell(point)} | {_interval(shown['rho'])} | {' | '.join(levels)} | {seeds} | {within} |")
    return lines


def _interval(row: Any) -> str:
    value, low, high = (number(row[name]) for name in ("value", "low", "high"))
    return value if "–" in (low, high) else f"{value} [{low}, {high}]"


def _cell(text: Any) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def _study(results: Path, scale: str, name: str, verdicts: Artifact) -> Artifact:
    study = read_artifact(results / STAGES["evidence"].folder / name / scale)
    stood_on = verdicts.manifest.result.parents[name].result_digest
    if study.manifest.result.result_digest != stood_on:
        raise UserError(f"{study.path}: is not what {verdicts.path} was judged on; run again")
    return study


def _page(results: Path, scale: str, name: str, verdicts: Artifact) -> Artifact:
    page = read_artifact(results / STAGES["figures"].folder / scale / f"study_{name}")
    drawn_from = page.manifest.result.parents["verdicts"].result_digest
    if drawn_from != verdicts.manifest.result.result_digest:
        raise UserError(f"{page.path}: was not drawn from {verdicts.path} as it is now; run again")
    return page


def _study_row(page: Artifact, study: Artifact, readout: pd.DataFrame) -> dict[str, Any]:
    words = StudyPage.model_validate(page.manifest.result.spec["study"])
    runs = readout[(readout["seed"] >= 0) & (readout["metric"] == "rho")]
    seeds = sorted(set(runs["seed"]))
    return {
        "study": words.name,
        "number": words.number,
        "title": words.title,
        "points": runs["point"].nunique(),
        "seeds": f"{seeds[0]} to {seeds[-1]}",
        "runs": len(runs),
        "within_gate": int(runs["converged"].sum()),
        "root": study.manifest.result.result_digest,
    }


def _readout(study: Artifact) -> pd.DataFrame:
    table = _table(study.read("results.csv"))
    return table[table["readout"].astype(bool)].reset_index(drop=True)


def _table(data: bytes) -> pd.DataFrame:
    # A reason or a point may be the word "None", and no text here stands for a missing number.
    return pd.read_csv(io.BytesIO(data), keep_default_na=False, na_values=[""])


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode()


def _put(files: Mapping[Path, bytes], owned: Iterable[Path]) -> None:
    """Write the files, and remove others from the folders that these texts own."""
    for folder in owned:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.is_file() and path not in files:
                path.unlink()
        if not any(path.is_relative_to(folder) for path in files):
            folder.rmdir()
    for path, data in files.items():
        write_atomically(path, data)
