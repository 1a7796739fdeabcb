"""Canonical JSON and digests: equal specs, and only those, have equal ones."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmdpipe.artifacts.stages import STAGES
from dmdpipe.specs.base import canonical_json, digest
from dmdpipe.specs.data import FAMILIES, Digits, Gaussian, dimension
from dmdpipe.specs.diffusion import ExactScore, NoiseBankSpec, NoiseRange, TeacherSamplesSpec, TeacherSpec, TrainedScore
from dmdpipe.specs.network import Linear
from dmdpipe.specs.pairs import MetricsSpec, PairsSpec
from dmdpipe.specs.student import Init, Optimiser, Recipe, StudentSpec

ROOT = Path(__file__).parents[2]

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def turned(value: Any) -> Any:
    """The same value with the keys of every mapping in the opposite order."""
    if isinstance(value, dict):
        return {key: turned(value[key]) for key in reversed(value)}
    return [turned(item) for item in value] if isinstance(value, list) else value


@given(plain)
@settings(deadline=None)
def test_the_order_of_keys_does_not_count_and_nothing_is_lost(value: Any) -> None:
    text = canonical_json(value)
    assert canonical_json(turned(value)) == text
    assert json.loads(text) == value
    assert text.isascii()
    assert digest(turned(value)) == digest(value)


@given(plain, plain)
@settings(deadline=None)
def test_different_values_have_different_texts(a: Any, b: Any) -> None:
    # JSON text tells 1, 1.0 and true apart, which Python's == does not.
    assert (canonical_json(a) == canonical_json(b)) == (repr(_sorted(a)) == repr(_sorted(b)))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def test_a_digest_is_the_start_of_the_sha256_of_the_canonical_text() -> None:
    text = '{"rho":7.0,"sigma_max":80.0,"sigma_min":0.002}'
    assert canonical_json(NoiseRange()) == text
    assert digest(NoiseRange()) == hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_json_lacks_has_no_canonical_text(number: float) -> None:
    with pytest.raises(ValueError):
        canonical_json({"a": [number]})


@pytest.mark.parametrize("written", [80, 80.0, 8e1, "80"])
def test_a_number_counts_by_its_value_not_by_how_it_was_written(written: Any) -> None:
    assert digest(NoiseRange(sigma_max=written)) == digest(NoiseRange(sigma_max=80.0))


@given(st.floats(1e-300, 1e300))
@settings(deadline=None)
def test_every_bit_of_a_float_counts(number: float) -> None:
    spec = Optimiser(learning_rate=number)
    assert Optimiser.model_validate_json(canonical_json(spec)) == spec
    following = number * (1 + 2**-52)
    assert (digest(Optimiser(learning_rate=following)) == digest(spec)) == (following == number)


def test_equal_specs_have_equal_digests_also_at_minus_zero() -> None:
    plus, minus = Optimiser(weight_decay=0.0), Optimiser(weight_decay=-0.0)
    assert plus == minus
    assert digest(plus) == digest(minus)


def teachers() -> st.SearchStrategy[TeacherSpec]:
    return st.builds(
        TeacherSpec,
        data=st.builds(Digits, side=st.sampled_from([1, 2, 4, 8]), n_train=st.integers(1, 9)),
        score=st.builds(TrainedScore, steps=st.integers(1, 3), seed=st.integers(0, 2)),
    )


def students() -> st.SearchStrategy[StudentSpec]:
    return st.builds(
        StudentSpec,
        teacher=teachers(),
        init=st.builds(Init, kind=st.sampled_from(["teacher", "rotated", "random-head"])),
        recipe=st.sampled_from([Recipe(name=name) for name in ("dmd2", "gan", "regression")]),
        generator_steps=st.integers(1, 3),
        seed=st.integers(0, 2),
    )


@given(students(), students())
@settings(deadline=None)
def test_specs_are_equal_when_and_only_when_their_digests_are(a: StudentSpec, b: StudentSpec) -> None:
    assert (digest(a) == digest(b)) == (a == b)
    assert digest(a.model_copy(deep=True)) == digest(a)


def metrics_of(student: StudentSpec) -> MetricsSpec:
    samples = TeacherSamplesSpec(
        teacher=student.teacher,
        bank=NoiseBankSpec(dim=dimension(student.teacher.data)),
        noise_range=student.noise_range,
    )
    return MetricsSpec(pairs=PairsSpec(student=student, teacher_samples=samples))


LINEAR = StudentSpec(
    teacher=TeacherSpec(data=Gaussian(dim=4), score=ExactScore()), network=Linear(), recipe=Recipe(fake="oracle")
)


@given(students() | st.just(LINEAR))
@settings(deadline=None)
def test_a_spec_read_back_from_its_json_is_the_same(student: StudentSpec) -> None:
    spec = metrics_of(student)
    assert STAGES["metrics"].parse(json.loads(canonical_json(spec))) == spec


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_data_read_back_from_their_json_are_the_same(family: str) -> None:
    assert STAGES["data"].parse(FAMILIES[family]().model_dump(mode="json")) == FAMILIES[family]()


def test_no_spec_can_be_changed_or_extended() -> None:
    with pytest.raises(ValueError, match="frozen"):
        NoiseRange().rho = 3.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="[Ee]xtra"):
        NoiseRange(rhoo=3.0)  # type: ignore[call-arg]


def test_all_folders_of_a_run_are_the_same_in_every_process() -> None:
    program = "from dmdpipe.artifacts.dag import plan_run; print(*plan_run({'scale': 'smoke'}).steps, sep='\\n')"
    listings = []
    for hash_seed in ("0", "17"):
        variables = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        listings.append(done.stdout)
    assert listings[0] == listings[1]
    assert len(listings[0].split()) > 50
