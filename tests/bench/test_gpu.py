"""The benchmark of a GPU, as far as a CPU can run it: it counts rightly, and times no wrong students."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from typing import Any

import pandas as pd
import pytest
import torch

from dmdpipe.bench import gpu
from dmdpipe.distill.ensemble import Ensemble
from dmdpipe.distill.member_noise import DrawnOnCPU
from dmdpipe.errors import UserError

SIZES = {"--members": 2, "--width": 8, "--dim": 2, "--batch": 4, "--steps": 2, "--turns": 1}
TOY = ("--device", "cpu", *(str(word) for pair in SIZES.items() for word in pair))


def failed() -> list[str]:
    return [check.name for check in gpu.checks("cpu") if not check.passed]


def test_students_of_a_cpu_pass() -> None:
    assert failed() == []


def test_a_student_that_is_another_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = gpu._weights
    calls: list[int] = []

    def off_after_three(snapshots: dict[str, torch.Tensor]) -> torch.Tensor:
        calls.append(1)
        return weights(snapshots) * (1 + 1e-4 * (len(calls) > 3))

    monkeypatch.setattr(gpu, "_weights", off_after_three)
    assert failed() == ["a student is that of the CPU"]


def test_other_noise_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def later_one(specs: Any, dim: int, device: torch.device) -> DrawnOnCPU:
        noise = DrawnOnCPU(specs, dim, device)
        noise.batches[1].streams["fake"].normal(1)
        return noise

    monkeypatch.setattr(gpu, "member_noise", later_one)
    assert failed() == ["noise is that of the CPU, byte for byte"]


def test_members_that_take_other_steps_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Ensemble._sizes
    monkeypatch.setattr(Ensemble, "_sizes", lambda self, step: sizes(self, step) * (1 + 1e-5))
    assert failed() == ["a member is what it is alone on the CPU"]


def test_a_member_that_its_neighbour_touches_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    train = Ensemble.train
    monkeypatch.setattr(
        Ensemble, "train", lambda self: (found := train(self)) + 1e-300 * found.isnan().any() + 1e-15 * found[1].sum()
    )
    assert failed() == ["beside one that is not a number the bytes are the same"]


def test_runs_that_differ_in_a_byte_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    train = Ensemble.train
    runs: list[int] = []

    def different(self: Ensemble) -> torch.Tensor:
        runs.append(1)
        return train(self) + (1e-12 if len(runs) == 2 else 0)

    monkeypatch.setattr(Ensemble, "train", different)
    assert failed() == ["a second run gives the same bytes"]


def test_a_rate_counts_a_multiplication_and_an_addition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "timed_on", lambda device, run: run() or 4.0)
    cpu = torch.device("cpu")
    assert gpu.product_rate((2, 3, 5), cpu, torch.float32) == 20 * 2 * (2 * 3 * 5) / 4
    assert gpu.product_rate((2, 3, 5), cpu, torch.float32, batched=True) == 20 * 2 * 2 * (3 * 5 * 5) / 4


def test_the_command_checks_then_prints_speeds(dmdpipe: Callable[..., Any]) -> None:
    outcome = dmdpipe("bench", "gpu", *TOY, "--precision", "full", "--precision", "bf16", "--format", "json")
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("ok     ") == 6 and "FAILED" not in outcome.err
    rows = pd.read_json(StringIO(outcome.out)).to_dict("records")
    found = [(row["precision"], row["way"], row["students"]) for row in rows]
    assert found == [(p, way, n) for p in ("full", "bf16") for way, n in (("loop", 1), ("together", 2))]
    for row in rows:
        assert row["students_a_second"] == pytest.approx(row["students"] / row["step_ms"] * 1e3 / 2000)
        assert row["share_of_products"] > 0 and row["share_of_peak"] > 0
        assert (row["noise_ms"] > 0) == (row["way"] == "together")
    assert [row["times_the_loop"] for row in rows if row["way"] == "loop"] == [1, 1]


def test_wrong_students_are_not_timed(dmdpipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ROUNDING", -1.0)
    outcome = dmdpipe("bench", "gpu", *TOY)
    assert outcome.status == 2 and outcome.out == ""
    assert "FAILED a member is what it is alone" in outcome.err and "are not timed" in outcome.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--device", "cuda"), "no GPU here"),
        (("--device", "cpu", "--precision", "tf32"), "tf32"),
        (("--device", "cpu", "--precision", "fp8"), "fp8"),
        (("--device", "gpu"), "unknown value 'gpu'"),
    ],
)
def test_what_cannot_be_timed_is_one_line(
    dmdpipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = dmdpipe("bench", "gpu", *words)
    assert outcome.status == 2 and outcome.err.count("\n") == 1 and says in outcome.err


def test_a_students_hardware_is_checked() -> None:
    from dmdpipe.bench.training import student_spec

    spec = student_spec(8, 2, 4, 2)
    assert gpu.trained_on(spec, precision="bf16").precision == "bf16"
    with pytest.raises(UserError, match="float64"):
        gpu.trained_on(spec, precision="bf16", dtype="float64")
