"""The figure of drift speeds, on planted curves of ρ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import planted
import pytest

from dmdpipe.figures import drift, pages, tables
from dmdpipe.specs.config import members_of, scale_names

ROOT = Path(__file__).resolve().parents[2]
STEPS = np.array([0, 1, 10, 100, 400, 700, 1000])
SEEDS = 4


def results(law: float = 1.5, sign: float = 1.0, over_the_gate: tuple[str, int] | None = None) -> pd.DataFrame:
    """Four learning rates and two batches of a ring, two dimensions of digits; ρ is a line after step 100."""
    cells = [(f"case=ring, lr={lr}, batch=256", 2, "ring", float(lr)) for lr in ("5e-5", "4e-4", "1e-4", "2e-4")]
    cells += [("case=ring, lr=1e-4, batch=64", 2, "ring", 1e-4)]
    cells += [(f"case=digits, d={d}, lr=1e-4, batch=256", d, f"digits-{d}", 1e-4) for d in (16, 4)]
    rows = []
    for point, d, data, lr in cells:
        keys = {"study": "drift", "scale": "laptop", "point": point, "data": data, "d": d, "network": "mlp-64x3"}
        keys |= {"init": "teacher", "recipe": "dmd2", "sigma_max": 80.0, "metric": "rho"}
        for seed in range(SEEDS):
            slope = sign * (1 + 0.1 * seed) * 1e-4 * (lr / 1e-4) ** law
            within = (STEPS >= 100) & (over_the_gate != (point, seed))
            for step, inside in zip(STEPS, within, strict=True):
                value = 0.1 + slope * step if step >= 100 else 9.0
                ends = {"seed": seed, "generator_step": step, "value": value, "low": np.nan, "high": np.nan}
                ends |= {"n_seeds": 1, "gate_ratio": 1.0 if inside else 3.0, "converged": bool(inside)}
                rows.append(keys | ends | {"readout": step == STEPS[-1]})
    return tables.with_family(pd.DataFrame(rows))


def titles(figure) -> list[list[str]]:
    return [axes.get_title(loc="left").split("\n") for axes in figure.axes if axes.axison]


def test_curves_join_points_that_differ_in_one_quantity() -> None:
    found = {(curve.quantity, curve.name): list(curve.points) for curve in drift.curves_of(results()["point"].unique())}
    assert found == {
        ("d", "digits"): ["4", "16"],
        ("lr", "ring"): ["5e-5", "1e-4", "2e-4", "4e-4"],
        ("batch", "ring"): ["64", "256"],
    }


def test_curves_of_one_name_are_told_apart_by_what_they_fix() -> None:
    points = [f"case=ring, lr={lr}, batch={b}" for lr in ("1e-4", "2e-4") for b in (64, 256)]
    names = [curve.name for curve in drift.curves_of(points)]
    assert names == ["batch=64", "batch=256", "lr=1e-4", "lr=2e-4"]


def test_the_planted_speeds_and_their_law_are_shown() -> None:
    figure, data = drift.drift_speeds(results())
    figure.draw_without_rendering()
    # A factor of the seed drops out of its law: the interval is a point.
    assert titles(figure)[1] == ["student's learning rate", "ring: p = 1.50 [1.50, 1.50]"]
    assert [axes.get_yscale() for axes in figure.axes] == ["log"] * 3
    mine = data[(data["quantity"] == "lr") & (data["seed"] == -1)]
    np.testing.assert_allclose(mine["speed"], 1e3 * 1.15e-4 * 2.0 ** (1.5 * np.array([-1, 0, 1, 2])))
    np.testing.assert_allclose(mine["exponent"], 1.5)
    seeds = data[(data["point"] == "case=ring, lr=2e-4, batch=256") & (data["seed"] >= 0)]
    np.testing.assert_allclose(np.sort(seeds["speed"]), 0.1 * 2**1.5 * np.array([1.0, 1.1, 1.2, 1.3]))


def test_speeds_that_are_not_positive_have_no_law() -> None:
    figure, data = drift.drift_speeds(results(sign=-1.0))
    figure.draw_without_rendering()
    assert titles(figure)[1][1] == "ring: p not determined: a speed is not positive"
    assert data["exponent"].isna().all()
    assert [axes.get_yscale() for axes in figure.axes] == ["linear"] * 3


def test_a_seed_over_the_gate_is_left_out_and_seen() -> None:
    point = "case=ring, lr=2e-4, batch=256"
    figure, data = drift.drift_speeds(results(over_the_gate=(point, 3)))
    (mean,) = data[(data["point"] == point) & (data["seed"] == -1)].to_dict("records")
    assert mean["n_seeds"] == SEEDS - 1 and not mean["all_seeds"]
    assert mean["speed"] == pytest.approx(0.11 * 2**1.5)
    assert "hollow: not all seeds have a speed" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_where_no_student_is_within_the_gate_the_figure_says_so() -> None:
    rows = results().assign(converged=False)
    figure, data = drift.drift_speeds(rows)
    figure.draw_without_rendering()
    assert all(line.endswith("p not determined: too few seeds with a speed") for _, line in titles(figure))
    assert data["speed"].isna().all()


def test_a_quantity_without_numbers_has_no_law() -> None:
    rows = results()
    rows["point"] = rows["point"].replace({"case=ring, lr=1e-4, batch=64": "case=ring, lr=1e-4, batch=exact"})
    figure, _ = drift.drift_speeds(rows)
    figure.draw_without_rendering()
    assert titles(figure)[2] == ["batch"]
    assert [tick.get_text() for tick in figure.axes[2].get_xticklabels()] == ["256", "exact"]
    figure, _ = drift.drift_speeds(rows.assign(converged=False))
    assert titles(figure)[2] == ["batch", "ring: no seed has a speed"]


def test_only_studies_that_vary_the_training_have_the_figure() -> None:
    (figure,) = (figure for figure in pages.FIGURES if figure.draw is drift.drift_speeds)
    rows = results()
    assert pages.is_shown(figure, rows)
    assert not pages.is_shown(figure, rows[rows["d"] > 2])
    assert not pages.is_shown(figure, tables.with_family(planted.results()))


def test_the_labels_of_the_study_say_what_its_students_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for scale in scale_names():
        for member in members_of("drift", scale):
            said = dict(word.split("=") for word in member.point.split(", "))
            student = member.spec.pairs.student
            recipe = student.recipe
            assert float(said["lr"]) == recipe.generator.learning_rate
            assert int(said["batch"]) == student.batch
            assert int(said["updates"]) == recipe.generator_every
            assert recipe.generator.warmup == 100 * recipe.generator_every
            assert {"exact": "samples"}.get(said.get("fake", ""), "learned") == recipe.fake
            assert member.labels()["d"] == int(said.get("d", 2))
