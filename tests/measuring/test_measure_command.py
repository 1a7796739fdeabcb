"""`dmdpipe measure`: what the pipeline measured of the same steps, and one line for all that can't be measured."""

from __future__ import annotations

import errno
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pretended_gpu import pretended_gpu
from safetensors.numpy import load_file, save, save_file

from dmdpipe.artifacts.dag import steps_below
from dmdpipe.artifacts.plan import plan
from dmdpipe.artifacts.step import run_step
from dmdpipe.copying.standalone import READINGS
from dmdpipe.figures import grids
from dmdpipe.measuring.hub import SECONDS_TO_ANSWER
from dmdpipe.measuring.models import open_model
from dmdpipe.networks.unet import WEIGHTS
from dmdpipe.pairing.classes import Classes
from dmdpipe.specs.adapter import Schedule
from dmdpipe.specs.grid import expand
from dmdpipe.specs.study import Scale, Study

N, HELD_OUT, STEPS = 30, 120, 4
NETWORK = {"width": 8, "depth": 1, "embedding": 4}
BASE = {
    "data": {"family": "digits", "side": 2, "n_train": 200, "n_held_out": 50},
    "score.network": NETWORK,
    "score.steps": 20,
    "sampler.steps": STEPS,
    "bank": {"n_paired": N, "n_held_out": HELD_OUT, "n_reference_sets": 2},
    "student.batch": 8,
    "student.generator_steps": 6,
    "student.snapshots": 3,
    "noise_range.sigma_max": 20.0,
}
KINDS = {
    "one step": {},
    "two steps": {"student.sampling_steps": 2},
    "rotated, double": {"student.init": "rotated", "student.dtype": "float64"},
    "together": {"student.together": True},
}
OF_CLASSES = {"data.labels": True, "score.network.classes": 10}
PHOTOS = {"data": {"family": "photos", "side": 4, "n_train": 200, "n_held_out": 50}}
PARTICLES = {"student.network.kind": "particles", "student.network.count": 64}
COMPARED = (
    *("rho", "rho_floor", "rho_affine", "rho_affine_matched", "linear_excess", "delta_e", "delta_e_null", "cosine"),
    *("cosine_whitened", "retrieval_at_1", "retrieval_null", "normalised_rank", "normalised_excess_cost"),
    *("assignment_pairs", "jacobian_alignment", "scale_ratio"),
)
Command = Callable[..., Any]


def member(kind: str = "one step", seed: int = 0) -> Any:
    study = Study(
        number=0, title="t", question="q", prediction="p", base=BASE | (KINDS | {"classes": OF_CLASSES})[kind]
    )
    return expand("some", study, "some", Scale(title="two", seeds=2))[seed].spec


def made(spec: Any, results: Path) -> dict[str, Path]:
    """Run all steps up to a student's metrics; their folders by role."""
    metrics = plan("metrics", spec)
    for step in steps_below(metrics):
        if not (results / step.folder).exists():
            run_step(step.canonical(), results)
    pairs, samples = metrics.parents["pairs"], metrics.parents["teacher_samples"]
    # By role: an ensemble is made from the teachers of all its members.
    own = {"metrics": metrics, "pairs": pairs, "student": pairs.parents["student"], "samples": samples}
    own |= samples.parents
    return {role: results / step.folder for role, step in own.items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made") / "results"


def models(folders: dict[str, Path]) -> list[str]:
    return ["--teacher", str(folders["teacher"]), "--student", str(folders["student"])]


SIZES = ["--noise", str(N), "--held-out", str(HELD_OUT), "--steps", str(STEPS)]


@pytest.mark.parametrize("kind", KINDS)
def test_steps_read_as_the_pipeline_read_them(dmdpipe: Command, results: Path, kind: str) -> None:
    folders = made(member(kind), results)
    done = dmdpipe("measure", *models(folders), *SIZES)
    assert done.status == 0, done
    table = pd.read_parquet("measured/metrics.parquet").set_index("metric")
    assert list(table.index) == list(READINGS) and (table["lacks"] == "").all()
    stored = pd.read_parquet(folders["metrics"] / "metrics.parquet")
    of_pipeline = stored[stored["generator_step"] == stored["generator_step"].max()].set_index("metric")["value"]
    for metric in COMPARED:
        assert table["value"][metric] == pytest.approx(of_pipeline[metric], rel=1e-5, abs=1e-9), metric
    samples = load_file("measured/samples.safetensors")
    pairs = load_file(folders["pairs"] / "pairs.safetensors")
    for name in ("z", "teacher"):
        assert np.array_equal(samples[name], pairs[name])
    np.testing.assert_allclose(samples["student"], pairs["student"][-1], rtol=1e-5, atol=1e-6)
    assert "note:" not in done.out
    assert f"{table['value']['rho']:.4g}" in done.out and "reconstruction" in done.out
    assert json.loads(Path("measured/about.json").read_text())["noise_range"]["sigma_max"] == 20.0


def test_steps_that_are_asked_for_classes_read_as_the_pipeline_read_them(dmdpipe: Command, results: Path) -> None:
    folders = made(member("classes"), results)
    done = dmdpipe("measure", *models(folders), *SIZES)
    assert done.status == 0, done
    read = pd.read_parquet("measured/metrics.parquet").set_index("metric")["value"]
    stored = pd.read_parquet(folders["metrics"] / "metrics.parquet")
    of_pipeline = stored[stored["generator_step"] == stored["generator_step"].max()].set_index("metric")["value"]
    within = {name for name in read.index if name.endswith(("_within_class", "_same_class"))}
    assert "rho_within_class" in within <= {*of_pipeline.index} and np.isfinite(read["rho_within_class"])
    for metric in {*COMPARED, *within} & {*read.index}:
        assert read[metric] == pytest.approx(of_pipeline[metric], rel=1e-5, abs=1e-9, nan_ok=True), metric
    samples = load_file("measured/samples.safetensors")
    of_teacher = load_file(next(folders["samples"].glob("*.safetensors")))
    assert np.array_equal(samples["classes"], of_teacher["classes"]) and len(set(samples["classes"])) > 1
    assert np.array_equal(samples["teacher"], of_teacher["teacher"])


@pytest.mark.parametrize("kind", ["one step", "two steps"])
def test_steps_answer_on_a_gpu_as_here(dmdpipe: Command, results: Path, kind: str) -> None:
    folders = made(member(kind), results)
    assert dmdpipe("measure", *models(folders), *SIZES, "--out", "here").status == 0
    with pretended_gpu() as gpu:
        done = dmdpipe("measure", *models(folders), *SIZES, "--device", "cuda", "--out", "there")
    assert done.status == 0 and gpu.operations > 0, done
    here, there = (load_file(f"{out}/samples.safetensors") for out in ("here", "there"))
    for name, array in here.items():
        np.testing.assert_allclose(array, there[name], rtol=1e-3, atol=1e-3, err_msg=name)


def test_the_folder_holds_what_was_promised_and_is_never_overwritten(dmdpipe: Command, results: Path) -> None:
    folders = made(member(), results)
    assert dmdpipe("measure", *models(folders), *SIZES).status == 0
    names = {
        "metrics.parquet",
        "metrics.csv",
        "about.json",
        "samples.safetensors",
        "pairs.png",
        "pairs.pdf",
        "pairs.csv",
    }
    assert {path.name for path in Path("measured").iterdir()} == names
    csv = pd.read_csv("measured/metrics.csv", keep_default_na=False)
    assert list(csv["metric"]) == list(READINGS)
    again = dmdpipe("measure", *models(folders), *SIZES)
    assert again.status == 2 and "is there already" in again.err and again.out == ""


def test_another_teacher_is_noted(dmdpipe: Command, results: Path) -> None:
    own, other = made(member(), results), made(member(seed=1), results)
    asked = ["--teacher", str(other["teacher"]), "--student", str(own["student"])]
    done = dmdpipe("measure", *asked, "--noise", "10", "--held-out", "0", "--steps", "2")
    assert done.status == 0 and "another teacher" in done.out
    table = pd.read_parquet("measured/metrics.parquet").set_index("metric")
    assert table["lacks"]["rho_affine"] and np.isnan(table["value"]["rho_affine"])
    assert table["lacks"]["rho"] == "" and "rho_affine, rho_affine_matched, linear_excess: needs" in done.out


def weights_of(folder: Path, path: Path) -> None:
    """A step's teacher as a file that another could have made, with its adapter beside it."""
    save_file(load_file(folder / "model.safetensors"), path)
    path.with_suffix(".json").write_text(json.dumps({"network": {"kind": "mlp", **NETWORK}}))


def test_a_file_with_an_adapter_is_the_teacher_that_it_was(dmdpipe: Command, results: Path) -> None:
    folders = made(member(), results)
    weights_of(folders["teacher"], Path("mine.safetensors"))
    by_step, by_file = (
        [*models(folders)[2:], "--teacher", teacher, *SIZES, "--out", out]
        for teacher, out in ((str(folders["teacher"]), "a"), ("mine.safetensors", "b"))
    )
    assert dmdpipe("measure", *by_step).status == dmdpipe("measure", *by_file).status == 0
    tables = [pd.read_parquet(f"{out}/metrics.parquet").set_index("metric")["value"] for out in "ab"]
    pd.testing.assert_series_equal(*tables, rtol=1e-4)


def test_a_denoiser_that_is_asked_once_is_a_student(dmdpipe: Command, results: Path) -> None:
    folders = made(member(), results)
    weights_of(folders["teacher"], Path("mine.safetensors"))
    asked = ["--teacher", "mine.safetensors", "--student", str(folders["teacher"]), *SIZES]
    done = dmdpipe("measure", *asked, "--sigma-max", "0.01")
    assert done.status == 0 and "asked once, at σ = 0.01" in done.out
    # So near to the data one answer and the whole flow hardly differ.
    samples = load_file("measured/samples.safetensors")
    np.testing.assert_allclose(samples["student"], samples["teacher"], atol=1e-3)


def test_unets_go_through_all_of_it(dmdpipe: Command) -> None:
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    shape = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "norm_num_groups": 2, "layers_per_block": 1}
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    unets = [UNet2DModel(block_out_channels=(4, 8), **shape, **blocks).eval() for _ in range(2)]
    for name, unet in zip(("t", "s"), unets, strict=True):
        unet.save_pretrained(name, safe_serialization=True)
    adapter = {"network": {"kind": "unet"}, "prediction": "epsilon", "schedule": {"steps": 100}}
    Path("adapter.json").write_text(json.dumps(adapter))
    asked = ["--teacher", "t", "--student", "s", "--adapter", "adapter.json"]
    done = dmdpipe("measure", *asked, "--noise", "6", "--held-out", "0", "--steps", "3")
    assert done.status == 0, done
    samples = load_file("measured/samples.safetensors")
    # What a sampler of diffusers makes of the same noise at the last time step.
    kept = float(DDPMScheduler(num_train_timesteps=100).alphas_cumprod[-1])
    z = torch.from_numpy(samples["z"]).reshape(6, 1, 8, 8)
    scaled = (1 - kept) ** 0.5 * z
    with torch.no_grad():
        expected = (scaled - (1 - kept) ** 0.5 * unets[1](scaled, torch.tensor(99.0)).sample) / kept**0.5
    np.testing.assert_allclose(samples["student"], expected.reshape(6, -1), rtol=1e-3, atol=1e-3)
    assert len(pd.read_csv("measured/pairs.csv").filter(regex=r"^x\d+$").columns) == 64
    assert "128 pairs of noise" in done.out and "--held-out 128" in done.out
    assert pd.read_csv("measured/metrics.csv").set_index("metric")["value"]["rho"] > 0
    about = {"source": "here", "licence": "CC0"}
    sums = {f"{name}/{WEIGHTS}": hashlib.sha256(Path(name, WEIGHTS).read_bytes()).hexdigest() for name in "ts"}
    few = ("--noise", "4", "--held-out", "0", "--steps", "1")
    for pins, fits in ((sums, True), (dict(zip(sums, reversed(sums.values()), strict=True)), False)):
        pinned = {"weights": {name: about | {"sha256": pin} for name, pin in pins.items()}}
        Path("pinned.json").write_text(json.dumps(adapter | pinned))
        done = dmdpipe("measure", *asked[:-1], "pinned.json", *few, "--out", f"fits {fits}")
        assert (done.status == 0) is fits, done
    assert f"t/{WEIGHTS}: its sha256 is {sums[f't/{WEIGHTS}']}, but pinned.json pins" in done.err
    over = dmdpipe("measure", *asked, "--sigma-max", "80", "--out", "more")
    assert over.status == 2 and "the schedule of t ends at" in over.err


def saved_unet(folder: str, classes: int | None = None, **changes: Any) -> Any:
    from diffusers import UNet2DModel

    shape = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "norm_num_groups": 2, "layers_per_block": 1}
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
    unet = UNet2DModel(**{"num_class_embeds": classes, **shape, **blocks, **changes}).eval()
    unet.save_pretrained(folder, safe_serialization=True)
    return unet


def test_a_file_in_a_folder_is_measured_as_the_folder_is(dmdpipe: Command, results: Path) -> None:
    folders = made(member(), results)
    for name in "ts":
        saved_unet(name)
        asked_for(name)
    Path("t/adapter.json").rename(Path("t", WEIGHTS).with_suffix(".json"))  # by the weights' name
    of_steps = {
        "--teacher": (folders["teacher"], "model.safetensors"),
        "--student": (folders["student"], "snapshots.safetensors"),
    }
    of_unets = {"--teacher": (Path("t"), WEIGHTS), "--student": (Path("s"), WEIGHTS)}
    for kind, given in (("steps", of_steps), ("unets", of_unets)):
        by_file = [word for option, (folder, name) in given.items() for word in (option, str(folder / name))]
        done = dmdpipe("measure", *by_file, *FEW, "--out", f"{kind} by file")
        assert done.status == 0, done
        adapter = ["--adapter", f"t/{Path(WEIGHTS).stem}.json"] if kind == "unets" else []
        by_folder = [word for option, (folder, _) in given.items() for word in (option, str(folder))]
        assert dmdpipe("measure", *by_folder, *adapter, *FEW, "--out", f"{kind} by folder").status == 0
        found, expected = (
            {name: Path(f"{kind} by {how}", name).read_bytes() for name in ("samples.safetensors", "metrics.csv")}
            for how in ("file", "folder")
        )
        assert found == expected
        titles = [json.loads(Path(f"{kind} by {how}/about.json").read_text())["title"] for how in ("file", "folder")]
        assert titles[0] == titles[1] and "safetensors" not in titles[0]


@pytest.mark.parametrize("where", ["one config.json", "a config of each", "named", "the name of all"])
def test_a_unet_and_its_student_are_two_files_in_one_folder(dmdpipe: Command, where: str) -> None:
    for name in "ts":
        saved_unet(name)
        asked_for(name)
    assert dmdpipe("measure", "--teacher", "t", "--student", "s", *FEW, "--out", "by folder").status == 0
    Path("both").mkdir()
    for name in "ts":
        Path(name, WEIGHTS).rename(f"both/{name}.safetensors")
    by_file = ["--teacher", "both/t.safetensors", "--student", "both/s.safetensors", *FEW]
    refused(dmdpipe("measure", *by_file, "--adapter", "t/adapter.json"), "both/t.safetensors", "need their config.json")
    Path("t/adapter.json").rename("both/adapter.json")
    config = Path("t/config.json").read_text()
    if where == "named":
        Path("both/below").mkdir()
        adapter = json.loads(Path("both/adapter.json").read_text())
        adapter["network"]["config"] = "below/of_both.json"
        Path("both/t.json").write_text(json.dumps(adapter))
        Path("both/s.json").write_text(json.dumps(adapter))
    files = {
        "one config.json": ["config.json"],
        "a config of each": ["t.json", "s.json"],
        "named": ["below/of_both.json"],
        "the name of all": ["config.json"],
    }
    for name in files[where]:
        Path("both", name).write_text(config)
    if where == "the name of all":
        Path("both/t.safetensors").rename(Path("both", WEIGHTS))
        by_file[1] = f"both/{WEIGHTS}"
    done = dmdpipe("measure", *by_file, "--out", "by file")
    assert done.status == 0, done
    found, expected = (Path(out, "samples.safetensors").read_bytes() for out in ("by file", "by folder"))
    assert found == expected
    # What is wrong with a file is said of that file.
    Path("both/s.safetensors").write_bytes(b"none")
    refused(dmdpipe("measure", *by_file), "both/s.safetensors: is no U-Net")


@pytest.mark.parametrize("name", ["../config.json", "/config.json", "config.txt", "a//b.json"])
def test_an_adapter_names_no_config_outside_its_folder(dmdpipe: Command, name: str) -> None:
    saved_unet("t")
    asked_for("t", config=name)
    refused(dmdpipe("measure", "--teacher", "t", "--student", "t", *FEW), "adapter.json: network", "adapter's folder")


@pytest.mark.parametrize(("side", "fits"), [(15, False), ((16, 15), False), (14, True)])
def test_a_side_that_the_levels_cannot_halve_is_one_line(dmdpipe: Command, side: Any, fits: bool) -> None:
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    saved_unet("t", sample_size=side, block_out_channels=[8, 8], **blocks)
    asked_for("t")
    done = dmdpipe("measure", "--teacher", "t", "--student", "t", *FEW)
    if fits:
        assert done.status == 0, done
    else:
        refused(done, "t/config.json: sample_size, 1", "×15, must be divisible by 2")


def test_a_network_of_one_level_takes_odd_sides(dmdpipe: Command) -> None:
    saved_unet("t", sample_size=7)
    asked_for("t")
    done = dmdpipe("measure", "--teacher", "t", "--student", "t", *FEW)
    assert done.status == 0, done


def asked_for(folder: str, label: int | None = None, **network: Any) -> None:
    network |= {"kind": "unet", "label": label}
    Path(folder, "adapter.json").write_text(json.dumps({"network": network, "prediction": "v", "schedule": {}}))


FEW = ("--noise", "4", "--held-out", "0", "--steps", "1")


def test_unets_are_asked_for_the_same_class(dmdpipe: Command) -> None:
    for folder, classes, label in (("t", 3, 1), ("same", 3, 1), ("other", 3, 2), ("plain", None, None)):
        saved_unet(folder, classes)
        asked_for(folder, label)
    refused(dmdpipe("measure", "--teacher", "t", "--student", "other", *FEW), "class 2 of 3", "class 1 of 3")
    done = dmdpipe("measure", "--teacher", "t", "--student", "same", *FEW, "--out", "same class")
    assert done.status == 0 and "both were asked for class 1 of 3" in done.out, done
    assert set(load_file("same class/samples.safetensors")["classes"]) == {1}
    # A student of one class alone may know of no class.
    for teacher, student, alone in (("t", "plain", "teacher"), ("plain", "t", "student")):
        done = dmdpipe("measure", "--teacher", teacher, "--student", student, *FEW, "--out", f"one {alone}")
        assert done.status == 0 and f"the {alone} alone was asked for class 1 of 3" in done.out, done


def test_unets_are_asked_for_a_class_for_each_noise(dmdpipe: Command) -> None:
    """Teacher and student for the same one, as where a network of another kind has classes."""
    import torch

    unets = {folder: saved_unet(folder, 5) for folder in "ts"}
    for folder in "ts":
        asked_for(folder, drawn_from=3)
    asked = ["--teacher", "t", "--student", "s", "--noise", "12", "--held-out", "4", "--steps", "1", "--batch", "5"]
    done = dmdpipe("measure", *asked)
    assert done.status == 0 and "drawn from 3 of 5" in done.out and "rho_within_class" in done.out, done
    samples = load_file("measured/samples.safetensors")
    classes = Classes(5, drawn_from=3)
    for name, purpose in (("classes", "paired"), ("classes_held_out", "held_out")):
        np.testing.assert_array_equal(samples[name], classes.of_noises(len(samples[name]), 0, purpose))
    assert len(set(samples["classes"])) == 3
    sigma = Schedule().sigmas()[-1]
    z = torch.from_numpy(samples["z"]).reshape(12, 1, 8, 8)
    total = 1 + sigma**2
    with torch.no_grad():
        answer = unets["s"](sigma * z / total**0.5, 999, class_labels=torch.from_numpy(samples["classes"])).sample
    expected = sigma * z / total - sigma / total**0.5 * answer
    np.testing.assert_allclose(samples["student"], expected.reshape(12, -1), rtol=1e-3, atol=1e-3)


def test_a_step_and_a_unet_of_diffusers_see_the_same_picture_of_noise(dmdpipe: Command, results: Path) -> None:
    """A step's rows have a pixel's colours side by side, those of the library's U-Nets have channels first."""
    import torch

    study = Study(number=0, title="t", question="q", prediction="p", base=BASE | PHOTOS)
    (spec,) = (one.spec for one in expand("some", study, "some", Scale(title="one", seeds=1)))
    student = made(spec, results)["student"]
    saved_unet("t", in_channels=3, out_channels=3, sample_size=4)
    asked_for("t")
    done = dmdpipe("measure", "--teacher", "t", "--student", str(student), *FEW)
    assert done.status == 0, done
    samples = load_file("measured/samples.safetensors")
    z, found = (torch.from_numpy(samples[name]).reshape(4, 3, 4, 4).permute(0, 2, 3, 1) for name in ("z", "student"))
    expected = open_model(student).one_step(z.reshape(4, -1), [], 20.0)
    np.testing.assert_allclose(found.reshape(4, -1), expected, rtol=1e-5, atol=1e-6)
    saved_unet("wide", in_channels=3, out_channels=3, sample_size=(2, 8))
    asked_for("wide")
    done = dmdpipe("measure", "--teacher", "wide", "--student", str(student), *FEW, "--out", "other")
    assert done.status == 2 and f"{student}: is made for 3×4×4, wide for 3×2×8" in done.err, done


@pytest.mark.parametrize(
    ("classes", "asked", "words"),
    [
        (3, {"label": 3}, ["network.label is 3", "3 classes: give one, 0 to 2"]),
        (3, {"drawn_from": 4}, ["network.drawn_from is 4", "3 classes"]),
        (None, {"label": 0}, ["network.label is 0", "no classes"]),
        (None, {"drawn_from": 1}, ["network.drawn_from is 1", "no classes"]),
        (3, {"label": 1, "drawn_from": 2}, ["exclude each other"]),
    ],
)
def test_a_unet_is_asked_for_classes_that_it_has(
    dmdpipe: Command, classes: int | None, asked: dict[str, int], words: list[str]
) -> None:
    saved_unet("t", classes)
    asked_for("t", **asked)
    refused(dmdpipe("measure", "--teacher", "t", "--student", "t", *FEW), "adapter.json", *words)


@pytest.fixture
def hub(dmdpipe: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub's with one model, in a folder of its repository; what it lacks can't be had."""
    from functools import partial

    import huggingface_hub

    cache = Path("cache").absolute()
    commit = "c" * 40
    snapshot = cache / "models--me--mine" / "snapshots" / commit
    (snapshot / "code.py").parent.mkdir(parents=True)
    (snapshot / "code.py").write_text("raise SystemExit")
    (cache / "models--me--mine" / "refs").mkdir()
    (cache / "models--me--mine" / "refs" / "main").write_text(commit)
    saved_unet(str(snapshot / "unet"))
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", partial(huggingface_hub.snapshot_download, cache_dir=cache)
    )
    return snapshot


@contextmanager
def in_the_hubs_place(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Iterator[list[str]]:
    """What takes a question, says nothing for so long, and hangs up; the questions that it got."""
    from huggingface_hub import constants

    asked: list[str] = []
    is_over = threading.Event()

    def hang_up() -> None:
        with suppress(OSError):
            while True:
                with server.accept()[0] as caller:
                    asked.append(caller.recv(4096).decode().partition("\r\n")[0])
                    is_over.wait(seconds)

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            yield asked
        finally:
            is_over.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub that hangs up on whoever asks it; the questions that it got."""
    with in_the_hubs_place(monkeypatch, 0) as asked:
        yield asked


@pytest.mark.usefixtures("no_hub")
def test_a_model_is_found_by_its_name_on_the_hub(dmdpipe: Command, hub: Path) -> None:
    asked_for(str(hub / "unet"))
    done = dmdpipe("measure", "--teacher", "me/mine/unet", "--student", f"me/mine/unet@{'c' * 40}", *FEW)
    assert done.status == 0, done
    about = json.loads(Path("measured/about.json").read_text())
    checksum = hashlib.sha256((hub / "unet" / WEIGHTS).read_bytes()).hexdigest()
    assert about["files"][str(hub / "unet" / WEIGHTS)] == checksum


@pytest.mark.usefixtures("no_hub")
def test_a_name_that_the_hub_does_not_know_is_one_line(dmdpipe: Command, hub: Path) -> None:
    Path("here").mkdir()
    for name, words in (
        ("me/mine", ["me/mine: has no config.json on the hub", "me/mine/unet"]),
        ("me/other", ["me/other: there is no such file or folder, nor did the hub"]),
        ("me/mine/unet@v2", ["me/mine/unet@v2: there is no such file or folder, nor did the hub"]),
        ("here/other", ["here/other: there is no such file or folder\n"]),
        ("me/weights.safetensors", ["me/weights.safetensors: there is no such file or folder\n"]),
        ("me/../mine", ["there is no such file or folder\n"]),
        ("/me/mine", ["there is no such file or folder\n"]),
    ):
        refused(dmdpipe("measure", "--teacher", name, "--student", name, *FEW), *words)


@pytest.mark.parametrize("name", ["me/other", f"me/other@{'a' * 40}"])
def test_a_hub_that_does_not_answer_is_asked_once(dmdpipe: Command, hub: Path, no_hub: list[str], name: str) -> None:
    refused(dmdpipe("measure", "--teacher", name, "--student", name, *FEW), name, "nor did the hub", "disconnected")
    assert len(no_hub) == 1


def test_a_hub_that_is_silent_is_waited_for_no_longer_than_said(
    dmdpipe: Command, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmdpipe.measuring.hub.SECONDS_TO_ANSWER", 0.01)
    with in_the_hubs_place(monkeypatch, 20):
        refused(dmdpipe("measure", "--teacher", "me/other", "--student", "x", *FEW), "me/other", "timed out")


def test_the_commit_that_the_hub_names_is_fetched(dmdpipe: Command, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked_for(str(hub / "unet"))
    wanted: list[Any] = []

    def info(api: Any, repository: str, **asked: Any) -> Any:
        assert asked["timeout"] == SECONDS_TO_ANSWER
        return SimpleNamespace(sha=f"{repository} at {asked['revision']}")

    def download(repository: str, **asked: Any) -> str:
        wanted.append((repository, asked))
        return str(hub)

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    done = dmdpipe("measure", "--teacher", "me/mine/unet@v2", "--student", "me/mine/unet@v2", *FEW)
    assert done.status == 0, done
    files = [f"unet/{name}" for name in ("config.json", WEIGHTS, "adapter.json")]
    assert wanted == 2 * [("me/mine", {"allow_patterns": files, "revision": "me/mine at v2"})]


def test_what_was_measured_is_kept_where_its_folder_is_taken_meanwhile(
    dmdpipe: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, teacher, student = pairs_of(9)
    saved(t=teacher, s=student)
    drawn = grids.grid_of_pairs

    def taken(*given: Any, **options: Any) -> Any:
        Path("measured").mkdir()
        return drawn(*given, **options)

    monkeypatch.setattr(grids, "grid_of_pairs", taken)
    done = dmdpipe("measure", "--pairs", "t.npy", "s.npy")
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1), done
    (kept,) = Path().glob(".measured-*")
    assert str(kept) in done.err and len(pd.read_csv(kept / "metrics.csv")) and not list(Path("measured").iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(
    dmdpipe: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**asked: Any) -> str:
        raise OSError(errno.EROFS, "Read-only file system", asked["dir"])

    monkeypatch.setattr("dmdpipe.measuring.report.tempfile.mkdtemp", fails)
    refused(dmdpipe("measure", "--pairs", "none.npy", "none.npy"), "--out: ", "Read-only file system", "elsewhere")


def pairs_of(n: int, shape: tuple[int, ...] = (2,)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    noise = np.random.default_rng(7)
    z = noise.standard_normal((n, *shape))
    return z, np.tanh(z), np.tanh(z) + 0.1 * noise.standard_normal((n, *shape))


def saved(**arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)


def test_pairs_alone_are_measured_by_hand(dmdpipe: Command) -> None:
    _, teacher, student = pairs_of(50)
    saved(t=teacher, s=student)
    done = dmdpipe("measure", "--pairs", "t.npy", "s.npy")
    assert done.status == 0, done
    table = pd.read_csv("measured/metrics.csv").set_index("metric")["value"]
    costs = ((student[:, None] - teacher[None]) ** 2).sum(axis=2)
    assert table["rho"] == pytest.approx(costs.diagonal().mean() / costs[~np.eye(50, dtype=bool)].mean(), rel=1e-9)
    assert table["retrieval_at_1"] == pytest.approx((costs.argmin(axis=1) == np.arange(50)).mean())
    assert "not computed" in done.out and "rho_affine" in done.out
    assert not Path("measured/samples.safetensors").exists()


@pytest.mark.parametrize(("n", "dim"), [(2, 1), (3, 2), (9, 1)])
def test_few_pairs_of_few_numbers_are_measured_and_drawn(dmdpipe: Command, n: int, dim: int) -> None:
    z, teacher, student = pairs_of(n, (dim,))
    saved(t=teacher, s=student, z=z)
    done = dmdpipe("measure", "--pairs", "t.npy", "s.npy", "--z", "z.npy")
    assert done.status == 0 and Path("measured/pairs.png").exists(), done


def test_with_their_noise_one_half_fits_the_affine_map_and_the_other_is_measured(dmdpipe: Command) -> None:
    z, teacher, student = pairs_of(50)
    saved(t=teacher, s=student, z=z)
    done = dmdpipe("measure", "--pairs", "t.npy", "s.npy", "--z", "z.npy")
    assert "first 25 pairs" in done.out and done.out.startswith("25 pairs of 2 numbers")
    table = pd.read_csv("measured/metrics.csv").set_index("metric")["value"]
    design = np.column_stack([z, np.ones(50)])
    fit = design[25:] @ np.linalg.lstsq(design[:25], teacher[:25], rcond=None)[0]
    costs = ((fit[:, None] - teacher[None, 25:]) ** 2).sum(axis=2)
    assert table["rho_affine"] == pytest.approx(costs.diagonal().mean() / costs[~np.eye(25, dtype=bool)].mean())


@pytest.mark.parametrize(("shape", "columns"), [((3, 3), 9), ((2, 2, 3), 12), ((2, 3, 3), 2)])
def test_images_are_drawn_as_images_and_all_else_as_clouds(
    dmdpipe: Command, shape: tuple[int, ...], columns: int
) -> None:
    _, teacher, student = pairs_of(12, shape)
    saved(t=teacher, s=student)
    assert dmdpipe("measure", "--pairs", "t.npy", "s.npy").status == 0
    assert len(pd.read_csv("measured/pairs.csv").filter(regex=r"^x\d+$").columns) == columns


def refused(done: Any, *words: str) -> None:
    assert done.status == 2, done
    assert done.out == "" and done.err.startswith("dmdpipe: ") and done.err[:-1].isprintable(), done
    assert all(word in done.err for word in words), done.err
    assert not Path("measured").exists() and not list(Path().glob(".measured*"))


def test_wrong_pairs_are_refused(dmdpipe: Command) -> None:
    z, teacher, student = pairs_of(50)
    saved(
        huge=teacher * 1e200,
        t=teacher,
        s=student,
        z=z[:-1],
        short=student[:-1],
        flat=teacher[:, 0],
        nan=teacher * np.nan,
        same=teacher * 0,
    )
    Path("evil.npy").write_bytes(b"\x80\x04K\x01.")
    Path("s.pt").write_bytes(b"")
    for pairs, words in (
        (("t.npy", "short.npy"), ["t.npy", "(50, 2)", "(49, 2)"]),
        (("flat.npy", "flat.npy"), ["(50,)"]),
        (("same.npy", "s.npy"), ["same.npy", "one sample 50 times"]),
        (("t.npy", "nan.npy"), ["nan.npy", "not finite"]),
        (("t.npy", "huge.npy"), ["huge.npy", "beyond 1e+38"]),
        (("t.npy", "s.npy", "--z", "huge.npy"), ["--z: huge.npy", "beyond 1e+38"]),
        (("t.npy", "evil.npy"), ["evil.npy", "plain numbers"]),
        (("t.npy", "s.pt"), ["s.pt", ".npy"]),
        (("t.npy", "none.npy"), ["none.npy", "No such file"]),
        (("t.npy", "s.npy", "--z", "z.npy"), ["--z", "(49, 2)"]),
        (("t.npy", "s.npy", "--teacher", "t.npy"), ["--pairs"]),
        (("t.npy", "s.npy", "--out", "no/folder"), ["--out", "no"]),
    ):
        refused(dmdpipe("measure", "--pairs", *pairs), *words)


def test_wrong_models_are_refused(dmdpipe: Command, results: Path) -> None:
    folders = made(member(), results)
    teacher, student = str(folders["teacher"]), str(folders["student"])
    weights_of(folders["teacher"], Path("mine.safetensors"))
    save_file({"output.bias": np.zeros(4, np.float32)}, "other.safetensors")
    Path("other.json").write_text(json.dumps({"network": {"kind": "mlp", **NETWORK}}))
    save_file(load_file("mine.safetensors"), "bare.safetensors")
    for suffix in ("pt", "pkl", "bin"):
        Path(f"weights.{suffix}").write_bytes(b"\x80\x04K\x01.")
    for arguments, words in (
        (["--teacher", teacher], ["--student"]),
        ([], ["--teacher", "--pairs"]),
        (["--teacher", student, "--student", student], ["is a student"]),
        (["--teacher", str(folders["data"]), "--student", student], ["a step 'data'", "teachers/"]),
        (["--teacher", "none", "--student", student], ["none", "no such"]),
        (["--teacher", "config", "--student", student], ["config", "no step's folder"]),
        (["--teacher", "weights.pt", "--student", student], ["pickle", "save_file"]),
        (["--teacher", "weights.pkl", "--student", student], ["pickle", "save_file"]),
        (["--teacher", teacher, "--student", "weights.bin"], ["pickle", "save_file"]),
        (["--teacher", "bare.safetensors", "--student", student], ["bare.json", "must say what"]),
        (["--teacher", f"{teacher}/manifest.json", "--student", student], ["of a step", "its model.safetensors"]),
        (["--teacher", "other.safetensors", "--student", student], ["other.safetensors", "other.json"]),
        (["--teacher", teacher, "--student", student, "--sigma-max", "80"], ["--sigma-max", "20"]),
        (["--teacher", teacher, "--student", student, "--device", "tpu"], ["--device", "tpu"]),
        (["--teacher", teacher, "--student", student, "--z", "z.npy"], ["--z", "--pairs"]),
    ):
        refused(dmdpipe("measure", *arguments), *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--noise", "99999999999"], ["--noise 99999999999, --held-out 399999999996", "GB of memory", "take fewer"]),
        (["--noise", "4", "--held-out", "99999999999"], ["--held-out 99999999999", "take fewer"]),
        (["--noise", "9" * 30], ["'--noise'", "less than"]),
        (["--noise", "-1"], ["'--noise'", "greater than"]),
        (["--held-out", "9" * 30], ["'--held-out'", "less than"]),
        (["--steps", "9" * 30], ["'--steps'", "less than"]),
        (["--batch", "9" * 30], ["'--batch'", "less than"]),
        (["--sigma-max", "nan"], ["'--sigma-max'"]),
        (["--sigma-max", "inf"], ["'--sigma-max'"]),
        (["--sigma-max", "1e300"], ["'--sigma-max'"]),
        (["--sigma-max", "-80"], ["'--sigma-max'"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_a_number_that_cannot_be_is_one_line(
    dmdpipe: Command, results: Path, options: list[str], words: list[str]
) -> None:
    """Of those that the machine decides, with what it lacks; of all others, with the bound."""
    folders = made(member(), results)
    done = dmdpipe("measure", *models(folders), *options)
    assert (done.status, done.out) == (2, ""), done
    assert done.err[-1] == "\n" and all(word in done.err.splitlines()[-1] for word in words), done.err
    assert not Path("measured").exists() and not list(Path().glob(".measured*"))


def test_what_the_memory_cannot_hold_is_refused_to_the_byte(
    dmdpipe: Command, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 of noise and samples, and double precision of what metrics make of them: see `dmdpipe cost`."""
    folders = made(member(), results)
    n, d = 12, 4
    needed = 4 * d * (4 * n + 2 * 7) + 8 * d * (2 * d + 4 * n + 7)
    for there in (needed, needed - 1):
        monkeypatch.setattr("dmdpipe.measuring.commands.memory_of_the_machine", lambda there=there: there)
        sizes = ("--noise", str(n), "--held-out", "7", "--steps", "1")
        done = dmdpipe("measure", *models(folders), *sizes, "--out", f"of {there}")
        assert (done.status == 0) is (there == needed), done
    assert "--noise 12, --held-out 7: samples and metrics take" in done.err and not Path(f"of {there}").exists()


def of_a_gpu() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nGPU 0 has 1 GiB")


def of_torch() -> None:
    import torch

    torch.empty(BEYOND_ADDRESSES, dtype=torch.uint8)


BEYOND_ADDRESSES = 2**55  # bytes: no machine promises them, however free it is with promises
WITHOUT_MEMORY = {"numpy": lambda: np.empty(BEYOND_ADDRESSES, np.uint8), "torch": of_torch, "gpu": of_a_gpu}


@pytest.mark.parametrize("library", WITHOUT_MEMORY)
def test_memory_that_is_not_there_is_one_line_whoever_finds_out(
    dmdpipe: Command, results: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    folders = made(member(), results)
    monkeypatch.setattr("dmdpipe.measuring.sampling.teacher_map", lambda *given: WITHOUT_MEMORY[library]())
    done = dmdpipe("measure", *models(folders), *FEW)
    assert (done.status, done.out) == (2, "")
    assert "dmdpipe: there is not enough memory for that" in done.err.splitlines()[-1]


def test_a_mistake_of_ours_is_not_called_a_lack_of_memory(
    dmdpipe: Command, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any) -> Any:
        raise RuntimeError("a mistake of ours")

    folders = made(member(), results)
    monkeypatch.setattr("dmdpipe.measuring.sampling.teacher_map", fails)
    with pytest.raises(RuntimeError, match="of ours"):
        dmdpipe("measure", *models(folders), *FEW)


@pytest.mark.parametrize("kind", ["mlp", "adm"])
def test_weights_of_ones_own_that_are_damaged_have_no_step_to_run_again(dmdpipe: Command, kind: str) -> None:
    whole = save({"output.bias": np.zeros(4, np.float32)})
    Path("mine.json").write_text(json.dumps({"network": {"kind": kind}}))
    for data in (b"", whole[:-1], b"\0" * 64):
        Path("mine.safetensors").write_bytes(data)
        done = dmdpipe("measure", "--teacher", "mine.safetensors", "--student", "mine.safetensors")
        refused(done, "mine.safetensors: is no valid safetensors file", "copy it again")
        assert "step" not in done.err


def test_an_mlp_in_a_type_that_numpy_lacks_is_read(dmdpipe: Command, results: Path) -> None:
    import torch
    from safetensors import torch as by_torch

    weights_of(made(member(), results)["teacher"], Path("full.safetensors"))
    tensors = by_torch.load_file("full.safetensors")
    by_torch.save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, "half.safetensors")
    rounded = {name: tensor.to(torch.bfloat16).float() for name, tensor in tensors.items()}
    by_torch.save_file(rounded, "full.safetensors")
    Path("half.json").write_bytes(Path("full.json").read_bytes())
    for name in ("full", "half"):
        asked = ["--teacher", f"{name}.safetensors", "--student", f"{name}.safetensors"]
        assert dmdpipe("measure", *asked, *FEW, "--out", name).status == 0
    assert Path("full/samples.safetensors").read_bytes() == Path("half/samples.safetensors").read_bytes()


def test_particles_are_refused_since_they_answer_to_their_own_noise_alone(dmdpipe: Command, results: Path) -> None:
    study = Study(number=0, title="t", question="q", prediction="p", base=BASE | PARTICLES)
    (spec,) = (one.spec for one in expand("some", study, "some", Scale(title="one", seeds=1)))
    folders = made(spec, results)
    refused(dmdpipe("measure", *models(folders), *SIZES), str(folders["student"]), "particles", "metrics")


def test_a_damaged_step_is_refused(dmdpipe: Command, results: Path, tmp_path: Path) -> None:
    import shutil

    folders = made(member(), results)
    copied = tmp_path / "copied" / "teachers" / folders["teacher"].name
    shutil.copytree(folders["teacher"], copied)
    tensors = load_file(copied / "model.safetensors")
    save_file({name: array + 1 for name, array in tensors.items()}, copied / "model.safetensors")
    done = dmdpipe("measure", "--teacher", str(copied), "--student", str(folders["student"]))
    refused(done, "model.safetensors")


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ("{", ["no JSON"]),
        ({"network": {"kind": "mpl"}}, ["network.kind", "'mpl'", "did you mean 'mlp'"]),
        ({"network": {"kind": "mlp"}, "predicts": "edm"}, ["'predicts'", "did you mean 'prediction'"]),
        ({"network": {"kind": "unet"}, "prediction": "v"}, ["needs a schedule"]),
        ({"network": {"kind": "unet"}, "schedule": {}}, ["no schedule"]),
        ({"network": {"kind": "mlp"}, "prediction": "v", "schedule": {}}, ["needs prediction 'edm'"]),
        ({"network": {"kind": "unet"}}, ["mine.safetensors", "need their config.json", "network.config"]),
        (
            {"network": {"kind": "mlp"}, "prediction": "sample", "schedule": {}},
            ["needs prediction 'edm', got 'sample'"],
        ),
    ],
)
def test_a_wrong_adapter_is_named_with_its_key(dmdpipe: Command, results: Path, adapter: Any, words: list[str]) -> None:
    student = str(made(member(), results)["student"])
    save_file({"output.bias": np.zeros(4, np.float32)}, "mine.safetensors")
    Path("given.json").write_text(adapter if isinstance(adapter, str) else json.dumps(adapter))
    asked = ["--teacher", "mine.safetensors", "--student", student, "--adapter", "given.json"]
    refused(dmdpipe("measure", *asked), "given.json", *words)
