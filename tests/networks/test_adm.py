"""ADM with published names: shapes, every formula against one made from the state dictionary alone, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.torch import load, save

from dmdpipe.errors import UserError
from dmdpipe.networks.adapted import AdaptedDenoiser
from dmdpipe.networks.adm import ADM, PREFIXES, Resampling, empty_adm, load_adm
from dmdpipe.specs.adapter import ADM as Sizes
from dmdpipe.specs.adapter import Adapter

# What running NVlabs/edm's training/networks.py (commit 008a4e5) on the device meta gives: 553 names and shapes.
PUBLISHED = json.loads(Path(__file__).with_name("published_imagenet64.json").read_text())
SMALL = Sizes(
    img_resolution=8, label_dim=5, model_channels=64, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(8,)
)
DEEP = Sizes(
    img_resolution=8,
    img_channels=1,
    label_dim=0,
    model_channels=64,
    channel_mult=(1, 2, 1),
    channel_mult_emb=2,
    num_blocks=2,
    attn_resolutions=(4,),
)


def random_adm(sizes: Sizes, seed: int = 0) -> ADM:
    """No weight is 0 or 1 where a formula could then leave it out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ADM(sizes).eval().requires_grad_(False)
        for name, parameter in network.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn_like(parameter) / fan_in**0.5 + ("norm" in name and "weight" in name))
    return network


def published(network: ADM, prefix: str = "model.") -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in network.state_dict().items()}


def test_names_shapes_and_the_number_of_parameters_are_the_published_ones() -> None:
    network = empty_adm(Sizes())
    assert {name: list(tensor.shape) for name, tensor in published(network).items()} == PUBLISHED
    # arXiv 2105.05233, table of hyperparameters: 296M for ImageNet at 64×64.
    assert sum(parameter.numel() for parameter in network.parameters()) == 295_899_267


class Reference:
    """The network in NumPy and double precision, built from nothing but published names and arrays, by formulas."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.arrays = {name.removeprefix("model."): t.double().numpy() for name, t in tensors.items()}

    def has(self, name: str) -> bool:
        return name in self.arrays

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.arrays[f"{name}.weight"].T + self.arrays.get(f"{name}.bias", 0)

    def conv(self, name: str, x: np.ndarray) -> np.ndarray:
        weight = self.arrays[f"{name}.weight"]
        pad = weight.shape[-1] // 2
        windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))), weight.shape[2:], (2, 3))
        answer = np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
        return answer + self.arrays[f"{name}.bias"][:, None, None]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        groups = min(32, x.shape[1] // 4)
        parts = x.reshape(len(x), groups, -1)
        spread = np.sqrt(parts.var(axis=2, keepdims=True) + 1e-5)
        normal = ((parts - parts.mean(axis=2, keepdims=True)) / spread).reshape(x.shape)
        return normal * self.arrays[f"{name}.weight"][:, None, None] + self.arrays[f"{name}.bias"][:, None, None]

    @staticmethod
    def halved(x: np.ndarray) -> np.ndarray:
        out = np.empty((*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2))
        for i in range(out.shape[2]):
            for j in range(out.shape[3]):
                out[:, :, i, j] = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(axis=(2, 3))
        return out

    @staticmethod
    def doubled(x: np.ndarray) -> np.ndarray:
        out = np.empty((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))
        for i in range(out.shape[2]):
            for j in range(out.shape[3]):
                out[:, :, i, j] = x[:, :, i // 2, j // 2]
        return out

    def attention(self, name: str, x: np.ndarray) -> np.ndarray:
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x))
        mixed = np.empty_like(x)
        for b in range(len(x)):
            for head in range(x.shape[1] // 64):
                rows = [3 * (64 * head + channel) for channel in range(64)]
                query, key, value = (qkv[b, [row + part for row in rows]].reshape(64, -1) for part in range(3))
                weights = np.exp(query.T @ key / 8)
                weights /= weights.sum(axis=1, keepdims=True)
                mixed[b, 64 * head : 64 * head + 64] = (value @ weights.T).reshape(64, *x.shape[2:])
        return self.conv(f"{name}.proj", mixed)

    def block(self, name: str, x: np.ndarray, embedding: np.ndarray) -> np.ndarray:
        resample = self.halved if name.endswith("_down") else self.doubled if name.endswith("_up") else lambda x: x
        inner = self.conv(f"{name}.conv0", resample(silu(self.norm(f"{name}.norm0", x))))
        scale, shift = np.split(self.linear(f"{name}.affine", embedding)[:, :, None, None], 2, axis=1)
        inner = self.conv(f"{name}.conv1", silu(self.norm(f"{name}.norm1", inner) * (1 + scale) + shift))
        x = resample(x)
        x = inner + (self.conv(f"{name}.skip", x) if self.has(f"{name}.skip.weight") else x)
        return x + self.attention(name, x) if self.has(f"{name}.qkv.weight") else x

    def __call__(self, x: np.ndarray, label: float, classes: list[int] | None) -> np.ndarray:
        n = self.arrays["map_layer0.weight"].shape[1] // 2
        angles = np.array([label / 10_000 ** (i / n) for i in range(n)])
        features = np.concatenate([np.cos(angles), np.sin(angles)])[None]
        embedding = self.linear("map_layer1", silu(self.linear("map_layer0", features)))
        if classes is not None:
            embedding = embedding + self.linear("map_label", np.eye(self.arrays["map_label.weight"].shape[1])[classes])
        embedding = silu(embedding)
        blocks = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in self.arrays))
        kept = []
        for name in (name for name in blocks if name.startswith("enc.")):
            x = self.conv(name, x) if name.endswith("_conv") else self.block(name, x, embedding)
            kept.append(x)
        for name in (name for name in blocks if name.startswith("dec.")):
            # As published: where the block takes more channels than there are.
            if self.arrays[f"{name}.norm0.weight"].shape[0] != x.shape[1]:
                x = np.concatenate([x, kept.pop()], axis=1)
            x = self.block(name, x, embedding)
        assert not kept
        return self.conv("out_conv", silu(self.norm("out_norm", x)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("sizes", [SMALL, DEEP], ids=["with classes", "without"])
def test_the_network_is_its_formulas(sizes: Sizes) -> None:
    network = random_adm(sizes)
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(3, sizes.img_channels, 8, 8)).astype(np.float32))
    classes = [4, 0, 4] if sizes.label_dim else None
    reference = Reference(published(network))
    for label in (-1.5, 1.1):
        told = None if classes is None else torch.tensor(classes)
        got = network(x.flatten(1), torch.tensor([[label]]), told).reshape(x.shape)
        want = reference(x.double().numpy(), label, classes)
        assert want.std() > 0.1
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-4)


def test_the_published_filter_is_used_as_it_is_stored() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    down, up = Resampling(up=False), Resampling(up=True)
    assert down(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert up(x)[0, 0, :2, :4].tolist() == [[0, 0, 1, 1]] * 2
    down.resample_filter.copy_(torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]))
    assert down(x).flatten().tolist() == [0, 2, 8, 10]


def test_a_class_is_asked_for_row_by_row() -> None:
    network = random_adm(SMALL)
    x, label = torch.ones(3, 3 * 64), torch.tensor([[0.3]])
    one, other, same = network(x, label, torch.tensor([1, 2, 1]))
    torch.testing.assert_close(one, same)
    assert (one - other).abs().max() > 0.01


@pytest.mark.parametrize("prefix", PREFIXES)
def test_there_and_back_the_answers_are_the_same_bytes(prefix: str) -> None:
    network = random_adm(SMALL)
    again = load_adm(SMALL, load(save(published(network, prefix))), "file")
    x, label, classes = torch.linspace(-1, 1, 2 * 192).reshape(2, 192), torch.tensor([[0.2]]), torch.tensor([3, 1])
    assert again(x, label, classes).numpy().tobytes() == network(x, label, classes).numpy().tobytes()
    adapter = Adapter(network=SMALL)
    sigma = torch.tensor([[80.0]])
    denoised = [AdaptedDenoiser(one, adapter)(80 * x, sigma, classes) for one in (network, again)]
    assert denoised[0].numpy().tobytes() == denoised[1].numpy().tobytes()
    assert not any(parameter.requires_grad for parameter in again.parameters()) and not again.training


def test_half_precision_is_read_as_float32() -> None:
    halved = {name: tensor.bfloat16() for name, tensor in published(random_adm(SMALL)).items()}
    network = load_adm(SMALL, halved, "file")
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}
    assert network.map_layer0.weight.equal(halved["model.map_layer0.weight"].float())


def test_a_head_that_no_answer_depends_on_may_be_there() -> None:
    tensors = published(random_adm(SMALL)) | {"model.logvar_linear.weight": torch.ones(1, 64)}
    assert "logvar_linear.weight" not in load_adm(SMALL, tensors, "file").state_dict()


def changed(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    tensors = published(random_adm(SMALL)) | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in tensors.items() if value is not None}


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (changed(model__out_norm__bias=None), r"lacks the tensor model\.out_norm\.bias"),
        (changed(model__enc__8x8_conv__weight=None), r"lacks the tensor model\.enc\.8x8_conv\.weight"),
        (changed(model__map_augment__weight=torch.ones(2)), r"has a tensor model\.map_augment\.weight that no such"),
        (changed(guidance__w=torch.ones(2)), r"has a tensor guidance\.w beside those that begin with 'model\.'"),
        (changed(model__out_norm__bias=torch.ones(65)), r"model\.out_norm\.bias is \(65,\), but .* must be \(64,\)"),
        (changed(model__out_norm__bias=torch.ones(64, dtype=torch.int64)), r"out_norm\.bias holds torch\.int64"),
        (published(random_adm(SMALL), "generator.unet."), r"names begin with 'generator\.unet\.'; known are 'model\.'"),
        ({"input.weight": torch.ones(2, 2)}, r"no tensor …map_layer0\.weight; it holds .* another network than 'adm'"),
        ({}, r"no tensor …map_layer0\.weight"),
    ],
)
def test_weights_that_do_not_fit_are_one_line_that_names_the_first(tensors: dict, says: str) -> None:
    with pytest.raises(UserError, match=f"^file: {says}|^file: .*{says}") as raised:
        load_adm(SMALL, tensors, "file")
    assert "\n" not in str(raised.value)
