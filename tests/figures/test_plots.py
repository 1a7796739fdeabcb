from __future__ import annotations

import re
from typing import get_args

import numpy as np
import pandas as pd
import planted
import pytest
from matplotlib.colors import to_rgba

from dmdpipe.artifacts.tables import encode_table
from dmdpipe.errors import UserError
from dmdpipe.figures import (
    choices,
    claims,
    cost,
    curves,
    gate,
    grids,
    mechanism,
    pages,
    readout,
    starts,
    style,
    tables,
    training,
    verdicts,
)
from dmdpipe.specs.student import InitKind


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    return tables.with_family(planted.results())


@pytest.fixture(scope="module")
def gallery() -> pd.DataFrame:
    return tables.with_family(planted.gallery())


def study(results: pd.DataFrame, name: str) -> pd.DataFrame:
    return results[results["study"] == name]


def drawn_points(axes) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for line in axes.get_lines()
        if line.get_marker() not in ("None", "", None)
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def faces(axes) -> dict[float, bool]:
    """Return, by height, whether each mark without a line is filled."""
    return {
        float(y): to_rgba(line.get_markerfacecolor()) != to_rgba("white")
        for line in axes.get_lines()
        if line.get_linestyle() == "None"
        for y in line.get_ydata()
    }


RESULT_PLOTS = [
    curves.rho_against_dimension, curves.rho_over_time, starts.initialisation_controls, starts.start_quality,
    gate.gate, readout.read_out, mechanism.maps_over_time,
]  # fmt: skip


@pytest.mark.parametrize("plot", RESULT_PLOTS)
def test_studies_with_other_seeds_are_drawn_together(plot) -> None:
    more, fewer = planted.results(5), planted.results(2)
    mixed = pd.concat([more[more["study"] == "dimension"], fewer[fewer["study"] == "start"]], ignore_index=True)
    mixed["seed"] = mixed["seed"].where(mixed["seed"] == -1, mixed["seed"] + 5)
    figure, data = plot(tables.with_family(mixed))
    figure.draw_without_rendering()
    of_seeds = data[data["seed"] != -1].groupby("study")["seed"].agg(["min", "nunique"])
    assert set(of_seeds.itertuples(index=True, name=None)) <= {("dimension", 5, 5), ("start", 5, 2)}
    assert len(of_seeds)


@pytest.mark.parametrize("plot", RESULT_PLOTS)
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_smoke_run_of_one_point_is_drawn(plot, seeds: int) -> None:
    figure, data = plot(tables.with_family(planted.results(seeds, smoke=True)))
    figure.draw_without_rendering()
    assert len(data)


@pytest.mark.parametrize("plot", RESULT_PLOTS)
def test_a_student_that_diverged_does_not_hide_the_others(plot) -> None:
    results = tables.with_family(planted.results(2, smoke=True))
    results.loc[results["seed"].isin([0, -1]), ["value", "low", "high"]] = np.nan
    results.loc[results["seed"].isin([0, -1]), "converged"] = False
    figure, _ = plot(results)
    figure.draw_without_rendering()


def test_dimension_draws_every_value_and_interval_of_its_data(results: pd.DataFrame) -> None:
    figure, data = curves.rho_against_dimension(study(results, "dimension"))
    for axes, metrics in zip(
        figure.axes,
        (["rho", "rho_affine"], ["delta_e", "delta_e_null"], ["retrieval_at_1", "retrieval_null"]),
        strict=True,
    ):
        rows = data[data["metric"].isin(metrics)]
        heights = {round(y, 12) for _, y in drawn_points(axes)}
        wanted = rows[(rows["seed"] == -1) | rows["metric"].eq(metrics[0])]
        assert heights == {round(value, 12) for value in wanted["value"]}
        bars = {tuple(np.round(segment[:, 1], 12)) for bar in axes.collections for segment in bar.get_segments()}
        means = rows[(rows["seed"] == -1) & rows["metric"].eq(metrics[0])]
        assert bars == set(zip(means["low"].round(12), means["high"].round(12), strict=True))


def test_dimension_says_that_delta_e_is_a_reconstruction_everywhere(results: pd.DataFrame) -> None:
    for plot in (curves.rho_against_dimension, starts.start_quality):
        figure, _ = plot(results[results["study"] == "dimension"])
        words = [axes.get_title(loc="left") + axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes]
        words += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        naming = [text for text in words if "ΔE" in text and "null" not in text]
        assert naming
        assert all("reconstruction" in text for text in naming)


def test_runs_that_did_not_converge_are_hollow_and_the_others_filled(results: pd.DataFrame) -> None:
    figure, data = curves.rho_against_dimension(study(results, "dimension"))
    rho = data[data["metric"] == "rho"]
    assert not rho["converged"].all()
    filled = faces(figure.axes[0])
    assert {value: filled[value] for value in rho["value"]} == dict(zip(rho["value"], rho["converged"], strict=True))
    assert style.NOT_CONVERGED in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_read_out_shows_every_point_with_its_levels_and_thresholds(results: pd.DataFrame) -> None:
    thresholds = [("rho", 0.5, "C2"), ("rho", 0.5, "C7"), ("gate_ratio", 2.0, "C1")]
    figure, data = readout.read_out(study(results, "start"), ["rho", "rho_rotated", "rho_floor"], thresholds)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["rho", "rho_rotated"]
    for axes, metrics in zip(figure.axes, (["rho", "rho_floor", "rho_affine"], ["rho_rotated"]), strict=True):
        rows = data[data["metric"].isin(metrics) & ((data["seed"] == -1) | data["metric"].str.startswith("rho_r"))]
        rows = pd.concat([rows, data[data["metric"] == metrics[0]]])
        assert {round(x, 12) for x, _ in drawn_points(axes)} == {round(value, 12) for value in rows["value"]}
    assert [text.get_text() for text in figure.axes[0].texts] == ["C2, C7"]
    assert not figure.axes[1].texts


@pytest.mark.parametrize(
    ("predicts", "outcome", "low", "high", "bound", "side"),
    [
        ("below", "holds", 0.1, 0.3, "0.3", "above"), ("below", "fails", 0.7, 0.9, "0.7", "below"),
        ("above", "holds", 0.7, 0.9, "0.7", "below"), ("above", "fails", 0.1, 0.3, "0.3", "above"),
    ],
)  # fmt: skip
def test_what_would_change_our_mind_is_the_bound_next_to_the_threshold(
    predicts: str, outcome: str, low: float, high: float, bound: str, side: str
) -> None:
    row = {"predicts": predicts, "outcome": outcome, "threshold": 0.5, "value": (low + high) / 2, "low": low}
    words = pages.turning_point({**row, "high": high, "n_seeds": 5, "spread": 0.1, "detectable": 0.2})
    assert f"mean lies {side} 0.5" in words and f"decides, {bound}, leaves a margin of 0.2, or 2 times" in words
    open_words = pages.turning_point(
        {**row, "outcome": "undecided", "n_seeds": 5, "detectable": 0.2, "seeds_needed": 34.0}
    )
    assert "5 seeds see a difference of 0.2" in open_words and "takes 34 fresh seeds" in open_words


def test_a_strip_puts_the_number_on_its_side_of_the_threshold_with_its_bounds() -> None:
    figure, data = claims.criteria_strips(planted.criteria())
    fails, holds, unknown = figure.axes
    for axes, value, ends in ((fails, -0.45 / 0.51, (-1.0, -0.39 / 0.51)), (holds, -1.0, (-1.1, -0.25 / 0.3))):
        (marker,) = [x for x, _ in drawn_points(axes)]
        bounds = next(line.get_xdata() for line in axes.get_lines() if line.get_ydata()[0] == -0.55)
        assert marker == pytest.approx(value) and tuple(bounds) == pytest.approx(ends)
    assert not drawn_points(unknown) and "not measured" in [text.get_text() for text in unknown.texts]
    assert list(data["criterion"]) == list(planted.criteria()["criterion"])


def test_every_start_has_a_look_of_its_own() -> None:
    kinds = set(get_args(InitKind))
    for looks in (style.INIT_COLOURS, style.INIT_MARKERS):
        assert kinds == set(looks) and len(set(looks.values())) == len(looks)


def test_only_one_step_networks_that_distil_are_held_against_their_start() -> None:
    row = {"study": "s", "metric": "rho_resampling", "value": 0.0, "network": "mlp-64x3", "recipe": "dmd2"}
    others = {"linear": {"network": "linear"}, "told": {"recipe": "regression"}, "steps": {"value": 0.7}}
    others["particles"] = {"network": "particles-4096"}
    rows = [row | {"point": "usual"}, *(row | {"point": point} | given for point, given in others.items())]
    rows += [{**one, "metric": "rho", "value": 0.3} for one in rows]
    kept = starts.comparable(pd.DataFrame(rows))
    assert set(kept["point"]) == {"usual"} and len(kept) == 2


def test_missing_evidence_names_the_study_that_would_give_it() -> None:
    rows = planted.criteria()
    assert claims.missing_evidence("refuted", rows) == ""
    assert "premises" in claims.missing_evidence("inconclusive", rows.assign(outcome="fails"))
    undecided = pd.concat([rows[2:]] * 4).assign(
        study=["a", "b", "b", "c"],
        cause=["no study", "interval crosses", "interval crosses", "not converged"],
        seeds_needed=[np.nan, 34.0, 34.0, np.nan],
    )
    words = claims.missing_evidence("inconclusive", undecided)
    assert words == (
        "What would decide it: study a, which has not been run; 34 seeds of study b; more converged seeds of study c."
    )


def test_a_history_is_thinned_to_medians_over_windows_of_equal_length() -> None:
    n = 1_200
    steps = np.arange(1, n + 1)
    history = pd.DataFrame({"generator_step": steps, "dm_gradient": np.sqrt(2.0 * steps), "fake_loss": -1.0 * steps})
    table = training.thinned(history)
    assert list(table["generator_step"]) == list(range(20, n + 1, 20))
    np.testing.assert_allclose(table["dm_loss"], table["generator_step"] - 9.5)
    np.testing.assert_allclose(table["fake_loss"], -(table["generator_step"] - 9.5))
    assert table["regression_loss"].isna().all()
    assert list(training.thinned(history[:3])["generator_step"]) == [1, 2, 3]


def test_training_curves_show_what_some_student_has_and_every_seed() -> None:
    histories = planted.training()
    ends = pd.DataFrame(
        [
            (point, seed, 10, point == "case=gan" and seed == 1, True)
            for point in ("case=gan", "case=fast")
            for seed in (-1, 0, 1)
        ],
        columns=["point", "seed", "generator_step", "converged", "readout"],
    )
    rows = training.with_gate(histories, pd.concat([ends.assign(readout=False, converged=True), ends, ends]))
    figure, data = training.training_curves(rows)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["case=gan: 1 of 2", "case=fast: 0 of 2"]
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_lines()]
    assert titles == [
        training.CURVES[name] for name in ("dm_loss", "fake_loss", "student_gradient", "adversarial_loss")
    ]
    dm, *_, adversarial = [axes for axes in figure.axes if axes.get_lines()]
    assert len(dm.get_lines()) == 6 and len(adversarial.get_lines()) == 4  # a median without seeds is an empty line
    assert max(len(line.get_xdata()) for line in dm.get_lines()) == 10
    assert [bool(axes.get_lines()) for axes in figure.axes] == [axes.axison for axes in figure.axes]
    assert len(data) == len(rows)


def test_time_starts_at_step_0_and_has_a_panel_per_data_and_sigma_max(results: pd.DataFrame) -> None:
    figure, data = curves.rho_over_time(study(results, "dimension"))
    panels = [axes for axes in figure.axes if axes.get_lines()]
    assert len(panels) == 6
    for axes in panels:
        assert min(x for x, _ in drawn_points(axes)) == 0
        low, high = axes.get_xlim()
        assert low < 0 < planted.STEPS[-1] < high
    floor = data[data["metric"] == "rho_floor"]["value"]
    assert all(any(np.allclose(line.get_ydata(), floor.iloc[0]) for line in axes.get_lines()) for axes in panels)


def test_time_has_a_line_for_each_of_many_points(results: pd.DataFrame) -> None:
    """More than there are line styles with a name."""
    one = study(results, "start").query("data == 'ring' and init == 'teacher'")
    many = pd.concat([one.assign(point=f"case={number}", network=f"mlp-{number}x3") for number in range(45)])
    figure, data = curves.rho_over_time(many)
    assert len(data) == len(many[many["metric"].isin(["rho", "rho_floor", "rho_affine"])])
    (axes,) = (axes for axes in figure.axes if axes.get_lines())
    assert len({(line.get_color(), str(line._dash_pattern)) for line in axes.get_lines()}) >= 30


def test_starts_show_both_targets_with_their_values(results: pd.DataFrame) -> None:
    figure, data = starts.initialisation_controls(study(results, "start"))
    shown = {round(x, 12) for axes in figure.axes for x, _ in drawn_points(axes)}
    assert shown == {round(value, 12) for value in data["value"]}
    assert set(data["metric"]) == {"rho", "rho_rotated"}


def test_start_table_pairs_each_run_with_its_own_start(results: pd.DataFrame) -> None:
    table = starts.start_table(results)
    assert len(table) == 60
    shared = pd.concat([results, results[results["study"] == "start"].assign(study="zeta")], ignore_index=True)
    pd.testing.assert_frame_equal(starts.start_table(shared), table)
    row = table.sample(1, random_state=0).iloc[0]
    runs = results[
        (results["point"] == row["point"]) & (results["seed"] == row["seed"]) & (results["study"] == row["study"])
    ]
    at_start = runs[runs["generator_step"] == 0].set_index("metric")["value"]
    at_end = runs[runs["readout"]].set_index("metric")["value"]
    assert row["rho"] == at_end["rho"]
    for metric in ("rho", "jacobian_alignment", "delta_e", "scale_ratio"):
        assert row[f"start_{metric}"] == at_start[metric]


def test_gate_names_the_runs_over_it_and_only_those(results: pd.DataFrame) -> None:
    figure, data = gate.gate(study(results, "dimension"))
    axes = figure.axes[0]
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    named = {labels[round(note.xy[1])] for note in axes.texts if note.get_text().startswith("not converged")}
    over = data.loc[data["value"] > gate.GATE, "point"]
    assert named == {
        "data=digits-8x8, start=random-head, sigma_max=8",
        "data=digits-8x8, start=random-head, sigma_max=80",
    }
    assert named == set(over)
    assert {round(x, 12) for x, _ in drawn_points(axes)} >= {round(value, 12) for value in data["value"]}


def test_gate_counts_the_seeds_over_it(results: pd.DataFrame) -> None:
    one = study(results, "dimension").copy()
    one = one[one["point"] == one["point"].iloc[0]]
    one.loc[(one["seed"] == 1) & one["readout"], "converged"] = False
    figure, _ = gate.gate(one)
    assert [note.get_text() for note in figure.axes[0].texts] == ["not converged: 1 of 3 seeds"]


def test_grid_shows_each_noise_left_as_teacher_and_right_as_student(
    gallery: pd.DataFrame, results: pd.DataFrame
) -> None:
    digits = gallery[gallery["family"] == "digits"]
    figure, data = grids.paired_grid(digits, results)
    assert [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes] == [
        "teacher", "edm-default", "random-head", "kd-rotated",
    ]  # fmt: skip
    point = digits.loc[digits["init"] == "kd-rotated", "point"].iloc[0]
    images = {
        (round(i.get_extent()[0] > 0.5), int(i.get_extent()[3] / 1.06)): i.get_array() for i in figure.axes[3].images
    }
    for role, column in (("teacher", 0), ("student", 1)):
        rows = digits[(digits["point"] == point) & (digits["role"] == role)].set_index("row")["x"]
        pixels = data[(data["point"] == point) & (data["role"] == role)].set_index("row").filter(regex=r"^x\d+$")
        for i in range(8):
            np.testing.assert_array_equal(np.asarray(images[column, i]).ravel(), rows[i])
            np.testing.assert_array_equal(pixels.loc[i], rows[i])


def test_a_grid_of_colours_shows_every_channel_of_every_pixel() -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (4, 2, 2, 3))
    images[0], images[1], images[2, 0, 0] = -2, 2, (1, 0, -1)  # far beyond the percentiles, and one known pixel
    figure, data = grids.grid_of_pairs(images.reshape(4, 12), -images.reshape(4, 12), "mine", "own", images=True)
    shown = [np.asarray(image.get_array()) for image in figure.axes[0].images]
    assert len(shown) == 8 and {array.shape for array in shown} == {(2, 2, 3)}
    assert (shown[0] == 0).all() and (shown[1] == 1).all()  # the teacher's first, and below it the second
    low, high = np.percentile(images, (1, 99))
    np.testing.assert_allclose(shown[2][0, 0], (np.array([1, 0, -1]) - low) / (high - low))
    np.testing.assert_array_equal(data.loc[2, ["x0", "x1", "x2"]].astype(float), [1, 0, -1])


def test_grid_states_the_rho_of_its_own_seed(gallery: pd.DataFrame, results: pd.DataFrame) -> None:
    figure, _ = grids.paired_grid(gallery[gallery["family"] == "digits"], results)
    readout = tables.at_readout(study(results, "start"), "rho")
    mine = readout[(readout["data"] == "digits-4x4") & (readout["seed"] == 0)].set_index("init")["value"]
    for axes in figure.axes:
        start, rho = axes.get_title(loc="left").split("\n")
        assert rho == f"ρ = {mine[start]:.2f}"


def test_cloud_of_a_copy_has_the_teachers_colours_in_the_teachers_places(gallery: pd.DataFrame) -> None:
    ring = gallery[(gallery["family"] == "ring") & (gallery["init"] == "teacher")].copy()
    teacher = ring[ring["role"] == "teacher"].set_index("row")["x"]
    ring["x"] = ring["row"].map(teacher)
    figure, data = grids.paired_grid(ring)
    left, right = (axes.collections[0] for axes in figure.axes[:2])
    np.testing.assert_array_equal(left.get_offsets(), right.get_offsets())
    np.testing.assert_array_equal(left.get_facecolors(), right.get_facecolors())
    assert len(np.unique(left.get_facecolors(), axis=0)) > 8
    np.testing.assert_array_equal(data.loc[data["role"] == "teacher", ["x0", "x1"]], np.stack(teacher.tolist()))


def test_other_data_are_projected_on_the_teachers_leading_plane() -> None:
    noise = np.random.default_rng(1)
    basis = np.linalg.qr(noise.standard_normal((5, 5)))[0]
    inner = noise.standard_normal((50, 5)) * [3, 2, 0.01, 0.01, 0.01]
    teacher = inner @ basis.T
    keys = {
        "point": "p",
        "study": "s",
        "data": "mixture-5",
        "d": 5,
        "init": "teacher",
        "recipe": "dmd2",
        "sigma_max": 80.0,
        "seed": 0,
    }
    rows = [
        keys | {"row": i, "role": role, "x": list(x)} for role in ("teacher", "student") for i, x in enumerate(teacher)
    ]
    _, data = grids.paired_grid(tables.with_family(pd.DataFrame(rows)))
    flat = data.loc[data["role"] == "teacher", ["x0", "x1"]].to_numpy()
    centred = inner - inner.mean(axis=0)
    # A projection on the leading plane keeps nearly all of every distance to the centre.
    np.testing.assert_allclose(np.linalg.norm(flat, axis=1), np.linalg.norm(centred[:, :2], axis=1), atol=0.03)


@pytest.mark.parametrize("seeds", [1, 3])
def test_over_seeds_prefers_aggregates_and_stands_in_for_missing_ones(seeds: int) -> None:
    results = planted.results(seeds)
    means = tables.over_seeds(results)
    assert len(means) == len(means.drop_duplicates(["study", "point", "generator_step", "metric"]))
    assert set(means["seed"]) == {-1}
    assert means["low"].notna().all() == (seeds > 1)
    plain = tables.over_seeds(results[results["seed"] != -1])
    keys = ["study", "point", "generator_step", "metric"]
    both = means.merge(plain, on=keys, suffixes=("", "_plain"))
    np.testing.assert_allclose(both["value"], both["value_plain"])
    assert (both["converged"] == both["converged_plain"]).all()


def test_series_name_what_varies_and_nothing_else(results: pd.DataFrame) -> None:
    rows = study(results, "dimension")
    assert set(tables.series_of(rows, "recipe", "sigma_max")) == {
        "teacher, σ_max = 8", "teacher, σ_max = 80", "random-head, σ_max = 8", "random-head, σ_max = 80",
    }  # fmt: skip
    assert set(tables.series_of(rows, "recipe", apart=["sigma_max"])) == {"teacher", "random-head"}
    lr = pd.concat([rows.assign(point=rows["point"] + f", lr={rate}") for rate in ("1e-4", "2e-5")], ignore_index=True)
    assert "teacher, σ_max = 8, lr=2e-5" in set(tables.series_of(lr, "sigma_max"))


def test_parts_leave_out_what_does_not_vary(results: pd.DataFrame) -> None:
    assert [name for name, _ in tables.parts(results, ["study", "family"], varies="d")] == ["dimension-digits"]
    assert [name for name, _ in tables.parts(results, ["study"])] == ["dimension", "start"]


def test_a_table_without_a_column_is_refused_by_name(tmp_path) -> None:
    path = tmp_path / "results.parquet"
    path.write_bytes(encode_table(planted.results(1, smoke=True).drop(columns="readout")))
    with pytest.raises(UserError, match=r"results\.parquet: column 'readout' is missing"):
        tables.read_results(path)
    with pytest.raises(UserError, match="no such table"):
        tables.read_results(tmp_path / "none.parquet")
    with pytest.raises(UserError, match="must end in"):
        tables.read_results(tmp_path / "results.xlsx")


def test_an_empty_table_is_no_error(tmp_path) -> None:
    path = tmp_path / "gallery.parquet"
    path.write_bytes(encode_table(planted.gallery()[:0]))
    assert list(tables.parts(tables.read_gallery(path), ["study", "data"])) == []


def test_saved_figures_are_the_same_bytes_and_the_csv_the_same_numbers(tmp_path, results: pd.DataFrame) -> None:
    written = []
    for folder in ("a", "b/c"):
        figure, data = gate.gate(study(results, "start"))
        paths = style.save_figure(figure, tmp_path / folder, "gate", data, {"Title": "Gate"})
        written.append([path.read_bytes() for path in paths])
        pd.testing.assert_frame_equal(pd.read_csv(paths[2]), data, check_dtype=False)
    assert written[0] == written[1]
    png, pdf, _ = written[0]
    assert png.startswith(b"\x89PNG")
    assert not re.search(rb"CreationDate|ModDate|atplotlib", pdf)


def test_the_style_ignores_the_users_settings(tmp_path, results: pd.DataFrame) -> None:
    import matplotlib

    def drawing() -> bytes:
        figure, data = gate.gate(study(results, "start"))
        return style.save_figure(figure, tmp_path, "gate", data)[0].read_bytes()

    plain = drawing()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 40}):
        assert drawing() == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_verdict_table_keeps_order_words_and_numbers_and_escapes_text() -> None:
    html = verdicts.verdict_table(planted.verdicts(), planted.criteria())
    assert re.findall(r"<b>(C\d)", html) == ["C1", "C2", "C4"]
    assert re.findall(r">(refuted|supported|inconclusive)<", html) == ["refuted", "supported", "inconclusive"]
    assert "copies &lt; &amp; &gt; &quot;quotes&quot;" in html
    assert "0.05 [−0.01, 0.11]" in html
    assert "0.2 [−∞, 0.25]" in html
    assert "2 criteria" in html
    shown = [re.findall(r"<td[^>]*>([^<]*)</td>", row)[-5:] for row in re.findall(r"<tr>.*?</tr>", html)]
    assert ["5", "0.03", "−15", "0.0567", "3"] in shown and ["0", "–", "–", "–", "–"] in shown
    assert "nan" not in html.lower()
    assert html == verdicts.verdict_table(planted.verdicts(), planted.criteria())


def test_choices_are_shown_beside_the_declared_verdict() -> None:
    html = choices.choice_table(planted.sensitivity())
    rows = re.findall("<tr>(.*?)</tr>", html)
    shown = [[re.sub("<.*?>", "", cell) for cell in re.findall("<t[hd].*?</t[hd]>", row)] for row in rows]
    assert shown == [
        ["Claim", "Verdict", "gate", "recipe"],
        ["1.5", "2", "&lt;gan&gt;"],
        ["C1", "refuted", "inconclusive", "refuted", ""],
        ["C2", "supported", "supported", "supported", "refuted"],
    ]
    assert re.findall("<b>(.*?)</b>", html) == ["inconclusive", "refuted"]
    assert [row.count("outline:2px") for row in rows] == [0, 0, 1, 1]
    assert "No claim was tested" in choices.choice_table(planted.sensitivity().iloc[:0])


def test_verdict_table_stands_without_criteria() -> None:
    assert "<details" not in verdicts.verdict_table(planted.verdicts())


def test_the_nearest_map_is_named_with_the_seeds_that_agree(results: pd.DataFrame) -> None:
    rows = study(results, "start")
    rows = rows[rows["point"].str.startswith("data=ring, start=kd-rotated")].assign(converged=rows["seed"] != 1)
    assert mechanism.nearest_map(rows) == "nearest: the rotated teacher T∘Q (2 of 2)"
    # Far nearer to T in one seed: the mean decides, and the other seed says otherwise.
    rows.loc[(rows["metric"] == "rho") & (rows["seed"] == 0), "value"] = -9.0
    assert mechanism.nearest_map(rows) == "nearest: the teacher T (1 of 2)"
    assert mechanism.nearest_map(rows.assign(converged=False)) == "no seed has converged"


def test_a_map_that_is_not_available_is_left_out(results: pd.DataFrame) -> None:
    rows = study(results, "dimension").copy()
    rows.loc[(rows["d"] == 64) & (rows["metric"] == "rho_flow"), ["value", "low", "high"]] = np.nan
    figure, data = mechanism.maps_over_time(rows)
    curves_drawn = [line for axes in figure.axes for line in axes.get_lines() if line.get_color() == style.GREEN]
    flows = [line for line in curves_drawn if line.get_linestyle() == "-" and len(line.get_xdata())]
    assert len(flows) == data.loc[data["d"] < 64, "point"].nunique()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert sum("nearest: " in title or "no seed" in title for title in titles) == data["point"].nunique()


def of_cost() -> pd.DataFrame:
    """Three students of one start, one of a smaller network, and one whose teacher has no network."""
    rows = []
    for point, network, price, distance, converged in (
        ("1 step", "mlp-64x3", 1.0, 1.8, True),
        ("2 steps", "mlp-64x3", 2.0, 1.4, True),
        ("4 steps", "mlp-64x3", 4.0, 1.1, True),
        ("small", "mlp-16x3", 0.125, 3.0, False),
        ("linear", "linear", np.nan, 1.0, True),
    ):
        values = {"inference_cost": price, "gate_ratio": distance, "rho": 0.3, "rho_resampled": 0.1 * distance}
        values |= {"rho_resampling": 0.5 * (price > 1), "novelty_teacher": 0.9, "novelty_data": 0.8}
        keys = {"study": "few_step", "point": f"student={point}", "data": "digits-4x4", "d": 16, "network": network}
        keys |= {"init": "teacher", "recipe": "dmd2", "sigma_max": 80.0, "generator_step": 100, "readout": True}
        for seed in (-1, 0):
            ends = {"seed": seed, "n_seeds": 1, "low": np.nan, "high": np.nan, "converged": converged}
            rows += [keys | ends | {"metric": metric, "value": value} for metric, value in values.items()]
    return pd.DataFrame(rows)


def test_cost_joins_the_steps_of_one_network_and_marks_what_is_not_converged() -> None:
    results = of_cost()
    figure, data = cost.copying_against_cost(results)
    figure.draw_without_rendering()
    assert set(data["point"]) == set(results["point"]) - {"student=linear"}
    joined = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "-" and len(line.get_xdata()) > 2]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in joined] == [([1, 2, 4], [1.8, 1.4, 1.1])]
    assert faces(figure.axes[0]) == {1.8: True, 1.4: True, 1.1: True, 3.0: False}
    assert sorted(faces(figure.axes[3])) == pytest.approx([0.11, 0.14, 0.18, 0.3])
    assert style.NOT_CONVERGED in [text.get_text() for text in figure.legends[0].get_texts()]


def test_only_studies_whose_students_differ_in_cost_have_its_figure() -> None:
    results = of_cost()
    (figure,) = (figure for figure in pages.FIGURES if figure.draw is cost.copying_against_cost)
    assert pages.is_shown(figure, results)
    assert not pages.is_shown(figure, results[results["point"] == "student=1 step"])
    assert not pages.is_shown(figure, results[results["metric"] != "novelty_data"])
