"""What a planned step has on disk: nothing, something damaged, or what it should have."""

from __future__ import annotations

from pathlib import Path

from dmdpipe.artifacts.plan import plan
from dmdpipe.artifacts.step import run_step
from dmdpipe.audit.accepted import read_acceptances
from dmdpipe.audit.status import State, Status, assess
from dmdpipe.specs.diffusion import NoiseBankSpec

STEP = plan("noise", NoiseBankSpec(dim=2, n_paired=4, n_held_out=4, n_reference_sets=2))


def status(results: Path) -> Status:
    return assess([STEP], results, read_acceptances(results))[STEP.folder]


def test_a_step_is_absent_damaged_or_current(tmp_path: Path) -> None:
    assert status(tmp_path).state is State.absent and status(tmp_path).reasons == ("has not been made",)
    folder = run_step(STEP.canonical(), tmp_path)
    assert status(tmp_path).state is State.current and status(tmp_path).reasons == ()
    manifest = folder / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-9])
    found = status(tmp_path)
    assert found.state is State.damaged and "manifest.json" in found.reasons[0]
    manifest.write_bytes(whole)
    (folder / "noise.safetensors").unlink()
    assert status(tmp_path).state is State.damaged
