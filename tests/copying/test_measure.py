"""The table of metrics: complete, joined at every snapshot, and wrong where a fault is planted."""

from types import SimpleNamespace

import numpy as np
import pytest

from dmdpipe.copying.measure import CONSTANT_METRICS, SNAPSHOT_METRICS, SPECIAL_METRICS, measure, measure_copying
from dmdpipe.copying.pairing_metrics import matching_costs, pairing_inefficiency, relative_pair_error
from dmdpipe.errors import UserError
from dmdpipe.specs.data import Gaussian

N, D, M = 200, 4, 400
WEIGHT = np.array([[1.0, 0.4, 0, 0], [0.4, 1.0, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 0.3]])
MODES = np.array([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def teacher_map(z):
    """A mildly curved map: the best affine map is near it, not at it."""
    return (z @ WEIGHT + 0.3 * np.sign(z[..., :1])).astype(np.float32)


def arrays():
    """A start, a diverged snapshot, an independent sampler, and a copy."""
    z, fresh, held_out = draw(N, D), draw(N, D, seed=1), draw(M, D, seed=2)
    t = teacher_map(z)
    student = np.stack([0.1 * z, np.full_like(z, np.nan), teacher_map(fresh), t + np.float32(1e-3)])
    return {
        "z": z,
        "teacher": t,
        "student": student,
        "generator_step": np.array([0, 10, 100, 1_000]),
        "teacher_doubled": t + 1e-4 * draw(N, D, seed=3),
        "teacher_rotated": teacher_map(z[:, ::-1]),
        "teacher_held_out": teacher_map(held_out),
        "reference": teacher_map(draw(3, N, D, seed=4)),
        "noise_held_out": held_out,
        "data_held_out": teacher_map(draw(300, D, seed=5)),
        "training": teacher_map(draw(400, D, seed=6)),
        "modes": MODES,
    }


def wide(table):
    return table.pivot(index="generator_step", columns="metric", values="value")


@pytest.fixture(scope="module")
def readings():
    return wide(measure(**arrays()))


def test_the_table_is_tidy_and_complete():
    table = measure(**arrays())
    assert list(table.columns) == ["generator_step", "metric", "value"]
    assert (table["generator_step"].dtype, table["value"].dtype) == (np.int64, np.float64)
    special = {name for name, known in SPECIAL_METRICS.items() if known == "modes"}
    names = {*SNAPSHOT_METRICS, *CONSTANT_METRICS, *special}
    assert set(table["metric"]) == names
    assert len(table) == 4 * len(names)
    assert not table.duplicated(["generator_step", "metric"]).any()


def test_mode_agreement_needs_known_modes():
    table = measure(**(arrays() | {"modes": None}))
    assert "mode_agreement" not in set(table["metric"])


def test_a_copy_and_an_independent_sampler_are_told_apart(readings):
    copy, independent = readings.loc[1_000], readings.loc[100]
    assert copy["rho"] < 1e-4
    assert copy["delta_e"] == pytest.approx(0, abs=1e-9)
    assert (copy["retrieval_at_1"], copy["mode_agreement"]) == (1, 1)
    assert copy[["cosine", "cosine_whitened", "scale_ratio", "jacobian_alignment"]].tolist() == pytest.approx(
        [1, 1, 1, 1], abs=1e-3
    )
    assert copy["linear_excess"] < 0
    for metric in ("rho", "rho_rotated", "rho_shuffled", "delta_e"):
        assert independent[metric] == pytest.approx(1, abs=0.2)
    assert abs(independent["mode_agreement"]) < 0.2
    assert copy["rho_shuffled"] == pytest.approx(1, abs=0.2)
    assert copy["converged"] == independent["converged"] == 1
    assert copy["gate_ratio"] < 1.5


def test_the_start_is_measured_against_itself_and_held_back_by_the_gate(readings):
    start = readings.loc[0]
    assert start["rho_initial"] == 0
    assert start["converged"] == 0
    assert start["gate_ratio"] > 2
    assert start["scale_ratio"] < 0.2
    assert start["jacobian_alignment"] > 0.7


def test_a_diverged_snapshot_is_visible_and_not_converged(readings):
    diverged = readings.loc[10]
    assert diverged["gate_ratio"] == np.inf
    assert diverged["converged"] == 0
    rest = {*SNAPSHOT_METRICS, "mode_agreement", "rho_within_mode"} - {"gate_ratio", "converged"}
    assert diverged[sorted(rest)].isna().all()
    assert diverged[list(CONSTANT_METRICS)].notna().all()


def test_a_diverged_start_leaves_the_rest_measured():
    given = arrays()
    given["student"] = given["student"][1:]
    given["generator_step"] = np.array([0, 100, 1_000])
    readings = wide(measure(**given))
    assert readings["rho_initial"].isna().all()
    assert readings["rho"].notna().tolist() == [False, True, True]


def test_a_teacher_that_repeats_its_training_data_is_told_from_one_that_does_not(readings):
    fresh = readings.iloc[0]
    assert fresh["nearest_ratio"] == pytest.approx(fresh["nearest_ratio_held_out"], abs=0.05)
    assert fresh["memorized"] == pytest.approx(fresh["memorized_held_out"], abs=0.05)
    given = arrays()
    repeating = wide(measure(**(given | {"training": given["teacher"] + 1e-5}))).iloc[0]
    assert (repeating["memorized"], repeating["nearest_ratio"]) == (1, pytest.approx(0, abs=0.01))
    assert repeating["memorized_held_out"] == pytest.approx(fresh["memorized_held_out"], abs=0.1)


def test_novelty_is_one_for_fresh_samples_and_less_for_repeated_ones(readings):
    for fresh in (100, 1_000):
        assert readings.loc[fresh, ["novelty_teacher", "novelty_data"]].tolist() == pytest.approx([1, 1], abs=0.15)
    assert readings.loc[1_000, "rho_resampled"] == readings.loc[1_000, "rho"]
    assert readings["rho_resampling"].eq(0).all() and readings["inference_cost"].eq(1).all()
    for name, points in (("teacher", "reference"), ("data", "training")):
        given = arrays()
        given["student"][-1] = given[points].reshape(-1, D)[:N]
        repeated = wide(measure(**given)).loc[1_000]
        assert repeated[f"novelty_{name}"] == pytest.approx(0, abs=1e-6)


def test_constants_repeat_at_every_generator_step(readings):
    for name in CONSTANT_METRICS:
        assert readings[name].nunique(dropna=False) == 1
    constants = readings.iloc[0]
    assert 0 < constants["rho_floor"] < 1e-6
    assert 0 < constants["rho_affine"] < 0.2
    assert 0.5 < constants["delta_e_null"] <= 1.1
    assert constants["retrieval_null"] < 0.1
    assert constants["assignment_pairs"] == len(arrays()["teacher"])


def test_a_capped_assignment_says_over_how_many_pairs_it_went(monkeypatch):
    from dmdpipe.copying import measure as module
    from dmdpipe.copying import pairing_metrics

    for where in (module, pairing_metrics):
        monkeypatch.setattr(where, "ASSIGNMENT_LIMIT", 50)
    given = arrays()
    readings = wide(measure(**given))
    assert set(readings["assignment_pairs"]) == {50}
    first = matching_costs(given["student"][-1][:50], given["teacher"][:50])
    assert readings["delta_e"].iloc[-1] == pairing_inefficiency(first)


def test_derived_columns_are_what_their_names_say(readings):
    finite = readings.drop(index=10)
    given = arrays()
    for row, (_, reading) in zip((0, 2, 3), finite.iterrows(), strict=True):
        assert reading["rho"] == relative_pair_error(given["student"][row], given["teacher"])
        assert reading["rho_rotated"] == relative_pair_error(given["student"][row], given["teacher_rotated"])
    for distance in ("sliced_w2", "energy"):
        assert np.allclose(finite[f"{distance}_over_floor"], finite[distance] / finite[f"{distance}_floor"])
    worse = finite[["sliced_w2_over_floor", "energy_over_floor"]].max(axis=1)
    assert np.allclose(finite["gate_ratio"], worse)
    assert np.allclose(finite["linear_excess"], finite["rho"] - finite["rho_affine"])
    assert np.allclose(finite["linear_excess_matched"], finite["rho"] - finite["rho_affine_matched"])


def test_a_shuffled_students_rows_cost_the_pairing_and_nothing_else(readings):
    given = arrays()
    given["student"] = np.random.default_rng(6).permutation(given["student"], axis=1)
    shuffled = wide(measure(**given)).loc[1_000]
    assert shuffled["rho"] == pytest.approx(1, abs=0.15)
    assert shuffled["delta_e"] == pytest.approx(1, abs=0.15)
    assert shuffled["retrieval_at_1"] < 0.1
    assert abs(shuffled["mode_agreement"]) < 0.2
    for metric in ("sliced_w2", "energy", "sliced_w2_data", "energy_data", "scale_ratio"):
        assert shuffled[metric] == pytest.approx(readings.loc[1_000, metric], rel=1e-4)


def test_the_shuffled_null_of_independent_seeds_reads_one_within_its_interval():
    # The same teacher and noise for all seeds, as in a study with an exact teacher: only the shuffle is left to differ.
    given = arrays()
    given["student"], given["generator_step"] = given["student"][-1:], given["generator_step"][-1:]
    nulls = np.array(
        [wide(measure(**given, projections=2, seed=seed)).loc[1_000, "rho_shuffled"] for seed in range(30)]
    )
    assert len(set(nulls)) == len(nulls)
    assert abs(nulls.mean() - 1) < 3 * nulls.std(ddof=1) / np.sqrt(len(nulls))


def test_input_is_left_alone_and_readings_repeat():
    given, pristine = arrays(), arrays()
    first, second = measure(**given), measure(**given)
    assert first.equals(second)
    assert all(np.array_equal(given[name], pristine[name], equal_nan=True) for name in given)


def test_progress_is_told_after_every_snapshot():
    told = []
    measure(**arrays(), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("teacher", lambda a: a[:, 0], r"pairs.safetensors, 'teacher' has shape \(200,\)"),
        ("student", lambda a: a[:, :-1], r"'student' has shape \(4, 199, 4\), not \(K=4, N=200, d=4\)"),
        ("generator_step", lambda a: a[:-1], r"'generator_step' has shape \(3,\)"),
        ("teacher_doubled", lambda a: a[:-1], "'teacher_doubled' has shape"),
        ("noise_held_out", lambda a: a[:-1], "noise.safetensors, 'held_out' has shape"),
        ("reference", lambda a: a[:1], "needs two; raise n_reference_sets"),
        ("reference", lambda a: a[:, :-1], "'reference' has shape"),
        ("modes", lambda a: a[:, :-1], "data.safetensors, 'modes' has shape"),
        ("data_held_out", lambda a: a[:0], "'held_out' has shape"),
        ("z", lambda a: np.where(a == a[3, 1], np.inf, a), "'z' holds values that are not finite"),
        ("teacher_held_out", lambda a: np.full_like(a, np.nan), "not finite"),
        ("teacher", np.zeros_like, "the teacher has collapsed"),
    ],
)
def test_bad_input_is_refused_in_one_line(name, fault, message):
    given = arrays()
    given[name] = fault(given[name])
    with pytest.raises(UserError, match=message) as refusal:
        measure(**given)
    assert "\n" not in str(refusal.value)


def test_too_few_held_out_pairs_are_refused():
    given = arrays()
    for name in ("noise_held_out", "teacher_held_out"):
        given[name] = given[name][: 2 * D - 1]
    with pytest.raises(UserError, match="raise n_held_out to 8 or more"):
        measure(**given)


class FakeStep:
    """What a step's function sees, in memory."""

    def __init__(self):
        given = arrays()
        network = SimpleNamespace(kind="mlp", width=8, depth=1, embedding=4, classes=0)
        score = SimpleNamespace(kind="trained", network=network)
        teacher = SimpleNamespace(score=score, data=Gaussian(dim=D))
        student = SimpleNamespace(seed=3, teacher=teacher, network=network, sampling_steps=1)
        pairs = SimpleNamespace(student=student)
        self.spec = SimpleNamespace(projections=16, whitened_variance=0.9, pairs=pairs)
        self.told = []
        self.tables = {}
        self.files = {
            ("pairs", "pairs.safetensors"): {
                name: given[name] for name in ("z", "teacher", "student", "generator_step")
            },
            ("teacher_samples", "samples.safetensors"): {
                "teacher": given["teacher"],
                "teacher_doubled": given["teacher_doubled"],
                "teacher_rotated": given["teacher_rotated"],
                "held_out": given["teacher_held_out"],
                "reference": given["reference"],
            },
            ("noise", "noise.safetensors"): {"paired": given["z"], "held_out": given["noise_held_out"]},
            ("data", "data.safetensors"): {
                "held_out": given["data_held_out"],
                "train": given["training"],
                "modes": given["modes"],
            },
        }

    def read_tensors(self, role, name):
        return self.files[role, name]

    def write_table(self, name, table):
        self.tables[name] = table

    def progress(self, done, total):
        self.told.append((done, total))


def test_of_images_the_distinct_ones_are_the_training_points():
    """Rows show one image under many noises, so a teacher that repeats it is as near to the second as to the first."""
    step = FakeStep()
    data = step.files["data", "data.safetensors"]
    data["images"] = step.files["pairs", "pairs.safetensors"]["teacher"][:100]
    data["train"] = np.repeat(data["images"], 3, axis=0) + 1e-3 * draw(300, D, seed=8)
    measure_copying(step)
    memorized = wide(step.tables["metrics.parquet"]).iloc[0]["memorized"]
    assert memorized >= 0.5
    del data["images"]
    measure_copying(step)
    assert wide(step.tables["metrics.parquet"]).iloc[0]["memorized"] < memorized - 0.2


def test_the_step_writes_what_measure_returns():
    step = FakeStep()
    measure_copying(step)
    expected = measure(**arrays(), projections=16, whitened_variance=0.9, seed=3)
    assert list(step.tables) == ["metrics.parquet"]
    assert step.tables["metrics.parquet"].equals(expected)
    assert step.told[-1] == (4, 4)


def test_of_several_steps_the_teacher_with_the_same_noise_is_read():
    step = FakeStep()
    pairs = step.files["pairs", "pairs.safetensors"]
    pairs["resampled"] = teacher_map(draw(N, D, seed=9))
    pairs["student"][-1] = pairs["resampled"]
    step.spec.pairs.student.sampling_steps = 3
    step.spec.pairs.student.network = SimpleNamespace(kind="mlp", width=16, depth=2, embedding=4, classes=0)
    measure_copying(step)
    found = wide(step.tables["metrics.parquet"]).loc[1_000]
    assert found["rho_resampled"] == pytest.approx(0, abs=1e-12)
    assert found["rho"] == found["rho_resampling"] == pytest.approx(1, abs=0.2)
    assert found["inference_cost"] == 3 * 16 * (2 * D + 2 * 16 + 4) / (8 * (2 * D + 8 + 4))


def test_the_step_needs_no_modes():
    step = FakeStep()
    del step.files["data", "data.safetensors"]["modes"]
    measure_copying(step)
    assert "mode_agreement" not in set(step.tables["metrics.parquet"]["metric"])


def test_the_step_refuses_pairs_of_another_bank_or_teacher():
    step = FakeStep()
    step.files["noise", "noise.safetensors"]["paired"] = draw(N, D, seed=9)
    with pytest.raises(UserError, match="'z' differs from noise: noise.safetensors, 'paired'"):
        measure_copying(step)
    step = FakeStep()
    pairs = step.files["pairs", "pairs.safetensors"]
    pairs["teacher"] = np.roll(pairs["teacher"], 1, axis=0)
    with pytest.raises(UserError, match="'teacher' differs from teacher_samples"):
        measure_copying(step)


def test_the_step_names_a_missing_tensor():
    step = FakeStep()
    del step.files["teacher_samples", "samples.safetensors"]["reference"]
    with pytest.raises(UserError, match="teacher_samples: samples.safetensors, 'reference' is missing"):
        measure_copying(step)
