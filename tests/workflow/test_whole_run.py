"""The whole pipeline at smoke scale, once: what it leaves, what it prints, and its numbers computed a second time."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from checkouts import Checkout
from recomputed import copying, teacher_map
from safetensors.numpy import load_file
from toy_mirror import mirror_for

from dmdpipe.specs.config import members_of, study_names

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

SCALE = "smoke"
SMOKE = ("--config", f"scale={SCALE}")
PAGES = ("overview", "start_quality", "gate", "study_dimension", "study_initialisation", "study_validity")
CLAIMS = ("C1", "C2", "C3", "C4", "C5", "C6", "C7", "H1")
COLUMNS = [
    *["study", "scale", "point", "data", "d", "network", "init", "recipe", "sigma_max", "seed"],
    *["generator_step", "metric", "value", "low", "high", "n_seeds", "gate_ratio", "converged", "readout"],
]


@pytest.fixture
def run(whole_run: tuple[Any, Any]) -> tuple[Any, Any]:
    """A checkout in which everything has run, and how that ended."""
    return whole_run


@pytest.fixture
def results(run: tuple[Any, Any]) -> Path:
    return Path(run[0] / "results")


def steps(results: Path, stage: str = "") -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder and the manifest of every step, or of every step of one stage."""
    for path in sorted(results.rglob("manifest.json")):
        manifest = json.loads(path.read_text())
        if stage in ("", manifest["result"]["stage"]):
            yield path.parent, manifest


def test_the_run_ends_well_and_prints_the_verdicts_and_where_the_report_is(run: tuple[Any, Any]) -> None:
    checkout, done = run
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout.splitlines()
    for claim in CLAIMS:
        (line,) = [line for line in printed if line.startswith(f"{claim} ")]
        assert line.split()[-1] in ("SUPPORTED", "REFUTED", "INCONCLUSIVE")
    for page in (f"results/report/{SCALE}/overview/notebook.html", f"results/report/{SCALE}/report.html"):
        assert page in done.stdout
        assert (checkout / page).stat().st_size > 1_000
    assert "Traceback" not in done.stdout + done.stderr


def test_the_report_has_every_page_with_figures_and_their_data(results: Path) -> None:
    for page in PAGES:
        folder = results / "report" / SCALE / page
        text = (folder / "notebook.html").read_text()
        assert "<h1" in text and "Traceback" not in text
        assert "object at 0x" not in text and str(results.parent) not in text
        figures = {path.stem for path in folder.glob("*.png")}
        assert figures == {path.stem for path in folder.glob("*.csv")} == {path.stem for path in folder.glob("*.pdf")}
    report = (results / "report" / SCALE / "report.html").read_text()
    assert all(page.replace("_", " ") in report for page in PAGES)


def test_every_step_is_whole(results: Path) -> None:
    from dmdpipe.artifacts.manifest import read_manifest

    found = {}
    for folder, manifest in steps(results):
        read_manifest(folder / "manifest.json")
        payload = manifest["result"]["payload"]
        assert {path.name for path in folder.iterdir()} == {*payload, "manifest.json", "run.json"}
        for name, described in payload.items():
            content = (folder / name).read_bytes()
            assert described == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        facts = json.loads((folder / "run.json").read_text())
        assert facts["seconds"] > 0 and facts["peak_memory_mib"] > 0 and facts["resumed"] is False
        found[str(folder.relative_to(results))] = manifest
    for manifest in found.values():
        for parent in manifest["result"]["parents"].values():
            assert found[parent["folder"]]["result"]["result_digest"] == parent["result_digest"]
    stages = {manifest["result"]["stage"] for manifest in found.values()}
    assert len(stages) == 10
    temporary = [path for path in results.glob(".*/**/*") if path.is_file() and path.name != "plan.json"]
    assert temporary == []


def test_a_second_run_has_nothing_to_do_and_takes_seconds(run: tuple[Any, Any]) -> None:
    checkout, _ = run
    before = {path: checkout.folder.joinpath(path).stat().st_mtime_ns for path in checkout.files()}
    started = time.monotonic()
    done = checkout.dmdpipe("run", *SMOKE)
    seconds = time.monotonic() - started
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr
    assert seconds < 60  # about 4 on an idle machine
    after = {path: checkout.folder.joinpath(path).stat().st_mtime_ns for path in checkout.files()}
    changed = {path for path in after if before.get(path) != after[path]}
    assert {path for path in changed if not path.startswith(".snakemake/")} <= {"results/.lock"}
    assert all(f"\n{claim} " in done.stdout for claim in CLAIMS)


def test_results_and_verdicts_are_printed_in_every_format(run: tuple[Any, Any]) -> None:
    checkout, _ = run
    rows = json.loads(checkout.dmdpipe("results", "--scale", SCALE, "--format", "json").stdout)
    table = checkout.dmdpipe("results", "--scale", SCALE, "--format", "csv").stdout
    assert all(list(row) == COLUMNS for row in rows)
    listed = list(csv.DictReader(io.StringIO(table)))
    assert len(listed) == len(rows) and list(listed[0]) == COLUMNS
    config = yaml.safe_load((checkout / "config/config.yaml").read_text())
    assert {row["study"] for row in rows} == set(config["studies"])
    assert {row["scale"] for row in rows} == {SCALE}
    assert any(row["seed"] == -1 and row["metric"] == "seed_seed" for row in rows)
    verdicts = json.loads(checkout.dmdpipe("verdicts", "--scale", SCALE, "--format", "json").stdout)
    assert [row["id"] for row in verdicts] == list(CLAIMS)
    assert {row["verdict"] for row in verdicts} <= {"supported", "refuted", "inconclusive"}
    assert json.loads(checkout.dmdpipe("verdicts", "--scale", SCALE, "--criteria", "--format", "json").stdout)


def test_rho_delta_e_and_retrieval_agree_with_independent_code(results: Path) -> None:
    compared = 0
    for folder, manifest in steps(results, "metrics"):
        parents = manifest["result"]["parents"]
        pairs = load_file(results / parents["pairs"]["folder"] / "pairs.safetensors")
        table = pd.read_parquet(folder / "metrics.parquet")
        measured = table.pivot(index="generator_step", columns="metric", values="value")
        assert list(measured.index) == list(pairs["generator_step"])
        for step, student in zip(pairs["generator_step"], pairs["student"], strict=True):
            expected = copying(student, pairs["teacher"])
            found = measured.loc[step]
            assert found["rho"] == pytest.approx(expected["rho"], rel=1e-6)
            assert found["delta_e"] == pytest.approx(expected["delta_e"], rel=0, abs=1e-6)
            assert found["retrieval_at_1"] == pytest.approx(expected["retrieval_at_1"], rel=1e-6)
            compared += 1
    assert compared > 50


def test_what_results_print_is_what_was_measured(run: tuple[Any, Any], results: Path) -> None:
    rows = pd.DataFrame(json.loads(run[0].dmdpipe("results", "--scale", SCALE, "--format", "json").stdout))
    rho = rows[(rows["metric"] == "rho") & (rows["study"] == "dimension") & (rows["seed"] >= 0) & rows["readout"]]
    assert len(rho) == 2 * 2
    for row in rho.to_dict("records"):
        (pairs,) = [
            load_file(folder / "pairs.safetensors")
            for folder, manifest in steps(results, "pairs")
            if (student := manifest["result"]["spec"]["student"])["seed"] == row["seed"]
            and folder.name.startswith(f"{row['data']}_teacher_dmd2_sigma80_")
            and student["generator_steps"] == row["generator_step"]
        ]
        expected = copying(pairs["student"][-1], pairs["teacher"])["rho"]
        assert row["value"] == pytest.approx(expected, rel=1e-6)


def test_stored_teacher_samples_agree_with_adaptive_integration_of_the_stored_teacher(results: Path) -> None:
    apart = {}
    for folder, manifest in steps(results, "teacher_samples"):
        spec, parents = manifest["result"]["spec"], manifest["result"]["parents"]
        model = load_file(results / parents["teacher"]["folder"] / "model.safetensors")
        noise = load_file(results / parents["noise"]["folder"] / "noise.safetensors")
        stored = load_file(folder / "samples.safetensors")["teacher"].astype(float)
        spread = float(np.sqrt(stored.var(axis=0).mean()))
        few = slice(0, 32)
        exact = teacher_map(noise["paired"][few], model, spec["teacher"], spec["noise_range"])
        apart[folder.name] = float(np.sqrt(np.mean((stored[few] - exact) ** 2))) / spread
    assert len(apart) > 5
    assert {name: round(error, 4) for name, error in apart.items() if error >= 0.01} == {}


def test_teacher_and_students_were_given_the_same_noise(results: Path) -> None:
    for folder, manifest in steps(results, "pairs"):
        parents = manifest["result"]["parents"]
        pairs = load_file(folder / "pairs.safetensors")
        noise = load_file(results / parents["noise"]["folder"] / "noise.safetensors")
        samples = load_file(results / parents["teacher_samples"]["folder"] / "samples.safetensors")
        assert np.array_equal(pairs["z"], noise["paired"])
        assert np.array_equal(pairs["teacher"], samples["teacher"])
        assert pairs["student"].shape[1:] == pairs["z"].shape
        assert pairs["generator_step"][0] == 0


def test_every_other_study_runs_too_and_has_its_points_and_its_page(run: tuple[Any, Any], tmp_path: Path) -> None:
    """On a copy, so that nothing that studies share is made again."""
    shutil.copytree(run[0].folder, tmp_path / "checkout", symlinks=True)
    checkout = Checkout(tmp_path / "checkout")
    with mirror_for(checkout, tmp_path / "mirror"):
        done = checkout.dmdpipe("run", *SMOKE, f"studies=[{', '.join(study_names())}]", timeout=3_000)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in study_names():
        table = pd.read_parquet(checkout / f"results/studies/{name}/{SCALE}/results.parquet")
        of_seeds = table[table["seed"] >= 0].drop_duplicates(["point", "seed"])
        wanted = {(member.point, member.seed) for member in members_of(name, SCALE)}
        assert set(zip(of_seeds["point"], of_seeds["seed"], strict=True)) == wanted
        text = (checkout / f"results/report/{SCALE}/study_{name}/notebook.html").read_text()
        assert "Traceback" not in text and "<img" in text
