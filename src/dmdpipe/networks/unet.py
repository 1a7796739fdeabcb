"""U-Nets of the library diffusers: one to train, and those that others have saved.

The library takes seconds to import, so only what makes a U-Net does.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from dmdpipe.data.layout import image_shape
from dmdpipe.errors import UserError
from dmdpipe.files import read_ordinary

if TYPE_CHECKING:
    from dmdpipe.specs.network import UNet as UNetSpec

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
LARGEST_CONFIG = 2**20  # bytes
MOST_CLASSES = 100_000
# ln σ/4 at the ends of the usual Karras grid, σ = 0.002 and 80, and the time steps that they become.
FIRST_LABEL, LAST_LABEL = math.log(0.002) / 4, math.log(80) / 4
LAST_TIME_STEP = 1_000
LARGEST_HEAD = 64  # channels of an attention head


class UNet(nn.Module):
    """F(x, c_noise): a ``UNet2DModel`` on flat images, with the colours of a pixel side by side (``data.layout``).

    Images whose side is no multiple of 2^(levels − 1) are padded with zeros at their ends, and the answer is cut back,
    so that one network fits every side.

    Args:
        dim: number of coordinates d = side²·colours.
        spec: channels, levels, blocks, attention, and number of classes that it is asked for.
    """

    def __init__(self, dim: int, spec: UNetSpec):
        super().__init__()
        from diffusers import UNet2DModel

        self.side, self.colours = image_shape(dim)
        self.classes = spec.classes
        self.channels = tuple(spec.channels * factor for factor in spec.multipliers)
        self.padding = -self.side % 2 ** (len(self.channels) - 1)
        attends = [level in spec.attention for level in range(len(self.channels))]
        self.unet: nn.Module = UNet2DModel(
            in_channels=self.colours,
            out_channels=self.colours,
            block_out_channels=self.channels,
            layers_per_block=spec.blocks,
            down_block_types=tuple("AttnDownBlock2D" if own else "DownBlock2D" for own in attends),
            up_block_types=tuple("AttnUpBlock2D" if own else "UpBlock2D" for own in reversed(attends)),
            attention_head_dim=math.gcd(spec.channels, LARGEST_HEAD),
            # At most 32 groups, of four channels or more: the middle may have a single position.
            norm_num_groups=math.gcd(spec.channels // 4, 32),
            num_class_embeds=spec.classes or None,
        )
        self.unet.eval()
        # By the name that output layers have here.
        self.output = self.unet.get_submodule("conv_out")
        self.unet.add_module("conv_out", nn.Identity())

    @property
    def middle_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the ``middle``."""
        side = (self.side + self.padding) // 2 ** (len(self.channels) - 1)
        return self.channels[-1], side, side

    def noise_features(self, c_noise: Tensor) -> Tensor:
        """Return time steps [B, 1] of noise labels c_noise [B, 1]: linear in ln σ, 0 at σ = 0.002 and 1,000 at σ = 80.

        The library's positional embedding is DDPM's, whose periods run from 6 to 60,000 time steps: fed with c_noise
        itself, which spans 2.6 units, nearly all of it would be constant. Its other embedding, of random Fourier
        features, won't do: with it the network divides its answer by the time step.
        """
        return (c_noise - FIRST_LABEL) * (LAST_TIME_STEP / (LAST_LABEL - FIRST_LABEL))

    def class_features(self, classes: Tensor) -> Tensor:
        """Return what is told of classes [B] beside the time steps: their numbers [B, 1]."""
        return classes[:, None]

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Map inputs [B, d] and their time steps [B, 1], or [1, 1] for all rows, to outputs [B, d].

        With classes the features are time steps and classes [B, 2].
        """
        asked = {"class_labels": self._asked(features)} if self.classes else {}
        answer = self.output(self.unet(self._images(x), features[:, 0], **asked, return_dict=False)[0])
        cut = answer[:, :, : self.side, : self.side]
        return cut.permute(0, 2, 3, 1).reshape(len(x), -1)

    def middle(self, x: Tensor, features: Tensor) -> Tensor:
        """Return what comes out of the middle block, between the two halves of the U: [B, *middle_shape]."""
        unet: Any = self.unet
        embedding = unet.time_embedding(unet.time_proj(features[:, 0]).to(x.dtype).expand(len(x), -1))
        if self.classes:
            embedding = embedding + unet.class_embedding(self._asked(features)).to(x.dtype)
        h = unet.conv_in(self._images(x))
        for block in unet.down_blocks:
            h, _ = block(hidden_states=h, temb=embedding)
        answer: Tensor = unet.mid_block(h, embedding)
        return answer

    def _asked(self, features: Tensor) -> Tensor:
        return features[:, 1].long()

    def _images(self, x: Tensor) -> Tensor:
        images = x.reshape(len(x), self.side, self.side, self.colours).permute(0, 3, 1, 2)
        return F.pad(images, (0, self.padding, 0, self.padding)).contiguous()


def build(dim: int, spec: UNetSpec) -> UNet:
    """Return a U-Net with the library's initialisation (drawn from the global generator)."""
    return UNet(dim, spec)


class FlatUNet(nn.Module):
    """A ``UNet2DModel`` on flat images, channels first: [B, d] with d = C·H·W.

    Args:
        unet: the model.
        shape: (C, H, W).
        classes: how many classes the model has; 0: none.
    """

    def __init__(self, unet: nn.Module, shape: tuple[int, int, int], classes: int):
        super().__init__()
        self.unet = unet
        self.shape = shape
        self.classes = classes

    def forward(self, x: Tensor, time: Tensor, classes: Tensor | None = None) -> Tensor:
        """Map inputs [B, d], a noise label or time step [1, 1] and, if there are any, classes [B] to outputs [B, d]."""
        images = x.reshape(len(x), *self.shape)
        answer: Tensor = self.unet(images, time.reshape(()), class_labels=classes, return_dict=False)[0]
        return answer.reshape(len(x), -1)


def load_unet(folder: Path) -> FlatUNet:
    """Return the U-Net of a folder with ``config.json`` and ``diffusion_pytorch_model.safetensors``, float32.

    Raises:
        UserError: if the folder does not hold a whole unconditional or class-conditional ``UNet2DModel`` whose answer
            has the shape of its input.
    """
    config = _read_config(folder / CONFIG)
    shape = _shape(config, folder / CONFIG)
    classes = config.get("num_class_embeds") or 0
    if not isinstance(classes, int) or not 0 <= classes <= MOST_CLASSES:
        raise UserError(f"{folder / CONFIG}: num_class_embeds must be a number of classes, got {classes}")
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder}: has no {WEIGHTS}; save it in its publisher's environment with"
            " model.save_pretrained(folder, safe_serialization=True)"
        )
    from diffusers import UNet2DModel
    from diffusers.utils import logging

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
    return FlatUNet(unet.float().eval().requires_grad_(False), shape, classes)


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
    # Such a network asks for what a class's number is not.
    if config.get("class_embed_type") is not None:
        raise UserError(f"{path}: class_embed_type must be null, got '{config['class_embed_type']}'")
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
