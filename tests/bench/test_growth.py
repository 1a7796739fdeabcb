"""The growth of cost: exponents of known laws, and axes that say what grows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmdpipe.bench.growth import AXES, Axis, measure, measured_exponent, summary
from dmdpipe.copying.pairing_metrics import ASSIGNMENT_LIMIT

VALUES = (4, 16, 64, 256, 1024, 4096)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_a_power_law_has_its_exponent(exponent: float) -> None:
    assert measured_exponent(VALUES, [7e-6 * value**exponent for value in VALUES]) == pytest.approx(exponent)


def test_a_constant_cost_beside_it_is_left_behind() -> None:
    """One job costs something before it computes: the small values show that, the large ones the algorithm."""
    seconds = [1e-3 + 1e-5 * value**2 for value in VALUES]
    assert measured_exponent(VALUES, seconds) == pytest.approx(2, abs=1e-3)
    overall, _ = np.polyfit(np.log(VALUES), np.log(seconds), 1)
    assert overall < 1.9


def test_one_value_has_no_exponent() -> None:
    with pytest.raises(ValueError, match="two values"):
        measured_exponent([3], [1.0])


def test_what_grows_faster_than_it_must_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    asked: list[int] = []

    def prepare(value: int) -> Callable[[], object]:
        return lambda: asked.append(value)

    # Seconds are planted: the square of the value, whatever the axis says of itself.
    monkeypatch.setattr("dmdpipe.bench.growth.timed", lambda work: (work(), next(clock), asked[-1] ** 2.0)[-1])
    axes = [Axis("n", "as it must", (1, 2, 4, 8), 2, prepare), Axis("n", "too fast", (1, 2, 4, 8), 1, prepare)]
    table = measure(axes, turns=2)
    assert table["seconds"].tolist() == [1, 4, 16, 64] * 2
    assert asked == [value for _ in axes for value in (1, 2, 4, 8) for _ in range(3)]
    told = summary(table).set_index("cost")
    assert told["exponent"].tolist() == pytest.approx([2, 2])
    assert told["as_it_must"].to_dict() == {"as it must": True, "too fast": False}
    assert told.loc["too fast", ["smallest", "largest", "seconds_largest"]].tolist() == [1, 8, 64]


def test_the_axes_cover_what_a_study_can_make_larger() -> None:
    names = {axis.name for axis in AXES}
    assert names == {"dimension d", "width", "batch", "generator steps", "members", "samples N", "pairs N"}
    (dimension,) = [axis for axis in AXES if axis.name == "dimension d"]
    assert (dimension.values[0], dimension.values[-1]) == (4, 4096)
    assert all(list(axis.values) == sorted(axis.values) and len(axis.values) >= 5 for axis in AXES)
    assert {axis.cost: axis.exponent for axis in AXES if axis.name == "pairs N"} == {
        "paired statistics": 1,
        "pairwise statistics": 2,
        "assignment": 3,
    }


def test_what_is_matched_grows_up_to_the_limit_of_the_metrics() -> None:
    (matched,) = [axis for axis in AXES if axis.cost == "assignment"]
    assert matched.values[-1] == ASSIGNMENT_LIMIT


def test_the_command_draws_the_figure(tmp_path: Path, dmdpipe: Callable[..., Any]) -> None:
    outcome = dmdpipe("bench", "growth", "--values", "2", "--turns", "1", "--output", str(tmp_path), "--format", "csv")
    assert outcome.status == 0, outcome.err
    assert len(outcome.out.splitlines()) == 1 + len(AXES)
    assert {path.name for path in tmp_path.iterdir()} >= {"growth.png", "growth.pdf", "growth.csv"}
