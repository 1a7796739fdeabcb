"""U-Nets that diffusers has saved: as they were, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from dmdpipe.errors import UserError
from dmdpipe.networks.unet import CONFIG, WEIGHTS, load_unet

TINY = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
}


def saved(folder, seed=0, **changes):
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    # For weights that require gradients torch makes other products, which MKL may round otherwise.
    unet = UNet2DModel(**TINY | changes).eval().requires_grad_(False)
    unet.save_pretrained(folder, safe_serialization=True)
    return unet


def one_line(*parts):
    return pytest.raises(UserError, match=r"^(?=[^\n]*$)" + "".join(rf"(?=.*{part})" for part in parts))


def configured(folder, **config):
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({"_class_name": "UNet2DModel", "sample_size": 8, **config}))
    return folder


@pytest.mark.parametrize("label", [None, 3])
@torch.no_grad()
def test_a_loaded_network_answers_as_the_one_that_was_saved(tmp_path, label):
    unet = saved(tmp_path, num_class_embeds=None if label is None else 5)
    flat = load_unet(tmp_path)
    x = torch.randn(4, 3 * 8 * 8, generator=torch.Generator().manual_seed(1))
    for time in (0.0, 12.5, 999.0):
        # One row each: a class for all would be the same in any order.
        labels = None if label is None else torch.tensor([label, 0, 4, 1])
        expected = unet(x.reshape(4, 3, 8, 8), torch.tensor(time), class_labels=labels).sample.reshape(4, -1)
        assert_close(flat(x, torch.tensor([[time]]), labels), expected, rtol=0, atol=0)
    assert (
        flat.shape == (3, 8, 8)
        and flat.classes == (0 if label is None else 5)
        and not any(parameter.requires_grad for parameter in flat.parameters())
    )


@torch.no_grad()
def test_the_older_names_of_attention_layers_are_known(tmp_path):
    unet = saved(tmp_path)
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(tmp_path / WEIGHTS)
    for new, old in older.items():
        tensors = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in tensors.items()}
    assert any(".query." in name for name in tensors)
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    x = torch.randn(2, 3 * 8 * 8, generator=torch.Generator().manual_seed(1))
    expected = unet(x.reshape(2, 3, 8, 8), torch.tensor(5.0)).sample.reshape(2, -1)
    assert_close(load_unet(tmp_path)(x, torch.tensor([[5.0]])), expected, rtol=0, atol=0)


def test_weights_that_do_not_fit_are_refused_and_never_filled_up(tmp_path):
    saved(tmp_path)
    whole = load_file(tmp_path / WEIGHTS)
    some = {name: tensor for name, tensor in whole.items() if name != "conv_in.bias"}
    for changed in (some, whole | {"more": torch.zeros(1)}, whole | {"conv_in.bias": torch.zeros(7)}):
        save_file(changed, tmp_path / WEIGHTS, metadata={"format": "pt"})
        with one_line(str(tmp_path)):
            load_unet(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"\x80\x04K\x01.")
    with one_line(str(tmp_path)):
        load_unet(tmp_path)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path):
    configured(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    with one_line("diffusion_pytorch_model.safetensors", "safe_serialization=True"):
        load_unet(tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"time_embedding_type": "fourier"}, "positional"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"num_class_embeds": "3"}, "num_class_embeds"),
        ({"num_class_embeds": -1}, "num_class_embeds"),
        ({"out_channels": 6}, r"out_channels \(6\)"),
        ({"sample_size": None}, "sample_size"),
        ({"sample_size": -8}, "sample_size"),
        ({"in_channels": "3"}, "in_channels"),
    ],
)
def test_other_configs_are_refused(tmp_path, config, says):
    with one_line(CONFIG, says):
        load_unet(configured(tmp_path, **config))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_config_that_is_no_json_is_refused(tmp_path, text):
    Path(tmp_path, CONFIG).write_text(text)
    with one_line(CONFIG):
        load_unet(tmp_path)
