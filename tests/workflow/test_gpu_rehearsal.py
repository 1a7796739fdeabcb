"""The short form of the rehearsal of the scale gpu, which is a script beside this file, and what it would notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rehearse_gpu import differences, image_studies, is_reduced, likeness

from dmdpipe.specs.pairs import MetricsSpec

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("rehearse_gpu.py")


def test_every_combination_of_the_image_studies_at_the_scale_gpu_runs_at_toy_size() -> None:
    command = [sys.executable, str(SCRIPT), "--short"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3_600, check=False)
    assert done.returncode == 0 and "AMISS" not in done.stdout, done.stdout + done.stderr
    assert "4 of 4 combinations of the scale gpu were rehearsed" in done.stdout


def test_another_precision_recipe_network_or_class_would_be_noticed() -> None:
    spec = next(member.spec for member in image_studies()["classes"] if "asked" in member.point)
    for path, value in {
        "pairs.student.precision": "full",
        "pairs.student.recipe.dm_weight": 0.5,
        "pairs.student.teacher.score.network.blocks": 1,
        "pairs.student.teacher.score.network.classes": 0,
        "pairs.student.init.kind": "random-head",
        "projections": 64,
    }.items():
        changed = with_value(spec, path, value)
        assert [at for at in differences(spec, changed) if not is_reduced(at)] == [path]
        assert likeness(changed) != likeness(spec)
    for key in ("pairs.student.device", "pairs.student.teacher.score.device", "pairs.student.generator_steps"):
        changed = with_value(spec, key, 7)
        assert all(is_reduced(at) for at in differences(spec, changed)) and likeness(changed) == likeness(spec)


def with_value(spec: MetricsSpec, path: str, value: object) -> MetricsSpec:
    """Return a spec with another value at a dotted path, unchecked."""
    first, _, rest = path.partition(".")
    return spec.model_copy(update={first: with_value(getattr(spec, first), rest, value) if rest else value})
