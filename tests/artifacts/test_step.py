"""Running steps: what is published, what is refused, and what a failure leaves."""

from __future__ import annotations

import json
import signal
import threading
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dmdpipe.artifacts.checkpoint import save_checkpoint
from dmdpipe.artifacts.manifest import read_manifest, verify_payload
from dmdpipe.artifacts.plan import PlannedStep, plan
from dmdpipe.artifacts.step import Step, open_step, run_step
from dmdpipe.artifacts.ticket import Ticket, void_tickets
from dmdpipe.errors import UserError
from dmdpipe.specs.data import Digits, Moons
from dmdpipe.specs.diffusion import TeacherSpec

DATA = plan("data", Moons(n_train=10))
TEACHER = plan("teacher", TeacherSpec(data=Moons(n_train=10)))
DATA_FILES = {"data.safetensors", "facts.json", "manifest.json", "run.json"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def make_data(step: Step) -> None:
    step.write_tensors("data.safetensors", {"train": np.arange(step.spec.n_train, dtype=np.float32)})
    step.write_json("facts.json", {"name": "moons", "dim": 2})


def make_teacher(step: Step) -> None:
    train = step.read_tensors("data", "data.safetensors")["train"]
    step.write_tensors("model.safetensors", {"mean": train.mean()})
    step.write_table("history.parquet", pd.DataFrame({"loss": train}))


MAKE = {"data": make_data, "teacher": make_teacher}


def make(planned: PlannedStep, results: Path, log: Path | None = None) -> Path:
    folder = results / planned.folder
    with open_step(planned.canonical(), manifest=folder / "manifest.json", log=log) as step:
        MAKE[planned.stage](step)
    return folder


def all_files(results: Path) -> set[str]:
    return {str(path.relative_to(results)) for path in results.rglob("*") if path.is_file()}


def test_a_step_publishes_its_payload_with_a_manifest_that_vouches_for_it(results: Path) -> None:
    data, teacher = make(DATA, results), make(TEACHER, results)
    assert {path.name for path in data.iterdir()} == DATA_FILES
    manifest = read_manifest(teacher / "manifest.json")
    assert verify_payload(teacher, manifest) == []
    assert manifest.result.spec == TEACHER.spec.model_dump(mode="json")
    assert manifest.result.digest == TEACHER.digest
    assert manifest.result.seeds == {"score.seed": 0}
    above = read_manifest(data / "manifest.json")
    assert manifest.result.parents["data"].folder == DATA.folder
    assert manifest.result.parents["data"].result_digest == above.result.result_digest
    assert manifest.provenance.parents == {"data": above.provenance.provenance_digest}
    assert manifest.provenance.code == TEACHER.code_digest
    assert manifest.provenance.modules == TEACHER.code.modules
    run = json.loads((teacher / "run.json").read_text())
    assert run["seconds"] >= 0 and run["resumed"] is False
    assert not [path for path in all_files(results) if path.startswith(".")]


def test_two_runs_write_the_same_bytes(results: Path, tmp_path: Path) -> None:
    for root in (results, tmp_path / "again"):
        make(DATA, root)
        make(TEACHER, root)
    deterministic = {path for path in all_files(results) if not path.endswith("run.json")}
    assert len(deterministic) == 6
    for path in deterministic:
        assert (results / path).read_bytes() == (tmp_path / "again" / path).read_bytes(), path


@pytest.mark.parametrize("before", [[], ["facts.json", "manifest.json", "stale.txt"]])
def test_publishing_replaces_the_folder_that_is_there(results: Path, before: list[str]) -> None:
    folder = results / DATA.folder
    folder.mkdir(parents=True)
    for name in before:
        (folder / name).write_text("old")
    make(DATA, results)
    assert {path.name for path in folder.iterdir()} == DATA_FILES
    read_manifest(folder / "manifest.json")


class MishapError(Exception):
    pass


def fail(planned: PlannedStep, results: Path, error: BaseException, log: Path | None = None) -> None:
    with open_step(planned.canonical(), manifest=results / planned.folder / "manifest.json", log=log) as step:
        MAKE[planned.stage](step)
        step.progress(1, 2)
        raise error


def test_an_error_leaves_the_old_results_and_a_traceback_in_the_log(results: Path, tmp_path: Path) -> None:
    make(DATA, results)
    before = all_files(results)
    with pytest.raises(MishapError):
        fail(DATA, results, MishapError("no luck"), log=tmp_path / "logs" / "data.log")
    assert all_files(results) == before
    assert "Traceback" in (tmp_path / "logs" / "data.log").read_text()
    assert not list((results / ".tmp").iterdir())


def test_a_user_error_is_one_line_and_status_1(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        fail(DATA, results, UserError("n_train is too small"), log=tmp_path / "data.log")
    assert ended.value.code == 1
    assert capsys.readouterr().err == ""
    assert (tmp_path / "data.log").read_text() == "n_train is too small\n"
    with pytest.raises(SystemExit):
        fail(DATA, results, UserError("n_train is too small"), log=None)
    assert capsys.readouterr().err == "dmdpipe: n_train is too small\n"
    assert all_files(results) == set()


def test_sigterm_cleans_up_and_keeps_the_checkpoint(results: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(SystemExit) as ended,
        open_step(DATA.canonical(), results / DATA.folder / "manifest.json") as step,
    ):
        make_data(step)
        save_checkpoint(step.resume, {"w": np.ones(2)}, {"step": 1})
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == handler
    (left,) = all_files(results)
    assert left.startswith(f".resume/{DATA.digest}-")


def test_checkpoints_are_found_again_only_on_the_same_parents_and_removed_at_the_end(results: Path) -> None:
    def resume_folder() -> Path:
        with (
            pytest.raises(MishapError),
            open_step(TEACHER.canonical(), results / TEACHER.folder / "manifest.json") as step,
        ):
            save_checkpoint(step.resume, {"w": np.ones(2)}, {})
            raise MishapError
        return step.resume

    make(DATA, results)
    first = resume_folder()
    assert resume_folder() == first
    with open_step(DATA.canonical(), results / DATA.folder / "manifest.json") as step:
        step.write_tensors("data.safetensors", {"train": np.arange(3.0)})
        step.write_json("facts.json", {})
    assert resume_folder() != first
    make(TEACHER, results)
    assert json.loads((results / TEACHER.folder / "run.json").read_text())["resumed"] is True
    assert not list((results / ".resume").iterdir())


def test_wrong_files_are_refused(results: Path) -> None:
    manifest = results / DATA.folder / "manifest.json"
    with (
        pytest.raises(ValueError, match="declares no file 'extra"),
        open_step(DATA.canonical(), manifest) as step,
    ):
        step.write_text("extra.txt", "")
    with pytest.raises(RuntimeError, match="must write"), open_step(DATA.canonical(), manifest) as step:
        step.write_json("facts.json", {})
    with pytest.raises(RuntimeError, match="must write"), open_step(DATA.canonical(), manifest) as step:
        make_data(step)
        (step.folder / "extra.txt").touch()
    assert all_files(results) == set()


def refusal(results: Path, capsys: pytest.CaptureFixture[str], planned: PlannedStep = TEACHER) -> str:
    with pytest.raises(SystemExit):
        make(planned, results)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert not (results / planned.folder / "manifest.json").exists()
    return error


def test_a_tampered_parent_is_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read" in refusal(results, capsys)
    data = make(DATA, results)
    payload = data / "data.safetensors"
    content = payload.read_bytes()
    payload.write_bytes(content[:-1] + b"\0")
    assert "changed after it was made" in refusal(results, capsys)
    payload.write_bytes(content + b"\0")
    assert "bytes" in refusal(results, capsys)
    payload.unlink()
    assert "cannot be read" in refusal(results, capsys)
    payload.write_bytes(content)
    manifest = data / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"n_train": 10', '"n_train": 11'))
    assert "does not match its own digest" in refusal(results, capsys)
    manifest.write_text(text)
    make(TEACHER, results)


def test_a_parent_of_another_spec_is_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = plan("data", Moons(n_train=11))
    make(other, results).rename(results / DATA.folder)
    assert "another spec" in refusal(results, capsys)


def test_an_edit_after_planning_is_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = json.loads(DATA.canonical())
    order["code"] = "0" * 16
    with pytest.raises(SystemExit), open_step(json.dumps(order), results / DATA.folder / "manifest.json"):
        pass
    assert "edited after the run was planned" in capsys.readouterr().err


def test_a_manifest_elsewhere_is_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), open_step(DATA.canonical(), results / "elsewhere" / "manifest.json"):
        pass
    assert DATA.folder in capsys.readouterr().err


def test_progress_is_told_while_the_step_runs(results: Path) -> None:
    with open_step(DATA.canonical(), results / DATA.folder / "manifest.json") as step:
        for done in (1, 2):
            step.progress(done, 10)
        (file,) = (results / ".progress").iterdir()
        facts = json.loads(file.read_text())
        assert {**facts, "started": 0} == {
            "stage": "data",
            "label": "moons",
            "done": 1,
            "total": 10,
            "started": 0,
        }
        make_data(step)
    assert not list((results / ".progress").iterdir())


def test_parents_are_read_by_role(results: Path) -> None:
    make(DATA, results)
    with (
        pytest.raises(MishapError),
        open_step(TEACHER.canonical(), results / TEACHER.folder / "manifest.json") as step,
    ):
        assert step.read_json("data", "facts.json") == {"name": "moons", "dim": 2}
        with pytest.raises(UserError, match="lists no 'absent'"):
            step.read_json("data", "absent")
        raise MishapError
    make(TEACHER, results)
    below = PlannedStep("data", Digits(), parents={"some": TEACHER})
    with open_step(below.canonical(), results / below.folder / "manifest.json") as step:
        assert list(step.read_table("some", "history.parquet")["loss"]) == list(range(10))
        step.write_tensors("data.safetensors", {})
        step.write_json("facts.json", {})


def test_run_step_calls_the_function_of_the_stage(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"dmdpipe.data.prepare": types.SimpleNamespace(prepare_data=make_data)}
    monkeypatch.setattr("dmdpipe.artifacts.step.import_module", modules.__getitem__)
    assert run_step(DATA.canonical(), results) == results / DATA.folder
    assert {path.name for path in (results / DATA.folder).iterdir()} == DATA_FILES
    with pytest.raises(UserError, match="no stage 'os'"):
        run_step(json.dumps({**json.loads(DATA.canonical()), "stage": "os"}), results)


def test_a_job_that_is_overtaken_cannot_publish(results: Path) -> None:
    """As a job of a cluster that goes on after its controller was lost, while a new run makes the step again."""
    folder = results / DATA.folder
    late = open_step(DATA.canonical(), manifest=folder / "manifest.json", log=results / "late.log")
    step = late.__enter__()
    make_data(step)
    make(DATA, results)
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    step.write_json("facts.json", {"written": "late"})
    with pytest.raises(SystemExit):
        late.__exit__(None, None, None)
    assert "another job makes this step now" in (results / "late.log").read_text()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made
    assert not list((results / ".tmp").iterdir())


def test_a_job_cannot_publish_after_a_new_run_has_begun(results: Path) -> None:
    with pytest.raises(SystemExit), open_step(DATA.canonical(), results / DATA.folder / "manifest.json") as step:
        make_data(step)
        void_tickets(results)
    assert not (results / DATA.folder).exists()


def test_the_job_that_started_last_publishes_and_leaves_no_ticket(results: Path) -> None:
    manifest = results / DATA.folder / "manifest.json"
    with pytest.raises(SystemExit), open_step(DATA.canonical(), manifest) as first:
        make_data(first)
        with open_step(DATA.canonical(), manifest) as last:
            make_data(last)
        assert manifest.exists()
    assert not list((results / ".tickets").iterdir())


def test_a_new_run_waits_for_a_job_that_is_publishing(results: Path) -> None:
    results.mkdir()
    ticket = Ticket(results, "step")
    with ticket.publishing() as is_allowed:
        new_run = threading.Thread(target=void_tickets, args=(results,))
        new_run.start()
        new_run.join(0.2)
        assert is_allowed and new_run.is_alive() and ticket.is_valid
    new_run.join()
    with ticket.publishing() as is_allowed:
        assert not is_allowed


def test_tickets_are_not_written_through_a_link(results: Path, tmp_path: Path) -> None:
    results.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (results / ".tickets").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SystemExit):
        make(DATA, results)
    assert not any((tmp_path / "elsewhere").iterdir())
