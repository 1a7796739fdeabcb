"""Study 20 on networks of its kind that are small and random: `dmdpipe measure` and `dmdpipe cost` from end to end."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pretended_gpu import pretended_gpu
from safetensors.numpy import load_file
from safetensors.torch import save_file

from dmdpipe.copying.standalone import CLASS_READINGS, READINGS
from dmdpipe.measuring import cost
from dmdpipe.measuring.models import read_adapter
from dmdpipe.networks.adm import ADM
from dmdpipe.pairing.bank import noise_rows
from dmdpipe.specs.adapter import ADM as Sizes
from dmdpipe.specs.adapter import Adapter

Command = Callable[..., Any]
RELEASED = Path(__file__).parents[2] / "config" / "released" / "imagenet64.json"
SMALL = {
    "kind": "adm",
    "img_resolution": 4,
    "label_dim": 6,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [2],
}
N, HELD_OUT, STEPS = 12, 24, 2
ASKED = ["--adapter", "small.json", "--noise", str(N), "--held-out", str(HELD_OUT), "--steps", str(STEPS)]
MODELS = ["--teacher", "t.safetensors", "--student", "s.safetensors"]


def adm(seed: int, near: float = 0.0) -> ADM:
    """A random network; ``near``: how far it is from that of seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ADM(Sizes(**SMALL)).eval().requires_grad_(False)
    if near:
        for own, of_other in zip(network.parameters(), adm(0).parameters(), strict=True):
            own.copy_(of_other + near * own)
    return network


def written(network: ADM, path: str, prefix: str = "model.") -> str:
    """Return the file's checksum."""
    save_file({prefix + name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def adapter(path: str = "small.json", weights: dict[str, Any] | None = None, **network: Any) -> None:
    Path(path).write_text(json.dumps({"network": SMALL | network, "weights": weights or {}}))


@pytest.fixture
def two(dmdpipe: Command) -> dict[str, str]:
    """A teacher and a student near to it, as EDM and as several GPUs would name their tensors."""
    return {
        "t.safetensors": written(adm(0), "t.safetensors"),
        "s.safetensors": written(adm(1, near=0.3), "s.safetensors", "module.model."),
    }


def denoised(network: ADM, x: torch.Tensor, sigma: float, classes: torch.Tensor) -> torch.Tensor:
    """EDM's preconditioning, table 1 of arXiv 2206.00364, in double precision but for the network."""
    total = sigma**2 + 0.25
    inner = network((x / total**0.5).float(), torch.tensor([[np.log(sigma) / 4]], dtype=torch.float32), classes)
    return 0.25 / total * x + sigma * 0.5 / total**0.5 * inner.double()


def heun(network: ADM, z: torch.Tensor, steps: int, classes: torch.Tensor) -> torch.Tensor:
    """Algorithm 1 of the same paper on its own grid, σ_max = 80, σ_min = 0.002, ρ = 7."""
    ramp = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), steps) ** 7
    x = 80 * z.double()
    for now, after in zip(ramp, [*ramp[1:], 0.0], strict=True):
        slope = (x - denoised(network, x, now, classes)) / now
        ahead = x + (after - now) * slope
        if after:
            slope = (slope + (ahead - denoised(network, ahead, after, classes)) / after) / 2
        x = x + (after - now) * slope
    return x


def test_the_study_is_what_its_formulas_say(dmdpipe: Command, two: dict[str, str]) -> None:
    adapter(drawn_from=3, weights={"t.safetensors": {"source": "https://…", "licence": "CC BY-NC-SA 4.0"}})
    done = dmdpipe("measure", *MODELS, *ASKED)
    assert done.status == 0, done
    samples = load_file("measured/samples.safetensors")
    assert samples["classes"].shape == (N,) and samples["classes_held_out"].shape == (HELD_OUT,)
    assert len(set(samples["classes"]) | set(samples["classes_held_out"])) == 3
    np.testing.assert_array_equal(samples["z"], noise_rows(48, N, 0, "paired"))
    z, classes = torch.from_numpy(samples["z"]), torch.from_numpy(samples["classes"])
    student = denoised(adm(1, near=0.3), 80 * z.double(), 80.0, classes)
    np.testing.assert_allclose(samples["student"], student, rtol=1e-3, atol=1e-3)
    for name, steps in (("teacher", STEPS), ("doubled", 2 * STEPS)):
        np.testing.assert_allclose(samples[name], heun(adm(0), z, steps, classes), rtol=1e-3, atol=1e-3)
    other = heun(adm(0), z, STEPS, (classes + 1) % 6)
    assert (other - torch.from_numpy(samples["teacher"])).abs().max() > 0.01  # so the class is no small thing
    held_out = heun(
        adm(0), torch.from_numpy(samples["z_held_out"]), STEPS, torch.from_numpy(samples["classes_held_out"])
    )
    np.testing.assert_allclose(samples["teacher_held_out"], held_out, rtol=1e-3, atol=1e-3)
    table = pd.read_csv("measured/metrics.csv").set_index("metric")
    assert list(table.index) == [*READINGS, *CLASS_READINGS]
    assert 0 < table["value"]["rho"] < 1 and 0 < table["value"]["rho_within_class"] < 1
    about = json.loads(Path("measured/about.json").read_text())
    assert about["files"].items() >= two.items()
    assert f"t.safetensors has sha256 {two['t.safetensors']}; pin it" in done.out
    assert "drawn from 3 of 6" in done.out and "rho_within_class" in done.out and "rho_same_class" in done.out
    # Three channels to a pixel, side by side: first pixels of the first picture.
    drawn = pd.read_csv("measured/pairs.csv").filter(regex=r"^x\d+$")
    assert len(drawn.columns) == 48
    np.testing.assert_allclose(drawn.iloc[0, :3], samples["teacher"][0].reshape(3, 16)[:, 0], rtol=1e-4)


def test_a_teacher_copies_itself_near_the_data_and_batches_change_nothing(
    dmdpipe: Command, two: dict[str, str]
) -> None:
    adapter()
    for out, batch in (("a", "64"), ("b", "5")):
        asked = ["--teacher", "t.safetensors", "--student", "t.safetensors", "--sigma-max", "0.01"]
        assert dmdpipe("measure", *asked, *ASKED, "--batch", batch, "--out", out).status == 0
    a, b = (load_file(f"{out}/samples.safetensors") for out in "ab")
    np.testing.assert_allclose(a["student"], a["teacher"], atol=1e-3)
    for name, array in a.items():
        np.testing.assert_allclose(array, b[name], rtol=1e-4, atol=1e-5)


def test_one_class_has_no_metrics_of_classes(dmdpipe: Command, two: dict[str, str]) -> None:
    adapter(label=2)
    done = dmdpipe("measure", *MODELS, *ASKED)
    assert done.status == 0 and "both were asked for class 2 of 6" in done.out
    assert set(load_file("measured/samples.safetensors")["classes"]) == {2}
    assert list(pd.read_csv("measured/metrics.csv")["metric"]) == list(READINGS)


def test_on_a_gpu_it_is_the_same(dmdpipe: Command, two: dict[str, str]) -> None:
    adapter(drawn_from=3)
    assert dmdpipe("measure", *MODELS, *ASKED, "--batch", "5", "--out", "here").status == 0
    torch.backends.cudnn.allow_tf32 = True
    with pretended_gpu() as gpu:
        done = dmdpipe("measure", *MODELS, *ASKED, "--batch", "5", "--device", "cuda", "--out", "there")
        assert done.status == 0, done
        # All of 12·(3 + 7) + 24·3 + 12 samples' calls, of about 20 convolutions at 5 samples each.
        assert gpu.operations > (3 * 10 + 5 * 3 + 3) * 20
    here, there = (load_file(f"{out}/samples.safetensors") for out in ("here", "there"))
    for name, array in here.items():
        np.testing.assert_allclose(array, there[name], rtol=1e-3, atol=1e-3, err_msg=name)
    # The CPU's precision: PyTorch would let cuDNN round the factors in convolutions to 11 bits.
    assert not torch.backends.cudnn.allow_tf32


def refused(done: Any, *words: str) -> None:
    assert done.status == 2, done
    assert done.err.splitlines()[-1].startswith("dmdpipe: ") and done.err.count("\n") == 1, done
    assert done.out == "" and all(word in done.err for word in words), done.err
    assert not Path("measured").exists() and not list(Path().glob(".measured*"))


def test_a_pinned_checksum_is_held_against_the_file(dmdpipe: Command, two: dict[str, str]) -> None:
    about = {"source": "https://…", "licence": "CC0"}
    adapter(weights={name: about | {"sha256": sum_} for name, sum_ in two.items()})
    done = dmdpipe("measure", *MODELS, *ASKED, "--out", "pinned")
    assert done.status == 0 and "sha256" not in done.out
    adapter(weights={"t.safetensors": about, "s.safetensors": about | {"sha256": two["t.safetensors"]}})
    refused(
        dmdpipe("measure", *MODELS, *ASKED), "s.safetensors", two["s.safetensors"], two["t.safetensors"], "small.json"
    )


def test_weights_that_a_pin_was_meant_for_cannot_go_by_another_name(dmdpipe: Command, two: dict[str, str]) -> None:
    about = {"source": "https://…", "licence": "CC0"}
    pinned = about | {"sha256": two["t.safetensors"]}
    adapter(weights={"s.safetensors": about, "T.safetensors": pinned})
    refused(dmdpipe("measure", *MODELS, *ASKED), "t.safetensors: is none of", "small.json pins (T.safetensors)")
    adapter(weights={"s.safetensors": about, "elsewhere/t.safetensors": pinned})
    refused(dmdpipe("measure", *MODELS, *ASKED), "t.safetensors: is none of", "(elsewhere/t.safetensors)")
    for name in (
        "t",
        "t.bin",
        "/t.safetensors",
        "../t.safetensors",
        "a//t.safetensors",
        "./t.safetensors",
        ".safetensors",
    ):
        adapter(weights={name: pinned})
        refused(dmdpipe("measure", *MODELS, *ASKED), "small.json", "weights", f"'{name}' can be no file's name")


def test_of_two_files_of_one_name_each_has_a_pin_of_its_own(dmdpipe: Command, two: dict[str, str]) -> None:
    about = {"source": "https://…", "licence": "CC0"}
    files = {}
    for folder in "ts":
        Path(folder).mkdir()
        Path(f"{folder}.safetensors").rename(f"{folder}/w.safetensors")
        files[f"{folder}/w.safetensors"] = two[f"{folder}.safetensors"]
    # As hubs store files: what counts is where it was named to be.
    Path("s/w.safetensors").rename("store")
    Path("s/w.safetensors").symlink_to("../store")
    models = ["--teacher", "t/../t/w.safetensors", "--student", "s/w.safetensors"]
    fallback = {"w.safetensors": about | {"sha256": "0" * 64}}
    adapter(weights={name: about | {"sha256": sum_} for name, sum_ in files.items()} | fallback)
    assert dmdpipe("measure", *models, *ASKED, "--out", "pinned").status == 0
    adapter(weights={name: about | {"sha256": files["t/w.safetensors"]} for name in files} | fallback)
    refused(dmdpipe("measure", *models, *ASKED), "s/w.safetensors: its sha256 is", files["s/w.safetensors"])


def test_teacher_and_student_must_be_asked_for_the_same(dmdpipe: Command, two: dict[str, str]) -> None:
    for beside_teacher, beside_student, words in (
        ({"label": 1}, {"label": 2}, ["class 2 of 6", "class 1 of 6"]),
        ({}, {"drawn_from": 3}, ["drawn from 3 of 6", "drawn from 6 of 6"]),
    ):
        adapter("t.json", **beside_teacher)
        adapter("s.json", **beside_student)
        refused(dmdpipe("measure", *MODELS), "s.safetensors", "t.safetensors", *words)


def test_wrong_weights_and_adapters_are_one_line(dmdpipe: Command, two: dict[str, str]) -> None:
    adapter(num_blocks=2)
    refused(dmdpipe("measure", *MODELS, *ASKED), "t.safetensors: lacks the tensor model.enc.4x4_block1.norm0.weight")
    for network, words in (
        ({"label": 6}, ["label is 6, but there are 6 classes: give one from 0 to 5"]),
        ({"label": 1, "drawn_from": 2}, ["exclude each other"]),
        ({"drawn_from": 7}, ["drawn_from is 7, but there are 6 classes"]),
        ({"label_dim": 0, "label": 0}, ["leave it out"]),
        ({"model_channels": 96}, ["network.model_channels", "64"]),
        ({"channel_mult": [1, 1, 1, 1]}, ["img_resolution must be a multiple of 8"]),
        ({"chanel_mult": [1]}, ["chanel_mult", "channel_mult"]),
    ):
        adapter(**network)
        refused(dmdpipe("measure", *MODELS, *ASKED), "small.json", *words)
    adapter()
    Path("t.safetensors").write_bytes(b"\x80\x04K\x01.")
    refused(dmdpipe("measure", *MODELS, *ASKED), "t.safetensors", "no valid safetensors file")
    Path("small.json").write_text(json.dumps({"network": SMALL, "prediction": "v", "schedule": {}}))
    refused(dmdpipe("measure", *MODELS, *ASKED), "network.kind 'adm' needs prediction 'edm'")


def test_the_adapter_of_study_20_is_of_the_published_network() -> None:
    released = read_adapter(RELEASED)
    assert released.network == Sizes(drawn_from=50) and released.prediction == "edm" and released.sigma_data == 0.5
    assert all(name.endswith(".safetensors") for name in released.weights) and len(released.weights) == 4
    assert Adapter.model_validate(json.loads(RELEASED.read_text())) == released


def operations_by_hand(tensors: dict[str, tuple[int, ...]]) -> int:
    """Of one call, from published names and shapes: 2 for each weight at each place that it is used at."""
    total = 0
    for name, shape in tensors.items():
        if len(shape) == 2:
            total += 2 * shape[0] * shape[1] * ("map_label" not in name)  # a class's row is looked up
        if len(shape) == 4:
            side = re.search(r"(\d+)x\1_", name)
            places = int(side[1]) ** 2 if side else 64**2
            # A filter is one on every channel; what doubles is counted by what it reads.
            channels = tensors[name.rsplit(".", 2)[0] + ".norm0.weight"][0] if "resample" in name else shape[0]
            total += 2 * channels * int(np.prod(shape[1:])) * (places // 4 if "_up.conv0.res" in name else places)
            total -= 2 * channels * 4 * (places - places // 4) * ("_up.skip.res" in name)
        if "qkv.weight" in name:
            # Products of all queries and keys, and of the weights and values.
            total += 2 * 2 * places**2 * shape[1]
    return total


def test_operations_and_memory_of_a_call_are_counted() -> None:
    published = json.loads((RELEASED.parents[2] / "tests" / "networks" / "published_imagenet64.json").read_text())
    found = cost.call(Sizes())
    assert found.parameters == 295_899_267
    assert found.operations == operations_by_hand({name: tuple(shape) for name, shape in published.items()})
    # What the first half keeps for the second, and four times the input of the widest block: 384 + 192 channels.
    kept = 192 * 64**2 * 4 + 32**2 * (192 + 3 * 384) + 16**2 * (384 + 3 * 576) + 8**2 * (576 + 3 * 768)
    assert found.living == kept + 4 * (384 + 192) * 64**2


def test_the_cost_of_study_20_is_printed_without_weights(dmdpipe: Command) -> None:
    asked = ["--noise", "10", "--held-out", "20", "--steps", "4", "--tflops", "1"]
    done = dmdpipe("cost", "config/released/imagenet64.json", *asked)
    assert done.status == 0, done
    assert "295,899,267 parameters; samples of 12,288 numbers" in done.out and "219.3 GFLOP" in done.out
    calls = 10 * 7 + 10 * 15 + 20 * 7 + 10
    assert f"{calls}  together: {calls * 219.328 / 1e6:,.0f} PFLOP" in done.out
    assert f"{calls * 219.328e-3 / 3600:.2f} h at 1 TFLOP/s (assumed" in done.out
    assert "2.37 GB for the weights of two networks" in done.out and "needs --held-out 24576" in done.out


def test_the_memory_of_study_20_is_that_of_its_arrays(dmdpipe: Command) -> None:
    """Those that are live at once: samples in float32; in double precision what metrics make of them."""
    d, n = 12_288, 1_000
    for held_out, fitted in ((4_000, 0), (2 * d, 3 * 2 * d + 2 * d)):
        done = dmdpipe("cost", "config/released/imagenet64.json", "--held-out", str(held_out))
        samples, metrics = 4 * d * (4 * n + 2 * held_out), 8 * d * (2 * d + 4 * n + held_out + fitted)
        assert f"{samples / 1e9:.2f} GB of the machine for the samples" in done.out, done
        assert f"{metrics / 1e9:.1f} GB of the machine for the metrics" in done.out, done
        assert ("rho_affine needs" in done.out) is (fitted == 0)
        assert f"T of {held_out} held-out noises" in done.out


def test_a_call_is_timed_by_the_shorter_of_two_after_a_first(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 10.0, 20.0, 21.5, 30.0, 33.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(moments))
    assert cost.seconds_of_a_call(Sizes(**SMALL), 2, torch.device("cpu")) == 1.5


def test_the_cost_of_a_small_network_is_timed(dmdpipe: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter()
    done = dmdpipe("cost", "small.json", "--batch", "2", "--time")
    assert done.status == 0 and "measured on cpu, 2 samples at a time" in done.out, done
    monkeypatch.setattr(cost, "seconds_of_a_call", lambda network, batch, device: 1e-6)
    done = dmdpipe("cost", "small.json", "--batch", "7", "--time")
    rate = 7 * cost.call(Sizes(**SMALL)).operations / 1e6
    assert f"at {rate:.3g} TFLOP/s (measured" in done.out, done
    Path("mlp.json").write_text('{"network": {"kind": "mlp"}}')
    for words, asked in (
        ("'--tflops'", ["small.json", "--tflops", "inf"]),
        ("'--tflops'", ["small.json", "--tflops", "nan"]),
        ("'--noise'", ["small.json", "--noise", "9" * 400]),
        ("'--held-out'", ["small.json", "--held-out", "9" * 400]),
        ("'--batch'", ["small.json", "--batch", "9" * 400]),
        ("'--steps'", ["small.json", "--steps", "9" * 400]),
        ("'adm' alone", ["mlp.json"]),
        ("tpu", ["small.json", "--time", "--device", "tpu"]),
    ):
        failed = dmdpipe("cost", *asked)
        assert failed.status == 2 and words in failed.err
