"""Comparing two trees of results: the class of every artifact, and the reason for it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from planted_trees import ELSEWHERE, HERE, STUDY, payload_of, plant, study, write
from scipy import stats
from typer.testing import CliRunner

from dmdpipe.artifacts.manifest import Equality
from dmdpipe.artifacts.plan import plan
from dmdpipe.artifacts.tensors import encode_tensors
from dmdpipe.audit.commands import audit_app
from dmdpipe.audit.diff import Agreement, ArtifactComparison, diff_trees
from dmdpipe.audit.pairs import spec_change
from dmdpipe.audit.seed_tests import LEVEL, compare_seeds, welch_p_value
from dmdpipe.audit.tree import read_artifact
from dmdpipe.errors import UserError
from dmdpipe.evidence.results import results_table

SEEDS = 6
STEPS = study(SEEDS)
APP = typer.Typer()
APP.add_typer(audit_app, name="audit")
EVIDENCE = f"studies/{STUDY}/tiny"


def values(seed: int, shift: float = 0.0) -> dict[int, float]:
    drawn = np.random.default_rng(seed).normal(0.5 + shift, 0.1, SEEDS)
    return dict(enumerate(drawn.tolist()))


def by_stage(comparisons: list[ArtifactComparison]) -> dict[str, set[Agreement]]:
    found: dict[str, set[Agreement]] = {}
    for comparison in comparisons:
        found.setdefault(comparison.stage, set()).add(comparison.agreement)
    return found


def one(comparisons: list[ArtifactComparison], folder: str) -> ArtifactComparison:
    (found,) = [comparison for comparison in comparisons if comparison.folder.startswith(folder)]
    return found


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return plant(tmp_path / "a", STEPS, payload_of(values(0)))


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return tmp_path / "b"


def test_a_tree_is_identical_to_its_copy(a: Path, b: Path) -> None:
    shutil.copytree(a, b)
    (b / STEPS[EVIDENCE].folder / "run.json").write_text('{"host": "elsewhere"}')
    (b / "logs").mkdir()
    comparisons = diff_trees(a, b)
    assert {comparison.folder for comparison in comparisons} == set(STEPS)
    assert {comparison.agreement for comparison in comparisons} == {Agreement.identical}
    assert {comparison.reason for comparison in comparisons} == {""}


def test_rounding_is_told_from_change_and_named(a: Path, b: Path) -> None:
    plant(b, STEPS, payload_of(values(0), rounding=1e-6), ELSEWHERE)
    comparisons = diff_trees(a, b)
    stages = by_stage(comparisons)
    assert stages.pop("teacher_samples") == {Agreement.tolerance}
    assert set.union(*stages.values()) == {Agreement.identical}
    found = next(comparison for comparison in comparisons if comparison.stage == "teacher_samples")
    assert "instruction_set: AVX2 → AVX512" in found.reason and "round otherwise" in found.reason
    assert found.largest is not None and found.largest.largest is not None
    assert found.largest.largest.where == "tensor 'teacher'[1, 2]"
    assert found.largest.largest.size == pytest.approx(1e-6 * 6 / np.sqrt(91 / 6), rel=1e-5)


def test_more_than_rounding_where_nothing_was_trained_again_is_different(a: Path, b: Path) -> None:
    plant(b, STEPS, payload_of(values(0), rounding=0.01), ELSEWHERE)
    stages = by_stage(diff_trees(a, b))
    assert stages.pop("teacher_samples") == {Agreement.different}
    assert set.union(*stages.values()) == {Agreement.identical}


def test_rounding_in_one_environment_is_said_to_be_unexpected(a: Path, b: Path) -> None:
    plant(b, STEPS, payload_of(values(0), rounding=1e-6), HERE)
    found = next(comparison for comparison in diff_trees(a, b) if comparison.stage == "teacher_samples")
    assert found.agreement is Agreement.tolerance and "should give the same bytes" in found.reason


def test_students_that_were_trained_again_are_compatible_if_their_seeds_are(a: Path, b: Path) -> None:
    plant(b, STEPS, payload_of(values(1), student_shift=0.5), ELSEWHERE)
    comparisons = diff_trees(a, b)
    stages = by_stage(comparisons)
    for stage in ("student", "pairs", "metrics", "evidence", "verdicts", "figures"):
        assert stages.pop(stage) == {Agreement.statistical}, stage
    assert set.union(*stages.values()) == {Agreement.identical}
    assert "none of 3 comparisons" in one(comparisons, EVIDENCE).reason
    assert f"part of {EVIDENCE}" in one(comparisons, "students/moons_teacher_dmd2_sigma80_seed0").reason
    assert "claims are the same" in one(comparisons, "verdicts/").reason


def test_a_shift_over_seeds_is_different_and_named(a: Path, b: Path) -> None:
    plant(b, STEPS, payload_of(values(1, shift=1.0), student_shift=0.5), ELSEWHERE)
    comparisons = diff_trees(a, b)
    stages = by_stage(comparisons)
    for stage in ("student", "pairs", "metrics", "evidence", "verdicts", "figures"):
        assert stages[stage] == {Agreement.different}, stage
    reason = one(comparisons, EVIDENCE).reason
    first, second = (np.mean(list(side.values())) for side in (values(0), values(1, shift=1.0)))
    assert reason.startswith(("rho at moons", "gate_ratio at moons"))
    assert f"mean {first:.4g} over 6 seeds → {second:.4g}" in reason or reason.startswith("gate")
    assert "Welch's p = " in reason and "below 0.01/3" in reason
    assert f"made from {EVIDENCE}" in one(comparisons, "verdicts/").reason


def test_verdicts_with_another_word_are_different_and_name_the_claim(a: Path, b: Path) -> None:
    plant(b, STEPS, payload_of(values(1), student_shift=0.5, word="inconclusive"), ELSEWHERE)
    comparisons = diff_trees(a, b)
    found = one(comparisons, "verdicts/")
    assert (found.agreement, found.reason) == (Agreement.different, "claim C1: supported → inconclusive")
    assert one(comparisons, "report/").agreement is Agreement.different
    assert one(comparisons, EVIDENCE).agreement is Agreement.statistical


def test_one_seed_cannot_be_tested(tmp_path: Path) -> None:
    steps = study(1)
    a = plant(tmp_path / "a", steps, payload_of({0: 0.5}))
    b = plant(tmp_path / "b", steps, payload_of({0: 0.6}, student_shift=0.5))
    comparisons = diff_trees(a, b)
    assert "1 seeds on a side, and a test needs 2" in one(comparisons, EVIDENCE).reason
    assert one(comparisons, "students/").agreement is Agreement.different


def test_a_student_of_no_study_is_different(tmp_path: Path) -> None:
    steps = {folder: step for folder, step in STEPS.items() if step.stage in ("data", "teacher", "student")}
    a = plant(tmp_path / "a", steps, payload_of(values(0)))
    b = plant(tmp_path / "b", steps, payload_of(values(0), student_shift=0.5))
    found = one(diff_trees(a, b), "students/moons_teacher_dmd2_sigma80_seed0")
    assert found.agreement is Agreement.different
    assert "no study over several seeds contains it" in found.reason


def test_another_structure_is_no_matter_of_seeds(a: Path, b: Path) -> None:
    def payload(step):  # type: ignore[no-untyped-def]
        files = dict(payload_of(values(1), student_shift=0.5)(step))
        if step.stage == "student" and step.spec.seed == 0:
            files["snapshots.safetensors"] = encode_tensors({"w": np.ones((2, 2))})
        return files

    plant(b, STEPS, payload)
    comparisons = diff_trees(a, b)
    found = one(comparisons, "students/moons_teacher_dmd2_sigma80_seed0")
    assert found.agreement is Agreement.different and "shape [2, 3] → float64 of shape [2, 2]" in found.reason
    assert one(comparisons, "students/moons_teacher_dmd2_sigma80_seed1").agreement is Agreement.statistical


def test_a_manifest_cannot_claim_to_be_held_to_less_than_its_stage(a: Path, b: Path) -> None:
    plant(b, STEPS, payload_of(values(0)))
    payload = payload_of(values(0), rounding=0.01)
    for step in STEPS.values():
        if step.stage == "teacher_samples":
            for root, files in ((a, payload_of(values(0))(step)), (b, payload(step))):
                write(root, step, files, equality=Equality(kind="statistical", reason="says who?"))
    assert by_stage(diff_trees(a, b))["teacher_samples"] == {Agreement.different}


def test_another_spec_in_a_folder_without_a_digest_is_named(a: Path, b: Path) -> None:
    shutil.copytree(a, b)
    evidence = STEPS[EVIDENCE]
    cells = [cell.model_copy(update={"seed": 7}) if i == 3 else cell for i, cell in enumerate(evidence.spec.cells)]
    other = type(evidence)("evidence", evidence.spec.model_copy(update={"cells": tuple(cells)}), evidence.parents)
    write(b, other, payload_of(values(0))(evidence))
    found = one(diff_trees(a, b), EVIDENCE)
    assert (found.agreement, found.reason) == (Agreement.different, "spec differs: cells.3.seed: 3 → 7")


def test_a_step_of_another_spec_with_the_same_label_says_what_differs(a: Path, b: Path) -> None:
    shutil.copytree(a, b)
    (noise, *_) = [step for step in STEPS.values() if step.stage == "noise"]
    other = plan("noise", noise.spec.model_copy(update={"n_paired": 77}))
    shutil.rmtree(b / noise.folder)
    write(b, other, payload_of(values(0))(noise))
    comparisons = diff_trees(a, b)
    found = one(comparisons, noise.folder)
    assert (found.agreement, found.stage) == (Agreement.only_in_a, "noise")
    assert found.reason == f"spec differs from {other.folder}: n_paired: {noise.spec.n_paired} → 77"
    assert (
        one(comparisons, other.folder).reason
        == f"spec differs from {noise.folder}: n_paired: 77 → {noise.spec.n_paired}"
    )


def test_steps_of_one_tree_only_are_named(a: Path, b: Path) -> None:
    shutil.copytree(a, b)
    gone = {side: sorted(STEPS)[place] for side, place in (("a", 0), ("b", 3))}
    shutil.rmtree(a / gone["a"])
    shutil.rmtree(b / gone["b"])
    comparisons = diff_trees(a, b)
    assert one(comparisons, gone["a"]).agreement is Agreement.only_in_b
    assert one(comparisons, gone["b"]).agreement is Agreement.only_in_a


@pytest.mark.parametrize("both", [False, True])
def test_no_manifest_is_believed(a: Path, b: Path, both: bool) -> None:
    shutil.copytree(a, b)
    (samples, *_) = [step for step in STEPS.values() if step.stage == "teacher_samples"]
    for root in (a, b) if both else (b,):
        file = root / samples.folder / "samples.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    found = one(diff_trees(a, b), samples.folder)
    assert found.agreement is Agreement.different
    assert "B: samples.safetensors was changed after it was made" in found.reason
    assert ("A: samples.safetensors was changed" in found.reason) is both


def test_files_that_no_manifest_lists_or_that_are_gone_are_differences(a: Path, b: Path) -> None:
    shutil.copytree(a, b)
    (samples, *_) = [step for step in STEPS.values() if step.stage == "teacher_samples"]
    (noise, *_) = [step for step in STEPS.values() if step.stage == "noise"]
    (b / samples.folder / "extra.txt").write_text("x")
    (b / noise.folder / "noise.safetensors").unlink()
    (a / EVIDENCE / "results.parquet").unlink()
    os.mkfifo(a / EVIDENCE / "results.parquet")
    comparisons = diff_trees(a, b)
    assert "B: the manifest lists no extra.txt" in one(comparisons, samples.folder).reason
    assert "B: noise.safetensors is missing" in one(comparisons, noise.folder).reason
    assert "A: results.parquet is missing" in one(comparisons, EVIDENCE).reason


def test_a_damaged_manifest_is_a_difference(a: Path, b: Path) -> None:
    shutil.copytree(a, b)
    (b / EVIDENCE / "manifest.json").write_text("{}")
    found = one(diff_trees(a, b), EVIDENCE)
    assert found.agreement is Agreement.different
    assert found.reason.startswith("B: ") and "\n" not in found.reason


def test_a_file_that_leads_out_of_its_folder_is_not_followed(a: Path, b: Path, tmp_path: Path) -> None:
    shutil.copytree(a, b)
    target = tmp_path / "secret"
    file = b / EVIDENCE / "results.parquet"
    file.rename(target)
    file.symlink_to(target)
    found = one(diff_trees(a, b), EVIDENCE)
    assert found.agreement is Agreement.different and "leads outside" in found.reason


def test_a_path_without_results_is_refused(a: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "absent", tmp_path, a / EVIDENCE / "manifest.json"):
        with pytest.raises(UserError, match="holds no results"):
            diff_trees(a, path)


# Seeds


def study_table(values: np.ndarray, metrics: list[str]):  # type: ignore[no-untyped-def]
    """The results table of one point: ``values`` [seeds, metrics] at the read-out step."""
    import pandas as pd

    labels = {"point": "p", "data": "moons", "d": 2, "network": "n", "init": "i", "recipe": "r", "sigma_max": 80.0}
    names = [*metrics, "gate_ratio", "converged"]
    cells = [
        (
            {**labels, "seed": seed},
            pd.DataFrame({"generator_step": 1, "metric": names, "value": [*row, 1.0, 1.0]}),
        )
        for seed, row in enumerate(values)
    ]
    return results_table("s", "tiny", cells, {})


def test_the_test_is_welchs() -> None:
    generator = np.random.default_rng(0)
    for n, m in ((2, 2), (3, 7), (10, 10)):
        x, y = generator.normal(0, 1, n), generator.normal(0.5, 3, m)
        assert welch_p_value(x, y) == pytest.approx(stats.ttest_ind(x, y, equal_var=False).pvalue, rel=1e-6)


def test_without_spread_the_test_counts_permutations() -> None:
    assert welch_p_value(np.zeros(2), np.ones(2)) == pytest.approx(2 / 6)
    assert welch_p_value(np.zeros(10), np.ones(10)) == pytest.approx(2 / 184_756)
    assert welch_p_value(np.full(3, 0.1), np.full(3, 0.1)) == 1


@pytest.mark.parametrize("seeds", [2, 5])
def test_runs_that_follow_one_distribution_are_seldom_called_different(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    runs, metrics = 1_000, 6
    alarms = 0
    for _ in range(runs):
        normal = generator.normal(size=(2, seeds, metrics - 2))
        skewed = generator.exponential(size=(2, seeds, 1))
        counted = generator.integers(0, 2, size=(2, seeds, 1)).astype(float)
        x, y = np.concatenate([normal, skewed, counted], axis=-1)
        p = min(welch_p_value(x[:, i], y[:, i]) for i in range(metrics))
        alarms += p < LEVEL / metrics
    # At a true rate of 0.01, more than 21 of 1,000 come less than once in a thousand times.
    assert alarms <= stats.binom.ppf(0.999, runs, LEVEL)


def test_a_shift_of_one_metric_among_many_is_found() -> None:
    generator = np.random.default_rng(0)
    metrics = [f"metric {i}" for i in range(20)]
    x, y = generator.normal(size=(2, 10, 20))
    assert compare_seeds(study_table(x, metrics), study_table(y, metrics)).compatible
    y[:, 13] += 4
    found = compare_seeds(study_table(x, metrics), study_table(y, metrics))
    assert not found.compatible and found.reason.startswith("metric 13 at p: ")


def test_a_constant_that_differs_by_rounding_is_no_difference() -> None:
    x = np.full((5, 1), 0.965296)
    found = compare_seeds(study_table(x, ["null"]), study_table(x * (1 + 1e-7), ["null"]))
    assert found.compatible and "equal within tolerance" in found.reason


def test_seeds_that_diverge_in_one_run_only_are_a_difference() -> None:
    x = np.random.default_rng(0).normal(size=(5, 1))
    y = x + 0.1
    y[2] = np.nan
    found = compare_seeds(study_table(x, ["rho"]), study_table(y, ["rho"]))
    assert not found.compatible and "0 of 5 seeds in A are not finite, 1 of 5 in B" in found.reason


def test_only_seeds_at_the_read_out_step_count() -> None:
    x = np.random.default_rng(0).normal(size=(5, 1))
    a, b = study_table(x, ["rho"]), study_table(x, ["rho"])
    b.loc[b["seed"] == -1, "value"] = 99.0
    assert compare_seeds(a, b).compatible
    assert not compare_seeds(a, b.assign(readout=False)).compatible
    assert "cannot be tested" in compare_seeds(a, b.drop(columns="seed")).reason


# The command


def test_the_command_prints_the_worst_first_and_exits_by_what_it_found(a: Path, b: Path) -> None:
    plant(b, STEPS, payload_of(values(1), student_shift=0.5, rounding=1e-6, word="refuted"), ELSEWHERE)
    run = CliRunner().invoke(APP, ["audit", "diff", str(a), str(b)])
    assert run.exit_code == 1
    head, lines = run.output.split("\n\n")
    assert [line.split()[0] for line in lines.splitlines()[:2]] == ["different:", "different:"]
    assert "identical" in head and "2  different" in head
    assert "different: verdicts/tiny/verdicts.json | " in lines
    assert lines.rstrip().splitlines()[-1].startswith("equal within tolerance: teacher_samples/")
    same = CliRunner().invoke(APP, ["audit", "diff", str(a), str(a)])
    assert same.exit_code == 0 and same.output.strip() == f"{len(STEPS)}  identical"


def test_json_and_csv_hold_every_artifact(a: Path, b: Path) -> None:
    plant(b, STEPS, payload_of(values(0), rounding=1e-6), ELSEWHERE)
    run = CliRunner().invoke(APP, ["audit", "diff", str(a), str(b), "--format", "json"])
    assert run.exit_code == 0
    rows = json.loads(run.output)
    assert [row["folder"] for row in rows] == sorted(STEPS)
    (changed, *_) = [row for row in rows if row["class"] == "equal within tolerance"]
    assert changed["file"] == "samples.safetensors" and changed["largest"]["where"] == "tensor 'teacher'[1, 2]"
    run = CliRunner().invoke(APP, ["audit", "diff", str(a), str(b), "--format", "csv"])
    assert len(run.output.splitlines()) == len(STEPS) + 1


def test_wrong_paths_are_bad_usage(a: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(APP, ["audit", "diff", str(a), str(tmp_path / "absent")])
    assert isinstance(run.exception, UserError)


def test_specs_that_differ_in_one_float_are_named_by_it(a: Path) -> None:
    (folder,) = [folder for folder in STEPS if folder.startswith("students/") and "seed0" in folder]
    one = read_artifact(a / folder)
    other = read_artifact(a / folder)
    other.manifest.result.spec["recipe"]["generator"]["learning_rate"] = 0.5
    assert spec_change(one, one) == ""
    assert spec_change(one, other) == "recipe.generator.learning_rate: 0.0001 → 0.5"
