"""U-Nets of the library diffusers, which is not in the lock: it is imported where one is opened, and only there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmdpipe.errors import UserError
from dmdpipe.files import read_ordinary

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
LARGEST_CONFIG = 2**20  # bytes


class FlatUNet(nn.Module):
    """A ``UNet2DModel`` on flat images, channels first: [B, d] with d = C·H·W.

    Args:
        unet: the model.
        shape: (C, H, W).
        label: the class that is asked for, if the model has classes.
    """

    def __init__(self, unet: nn.Module, shape: tuple[int, int, int], label: int | None):
        super().__init__()
        self.unet = unet
        self.shape = shape
        self.label = label

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map inputs [B, d] and a noise label or time step [1, 1] to outputs [B, d]."""
        labels = None if self.label is None else torch.full((len(x),), self.label, device=x.device)
        images = x.reshape(len(x), *self.shape)
        answer: Tensor = self.unet(images, time.reshape(()), class_labels=labels, return_dict=False)[0]
        return answer.reshape(len(x), -1)


def load_unet(folder: Path, label: int | None) -> FlatUNet:
    """Return the U-Net of a folder with ``config.json`` and ``diffusion_pytorch_model.safetensors``, float32.

    Raises:
        UserError: if diffusers is missing, or the folder does not hold a whole unconditional or class-conditional
            ``UNet2DModel`` whose answer has the shape of its input.
    """
    config = _read_config(folder / CONFIG)
    shape = _shape(config, folder / CONFIG)
    classes = config.get("num_class_embeds")
    if (classes is None) != (label is None) or (classes is not None and label is not None and label >= classes):
        has = "no classes: leave it out" if classes is None else f"{classes} classes: give one, 0 to {classes - 1}"
        raise UserError(f"{folder}: the adapter's network.label is {label}, but the network has {has}")
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder}: has no {WEIGHTS}; save it in its publisher's environment with"
            " model.save_pretrained(folder, safe_serialization=True)"
        )
    try:
        from diffusers import UNet2DModel
        from diffusers.utils import logging
    except ImportError:
        raise UserError(
            f"{folder}: opening a U-Net needs the library diffusers, which is not part of the environment; install it"
            " with: .venv-tools/bin/python -m uv pip install --python .venv/bin/python diffusers"
        ) from None
    logging.set_verbosity_error()
    try:
        # With the loader of diffusers, since it knows the older names of layers; from these two files alone.
        unet, found = UNet2DModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: is no U-Net that diffusers can open ({reason})") from None
    # What is missing has been filled with random weights.
    wrong = [name for kind in ("missing_keys", "mismatched_keys", "unexpected_keys") for name in found[kind]]
    if wrong:
        raise UserError(f"{folder / WEIGHTS}: does not fit {CONFIG}: {len(wrong)} tensors, the first is {wrong[0]}")
    return FlatUNet(unet.float().eval().requires_grad_(False), shape, label)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_ordinary(path.resolve(), LARGEST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is no JSON"
        raise UserError(f"{path}: cannot be read ({reason}); it must be the config of a UNet2DModel") from None
    if not isinstance(config, dict) or config.get("_class_name") != "UNet2DModel":
        name = config.get("_class_name") if isinstance(config, dict) else None
        raise UserError(
            f"{path}: is the config of {name or 'no model'}, not of a UNet2DModel, the only kind known here"
        )
    # Such a network divides its answer by the time step: it is neither of an adapter's predictions.
    if config.get("time_embedding_type", "positional") != "positional":
        raise UserError(f"{path}: time_embedding_type must be 'positional', got '{config['time_embedding_type']}'")
    return config


def _shape(config: dict[str, Any], path: Path) -> tuple[int, int, int]:
    size = config.get("sample_size")
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    channels = config.get("in_channels", 3)
    lengths = [length for length in (channels, height, width) if isinstance(length, int) and 0 < length <= 2**12]
    if len(lengths) < 3:
        raise UserError(f"{path}: in_channels and sample_size must say the images' shape, got {channels} and {size}")
    if config.get("out_channels", 3) != channels:
        raise UserError(f"{path}: out_channels ({config.get('out_channels', 3)}) must equal in_channels ({channels})")
    return lengths[0], lengths[1], lengths[2]
