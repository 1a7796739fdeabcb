"""The documentation says what the code does: links, names, commands, keys and files, in both directions."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from pydantic import BaseModel
from scipy.stats import t as student_t

from dmdpipe.artifacts.manifest import Manifest
from dmdpipe.artifacts.stages import STAGES
from dmdpipe.cli import app
from dmdpipe.copying.maps import MAP_CONSTANTS, MAP_METRICS
from dmdpipe.copying.measure import CONSTANT_METRICS, SNAPSHOT_METRICS, SPECIAL_METRICS
from dmdpipe.evidence.power import power, seeds_needed
from dmdpipe.evidence.readings import describe_statistic
from dmdpipe.evidence.results import COLUMNS
from dmdpipe.evidence.sensitivity import COLUMNS as SENSITIVITY_COLUMNS
from dmdpipe.evidence.verdicts import FAMILYWISE_ERROR, Finding
from dmdpipe.specs.claims import MetricName, load_claims
from dmdpipe.specs.config import load_scale, load_study, members_of, scale_names, study_names
from dmdpipe.specs.data import FAMILIES
from dmdpipe.specs.grid import expand
from dmdpipe.specs.student import InitKind
from dmdpipe.specs.study import Cell, ScaleOverlay, Study

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "config" / "README.md"])
SCALES = ("smoke", "laptop", "gpu")  # in the order of the documentation's columns
OF_ONE_GPU = "budget"
DERIVED = {"rho_start", "rho_as_started", "rho_late_change", "log2_drift_speed"}
METRICS = {*SNAPSHOT_METRICS, *CONSTANT_METRICS, *MAP_METRICS, *MAP_CONSTANTS, *SPECIAL_METRICS, "seed_seed", *DERIVED}
LAUNCHER_WORDS = {"test", "lint", "exec"}
FOLDERS = ("src", "config", "docs", "envs", "profiles", "reports", "rules", "tests", "workflow")


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def everything() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def section(text: str, heading: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    level = heading.split()[0]
    start = text.index(f"\n{heading}\n") + len(heading) + 2
    end = re.search(rf"^#{{1,{len(level)}}} ", text[start:], re.MULTILINE)
    return text[start : start + end.start()] if end else text[start:]


def without_blocks(text: str) -> str:
    """The text less fenced blocks, where a line that starts with # is no heading."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def slug(heading: str) -> str:
    """How GitHub names a heading's anchor."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", without_blocks(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {slug(heading) for heading in headings}


def code_in(text: str) -> Iterator[str]:
    """Every code span and every line of a block."""
    yield from re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    for block in re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield from block.splitlines()


# Links and paths


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page}: {target}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    found, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in found:
            found.add(page)
            links = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text(encoding="utf-8"))
            waiting += [(page.parent / link).resolve() for link in links if "//" not in link]
    assert set(PAGES) <= found


def test_paths_in_the_text_exist() -> None:
    for span in re.findall(r"`([^`\n]+)`", everything()):
        if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*", span) and "batch_size" not in span:
            assert (ROOT / span).exists(), span


def test_names_said_to_be_in_a_file_are_in_it() -> None:
    """`NAME` in `src/…`, also several of them: `A`, `B` and `C`, in `src/…`."""
    names = re.compile(r"((?:`\w+`(?:, | and )?)+),? in\s+`(src/[\w./]+\.py)`")
    found = [(name, path) for group, path in names.findall(everything()) for name in re.findall(r"\w+", group)]
    assert len(found) > 10
    for name, path in found:
        if name != "and":
            assert re.search(rf"\b{name}\b", text_of(path)), f"{name} is not in {path}"


def test_dotted_names_exist() -> None:
    for dotted in set(re.findall(r"`(dmdpipe(?:\.\w+)+)`", everything())):
        path = ROOT / "src" / Path(*dotted.split("."))
        if not (path.with_suffix(".py").exists() or path.is_dir()):
            module, name = path.parent.with_suffix(".py"), path.name
            assert re.search(rf"^(?:def|class) {name}\b|^{name} =", module.read_text(encoding="utf-8"), re.MULTILINE)


# Commands


def commands(group: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        yield (*above, name), command
        if hasattr(command, "commands"):
            yield from commands(command, (*above, name))


def mentioned_commands() -> Iterator[tuple[tuple[str, ...], list[str], str]]:
    """The subcommand and the options of every `dmdpipe …` in code."""
    known = dict(commands(typer.main.get_command(app)))
    for line in code_in(everything()):
        found = re.search(r"(?:^|exec )dmdpipe ([\w-].*)", line)
        if not found or found[1].startswith("…"):
            continue
        words = re.split(r" [|>;] ?", found[1])[0].split()
        path: tuple[str, ...] = ()
        while words and (*path, words[0]) in known:
            path = (*path, words.pop(0))
        yield path, words, line


def test_commands_and_options_in_the_text_exist() -> None:
    known = dict(commands(typer.main.get_command(app)))
    for path, words, line in mentioned_commands():
        assert path, f"unknown command: {line}"
        if path == ("run",):
            continue
        options = {option for parameter in known[path].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, line
        if hasattr(known[path], "commands"):
            assert not words or words[0].startswith("-"), f"unknown command: {line}"


def test_options_that_stand_alone_exist() -> None:
    known = {"--config", "--cores", "--forceall"}  # Snakemake's
    for _, command in commands(typer.main.get_command(app)):
        known |= {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"`(--[\w-]+)`", everything())) <= known


def test_every_command_is_in_the_text() -> None:
    known = {path for path, command in commands(typer.main.get_command(app)) if not hasattr(command, "commands")}
    mentioned = {path for path, _, _ in mentioned_commands()}
    # ./run is `dmdpipe run`, and `dmdpipe studies` is `dmdpipe studies list`.
    assert known - {("run",), ("studies", "list")} <= mentioned


def test_words_after_run_exist() -> None:
    targets = {f"study_{name}" for name in [*study_names(), "batch_size"]}
    for line in code_in(everything()):
        for word in re.findall(r"(?:^|\s)\./run +(\w+)", line):
            assert word in LAUNCHER_WORDS | targets, line
    help_text = text_of("run")
    assert all(f"./run {word}" in help_text for word in LAUNCHER_WORDS)


def test_scales_and_studies_in_commands_exist() -> None:
    for line in code_in(everything()):
        for scale in re.findall(r"(?:--scale |\bscale=)(\w+)", line):
            assert scale in scale_names(), line
        for study in re.findall(r"(?:--study |studies (?:show|plan) )(\w+)", line):
            assert study in [*study_names(), "batch_size"], line


# Studies and claims


def test_the_list_of_studies_is_complete() -> None:
    page = text_of("docs/studies.md")
    assert set(scale_names()) == {*SCALES, OF_ONE_GPU}
    for name in study_names():
        study = load_study(name)
        points = [len({member.point for member in members_of(name, scale)}) for scale in SCALES]
        row = [study.number, f"[`{name}`](#{name})", study.title, ", ".join(study.axes), *points]
        assert f"| {' | '.join(map(str, row))} |\n" in page
    listed = re.findall(r"^### `(\w+)`$", page, re.MULTILINE)
    assert listed == study_names()


@pytest.mark.parametrize("name", study_names(ROOT / "config"))
def test_a_study_is_described(name: str) -> None:
    words = section(text_of("docs/studies.md"), f"### `{name}`")
    study = load_study(name)
    assert f"*{study.question}*" in words.replace("\n", " ")
    for scale in SCALES:
        points = " ".join(re.findall(r"^- Points:.*?(?=^- )", words, re.MULTILINE | re.DOTALL))
        assert scale in points or "all scales" in points
        for member in members_of(name, scale):
            assert f"`{member.point}`" in points
        overlay = study.scales.get(scale, ScaleOverlay())
        said = re.findall(rf"\({scale}, (\d+) seeds\)", " ".join(points.split()))
        assert said == ([str(overlay.seeds)] if overlay.seeds else [])
        said_at = re.findall(rf"\({scale}; (\w+)=(\w+): (\d+) seeds\)", " ".join(points.split()))
        assert said_at == [(a, label, str(n)) for a, at in overlay.seeds_at.items() for label, n in at.items()]
    every = (*all_claims(), *all_controls())
    readers = {claim.id for claim in every for criterion in claim.criteria if criterion.study == name}
    line = next(line for line in words.splitlines() if line.startswith("- Read by:"))
    assert set(re.findall(r"\b(?:[CH]\d|K-[\w-]+)\b", line)) == readers
    assert bool(readers) != ("no claim" in line)


def test_the_scales_are_as_said() -> None:
    page = section(text_of("docs/studies.md"), "## Scales")
    scales = [load_scale(scale) for scale in (*SCALES[:2], OF_ONE_GPU, *SCALES[2:])]
    rows = {
        key: [getattr(scale, key) or "–" if key == "seeds_together" else getattr(scale, key) for scale in scales]
        for key in ("seeds", "seeds_together", "first_seed")
    }
    rows |= {key: [scale.set.get(key, "–") for scale in scales] for key in {k for s in scales for k in s.set}}
    for key, values in rows.items():
        assert f"| `{key}` | {' | '.join(map(str, values))} |" in page
    assert len(re.findall(r"^\| `", page, re.MULTILINE)) == len(rows)


def all_claims() -> tuple[Any, ...]:
    return load_claims(ROOT / "config" / "claims.yaml", study_names(ROOT / "config")).claims


def test_every_claim_and_criterion_is_as_said() -> None:
    page = section(text_of("docs/studies.md"), "## The claims")
    rows = set()
    for claim in all_claims():
        if not claim.criteria:
            rows.add(f"| {claim.id} | – | none yet | – | – |")
        for criterion in claim.criteria:
            study, statistic = criterion.study, describe_statistic(criterion)
            predicted = f"{criterion.predicts} {criterion.threshold:g}"
            rows.add(f"| {claim.id} | {criterion.name} | [`{study}`](#{study}) | {statistic} | {predicted} |")
    assert set(re.findall(r"^\| [CH]\d .*\|$", page, re.MULTILINE)) == rows
    tested = sum(bool(claim.criteria) for claim in all_claims())
    assert f"claims that are tested ({tested})" in text_of("docs/studies.md").replace("\n", " ")


def all_controls() -> tuple[Any, ...]:
    return load_claims(ROOT / "config" / "controls.yaml", study_names(ROOT / "config"), controls=True).claims


def test_every_control_and_its_criteria_are_as_said() -> None:
    page = section(text_of("docs/studies.md"), "## The controls")
    said = {" ".join(item.split()) for item in re.findall(r"^- (\*\*K-.*?)(?=^- |^$)", page, re.MULTILINE | re.DOTALL)}
    assert said == {f"**{control.id}** {control.title}. {control.statement}" for control in all_controls()}
    rows = set()
    for control in all_controls():
        for one in control.criteria:
            name = one.name + " (premise)" * one.premise
            predicted = f"{one.predicts} {one.threshold:g}"
            rows.add(
                f"| {control.id} | {name} | [`{one.study}`](#{one.study}) | {describe_statistic(one)} | {predicted} |"
            )
    assert set(re.findall(r"^\| K-.*\|$", page, re.MULTILINE)) == rows
    number = len(all_controls())
    level = student_t.ppf(1 - FAMILYWISE_ERROR / number, 4)
    assert f"{number} of them share another 0.05" in page and f"t = {level:.1f}" in page


def test_the_table_of_power_follows_from_its_own_numbers_and_the_declared_seeds() -> None:
    criteria = {(claim.id, one.name): (claim, one) for claim in all_claims() for one in claim.criteria}
    tested = len({id_ for id_, _ in criteria})
    page = section(text_of("docs/studies.md"), "## How many seeds")
    rows = [line.strip("| ").split(" | ") for line in re.findall(r"^\| [CH]\d .*\|$", page, re.MULTILINE)]
    assert len(rows) == 5
    for id_, name, difference, said_spread, side, said_needed, said_seeds, probability in rows:
        claim, criterion = criteria[id_, name]
        level = FAMILYWISE_ERROR / tested / (1 if side == "holds" else len(claim.criteria))
        # One number, or one for each data set.
        spread = [float(number) for number in said_spread.split(" and ")]
        needed, seeds = ([int(number) for number in said.split(" and ")] for said in (said_needed, said_seeds))
        least = seeds_needed(float(difference), spread, level, proportions=seeds)
        assert least is not None
        assert needed == [-(-least * n // min(seeds)) for n in seeds]
        of_data: dict[str, set[int]] = {}
        for member in members_of(criterion.study, "laptop"):
            labels = member.labels()
            if all(labels[column] in kept for column, kept in criterion.select if kept):
                of_data.setdefault(labels["data"], set()).add(labels["seed"])
        assert sorted({len(of_one) for of_one in of_data.values()}, reverse=True) == seeds
        assert f"{power(float(difference), seeds, spread, level):.2f}" == probability


def test_the_study_of_the_tutorial_is_valid() -> None:
    """Also that it has as many students as the text's number of steps needs."""
    page = text_of("docs/tutorial.md")
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    study = Study.model_validate(yaml.safe_load(block))
    assert study.number not in {load_study(name).number for name in study_names()}
    counts = {scale: len(expand("batch_size", study, scale, load_scale(scale))) for scale in SCALES}
    said = re.search(r"counts (\d+) steps and [\w\s]+ at smoke, (\d+) steps", page)
    assert said
    for scale, steps in zip(SCALES[:2], map(int, said.groups()), strict=True):
        seeds = load_scale(scale).seeds
        # Per student: itself, pairs, metrics; per seed: teacher and its samples; then data, noise and evidence.
        assert steps == 3 * counts[scale] + 2 * seeds + 3


# Metrics


def test_every_metric_is_described_and_no_other() -> None:
    page = text_of("docs/metrics.md")
    described = re.findall(r"^### `(\w+)`$", page, re.MULTILINE)
    assert len(described) == len(set(described))
    assert set(described) == METRICS
    assert set(get_args(MetricName)) <= set(described)


def test_metrics_in_commands_exist() -> None:
    for line in code_in(everything()):
        for metric in re.findall(r"--metric (\w+)", line):
            assert metric in METRICS, line


def test_delta_e_is_called_a_reconstruction() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert "ΔE" not in text or "reconstruction" in text, page
    assert "reconstruction" in section(text_of("docs/metrics.md"), "### `delta_e`")


# Files


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_every_payload_file_is_described(stage: Any) -> None:
    words = section(text_of("docs/outputs.md"), f"### `{stage.name}`")
    assert f"results/{stage.folder}/" in words
    for name in stage.payload:
        assert f"`{name}`" in words, name
    for name in re.findall(r"`(\w+\.(?:safetensors|parquet|json|csv))`", words):
        assert name in stage.payload, f"{name} is no file of {stage.name}"


def test_the_table_of_stages_is_complete() -> None:
    page = section(text_of("docs/architecture.md"), "## Steps")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)/` \| .* \| `([\w.]+)` \|$", page, re.MULTILINE)
    assert rows == [(stage.name, stage.folder, stage.entry.replace(":", ".")) for stage in STAGES.values()]


def test_the_columns_of_tables_are_described() -> None:
    page = text_of("docs/outputs.md")
    assert re.findall(r"^\| `(\w+)` \|", section(page, "## Results table"), re.MULTILINE) == COLUMNS
    verdicts = section(page, "### `verdicts`")
    _, _, criteria = verdicts.partition("`criteria.parquet`")
    criteria, _, sensitivity = criteria.partition("`sensitivity.parquet`")
    sensitivity, _, _ = sensitivity.partition("`verdicts.json`")
    columns = ["id", *(name for name in Finding.__dataclass_fields__ if name != "claim")]
    assert re.findall(r"`(\w+)`", criteria) == columns
    assert re.findall(r"`(\w+)`", sensitivity) == [*SENSITIVITY_COLUMNS, "reversed", "lost", "gained"]


def test_the_fields_of_manifests_are_described() -> None:
    page = section(text_of("docs/outputs.md"), "## manifest.json")
    parts = Manifest.model_fields
    assert "schema_version" in page
    rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    fields = [name for part in ("result", "provenance") for name in fields_of(parts[part].annotation)]
    assert rows == fields


def fields_of(model: Any) -> list[str]:
    return list(model.model_fields)


# Configuration


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def keys_below(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        below = list(models_in(field.annotation))
        if not below:
            yield prefix + name, field.get_default(call_default_factory=True)
        for inner in below:
            yield from keys_below(inner, f"{prefix}{name}.")


def test_every_key_is_described_with_its_default() -> None:
    rows = re.findall(
        r"^\| `((?:data|score|noise_range|sampler|bank|metrics|maps|student)\.[\w.]+)` \| (.+?) \| ",
        text_of("config/README.md"),
        re.MULTILINE,
    )
    said = dict(rows)
    assert len(rows) == len(said)
    defaults: dict[str, list[str]] = {}
    for key, default in keys_below(Cell):
        shown = "–" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
        if shown not in defaults.setdefault(key, []):
            defaults[key].append(shown)
    same_as_elsewhere = ("student.network.", "student.recipe.fake_score.", "student.init.source.data.")
    defaults = {key: shown for key, shown in defaults.items() if not key.startswith(same_as_elsewhere)}
    assert set(said) == set(defaults)
    for key, values in defaults.items():
        if key not in ("data.family", "score.kind"):
            assert said[key] == ", ".join(values), key


def test_choices_are_described() -> None:
    page = text_of("config/README.md")
    for choice in [*FAMILIES, *get_args(InitKind)]:
        assert f"`{choice}`" in page


# The files that other programs read


def test_the_catalog_file_is_well_formed() -> None:
    usage = yaml.safe_load(text_of(".snakemake-workflow-catalog.yml"))["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(usage["mandatory-flags"]) == {"desc", "flags"}
    assert all(isinstance(value, bool) for value in usage["software-stack-deployment"].values())
    assert "snakemake" in text_of("README.md").lower() and "workflow" in text_of("README.md").lower()


def test_the_citation_has_what_its_format_requires_and_the_packages_version() -> None:
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    version = re.search(r'^version = "(.+)"$', text_of("pyproject.toml"), re.MULTILINE)
    assert version and str(citation["version"]) == version[1]
    assert f"\n## {version[1]} (" in text_of("CHANGELOG.md")


def test_the_readme_has_a_place_for_the_verdicts() -> None:
    page = text_of("README.md")
    assert page.index("<!-- verdicts:begin -->") < page.index("<!-- verdicts:end -->")


def test_every_package_that_is_imported_is_named_in_the_environment() -> None:
    """Not only brought along by another, which may leave it out some day."""
    lines = text_of("envs/base.in").splitlines()
    named = {re.split("[=<>]", line)[0] for line in lines if line and not line.startswith("#")} | {"torch"}
    distributions = packages_distributions()
    imported: set[str] = set()
    for file in [
        ROOT / "run",
        *(file for folder in ("src", "tests", "workflow") for file in ROOT.glob(f"{folder}/**/*.py")),
    ]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    assert {"torch", "yaml", "huggingface_hub"} <= imported
    owners = {
        name: {owner.lower().replace("_", "-") for owner in distributions[name]}
        for name in imported & distributions.keys()
    }
    assert [name for name, of_name in owners.items() if not of_name & {*named, "dmdpipe"}] == []


def test_pages_are_in_git_or_may_be() -> None:
    """A page that .gitignore hides would be missing from every clone."""
    command = ["git", "-C", str(ROOT), "check-ignore", *map(str, PAGES)]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == ""
