"""What rules and their scripts may do: one parameter, no hidden input, no output without a manifest."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dmdpipe.artifacts.stages import STAGES

ROOT = Path(__file__).parents[2]
# It makes no step: it gets files from elsewhere, whose bytes are checked.
FETCH = "fetch"
SCRIPTS = sorted(path for path in (ROOT / "workflow/scripts").glob("*.py") if path.stem != FETCH)
RULES = sorted((ROOT / "rules").glob("*.smk"))
ALLOWED = {"snakemake.params.spec", "snakemake.output.manifest", "snakemake.log"}


def rules_in(path: Path) -> dict[str, str]:
    """The text of every rule of a file that runs a script."""
    parts = re.split(r"^rule (\w+):$", path.read_text(), flags=re.MULTILINE)
    return {name: body for name, body in zip(parts[1::2], parts[2::2], strict=True) if "script:" in body}


ON_A_GPU = {"gpu": "gpus_of", "large_on_gpu": "large_on_gpu_of", "slurm_partition": "partition_of"}
TRAINING = {"cpus_per_task": "cpus_of", **ON_A_GPU}
SHARED = {"devices": "devices_of", **TRAINING}
ASKED = {"teacher": SHARED, "student": SHARED, "ensemble": TRAINING}
ASKED |= dict.fromkeys(("teacher_samples", "pairs"), ON_A_GPU)
EVERY_RULE = {name: body for path in RULES for name, body in rules_in(path).items()}
FETCHING = EVERY_RULE.pop(FETCH)


def section(rule: str, name: str) -> list[str]:
    """The lines of one section of a rule, e.g. those below `params:`."""
    found = re.search(rf"^    {name}:\n((?:        .*\n)+)", rule, re.MULTILINE)
    return [line.strip() for line in found[1].splitlines()] if found else []


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def test_there_is_a_rule_and_a_script_for_every_stage() -> None:
    assert set(EVERY_RULE) == {path.stem for path in SCRIPTS} == set(STAGES)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_read_nothing_but_their_spec_and_call_one_function(path: Path) -> None:
    tree = ast.parse(path.read_text())
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    uses = {
        dotted(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and id(node) not in inner and dotted(node).startswith("snakemake")
    }
    assert uses == ALLOWED | ({"snakemake.resources.devices"} if path.stem in ("teacher", "student") else set())
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "snakemake"]
    assert all(id(node) in inner for node in names)
    docstring, *imports, block = tree.body
    assert isinstance(docstring, ast.Expr) and isinstance(block, ast.With)
    assert all(isinstance(line, ast.ImportFrom) and line.module.startswith("dmdpipe.") for line in imports)
    (call,) = block.body
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    assert [dotted(argument) for argument in call.value.args] == ["step"] and not call.value.keywords
    # The names that the script uses are those that it imports, and no others.
    imported = {alias.name for line in imports for alias in line.names}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert used == imported | {"snakemake", "step"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_calls_the_function_that_its_stage_declares(path: Path) -> None:
    module, _, function = STAGES[path.stem].entry.partition(":")
    assert f"from {module} import {function}\n" in path.read_text()


@pytest.mark.parametrize("name", EVERY_RULE)
def test_a_rule_has_one_parameter_its_spec(name: str) -> None:
    assert section(EVERY_RULE[name], "params") == [f'spec=spec_of("{name}"),']


@pytest.mark.parametrize("name", EVERY_RULE)
def test_a_rule_asks_a_cluster_for_what_its_own_steps_need(name: str) -> None:
    asked = set(section(EVERY_RULE[name], "resources"))
    lines = {key: f'{key}={key_of}("{name}"),' for key, key_of in SHARED.items()}
    assert {f'mem_mb=memory_of("{name}"),', f'runtime=minutes_of("{name}"),'} <= asked
    assert asked & set(lines.values()) == {lines[key] for key in ASKED.get(name, {})}
    # All GPUs of a training are on one machine.
    assert ("nodes=1," in asked) == ("devices" in ASKED.get(name, {}))


@pytest.mark.parametrize("name", EVERY_RULE)
def test_a_rule_takes_manifests_and_promises_a_manifest_and_payload_of_its_stage(name: str) -> None:
    rule, stage = EVERY_RULE[name], STAGES[name]
    others = ["fetched=fetched,"] if name == "data" else []
    assert section(rule, "input") == [f'parents_of("{name}"),', *others]
    promised = re.findall(r'f"\{RESULTS\}/([^/]+)/\{\{step\}\}/([^"]+)"', "\n".join(section(rule, "output")))
    assert {folder for folder, _ in promised} == {stage.folder}
    files = [file for _, file in promised]
    assert files[0] == "manifest.json" and "output:\n        manifest=" in rule
    assert set(files[1:]) <= set(stage.payload)
    assert section(rule, "script") == [f'"../workflow/scripts/{name}.py"']
    assert section(rule, "log") == [f'f"{{RESULTS}}/logs/{name}/{{{{step}}}}.log",']
    assert not section(rule, "shell") and not section(rule, "run") and not section(rule, "notebook")


def test_only_the_rule_that_fetches_runs_where_the_run_was_started() -> None:
    """A cluster's nodes may have no network; its login node is no place for anything else."""
    assert "\n    localrule: True\n" in FETCHING
    assert not [name for name, rule in EVERY_RULE.items() if "localrule" in rule]
    assert not section(FETCHING, "input") and not section(FETCHING, "params")
    assert section(FETCHING, "script") == ['"../workflow/scripts/fetch.py"']


@pytest.mark.parametrize("path", [ROOT / "Snakefile", *RULES], ids=lambda path: path.name)
def test_no_rule_hides_anything(path: Path) -> None:
    code = "\n".join(line for line in path.read_text().splitlines() if not line.strip().startswith("#"))
    for word in ("lambda", "temp(", "directory(", "touch(", "shadow:", "cache:", "priority:", "run:"):
        assert word not in code, f"{path.name} uses {word}"
    if path.name not in ("common.smk", "Snakefile"):
        assert "config" not in code and "workflow." not in code


def test_helpers_stand_in_one_file_only() -> None:
    for path in RULES:
        assert ("def " in path.read_text()) == (path.name == "common.smk")


def test_the_map_fits_one_screen_and_names_every_file_of_rules() -> None:
    lines = (ROOT / "Snakefile").read_text().splitlines()
    assert len(lines) <= 50
    included = [line.split('"')[1] for line in lines if line.startswith("include:")]
    assert sorted(included) == [f"rules/{path.name}" for path in RULES]


def test_the_catalogs_snakefile_only_includes_the_real_one() -> None:
    text = (ROOT / "workflow/Snakefile").read_text()
    assert re.findall(r"^include: (.*)$", text, re.MULTILINE) == ['"../Snakefile"']
    assert not re.search(r"^ +(shell|script|run|output|params):", text, re.MULTILINE)
