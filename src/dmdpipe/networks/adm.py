"""The U-Net of ADM with the names of EDM's ``DhariwalUNet``, so that published weights fit as they are.

Formulas from arXiv 2105.05233 (blocks that resample, adaptive group normalisation, heads of 64 channels) and
2206.00364; names and shapes are those of the state dictionaries that NVlabs/edm and tianweiy/DMD2 publish. Dropout is
left out: it does nothing after training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmdpipe.errors import UserError
from dmdpipe.specs.adapter import HEAD_CHANNELS

if TYPE_CHECKING:
    from dmdpipe.specs.adapter import ADM as ADMSpec

GROUPS, SMALLEST_GROUP = 32, 4  # of channels; fewer groups where there are few channels
NORM_EPSILON = 1e-5
LONGEST_PERIOD = 10_000  # of the noise label's embedding, over 2π

PREFIXES = {
    "model.": "EDM's net.state_dict(), and DMD2's pytorch_model.bin as its own demo loads it",
    "module.model.": "the same, saved while wrapped for several GPUs",
    "": "the bare DhariwalUNet",
}
"""What may stand before this module's names in a file, before all of them."""
ANCHOR = "map_layer0.weight"
IGNORED = ("logvar_linear.weight", "logvar_linear.bias")  # FastGen's, for its training: no answer depends on them


class Resampling(nn.Module):
    """Halves or doubles height and width, with a published filter: a mean of 2×2 pixels, or each pixel four times."""

    resample_filter: Tensor

    def __init__(self, *, up: bool):
        super().__init__()
        self.up = up
        self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))

    def resampled(self, x: Tensor) -> Tensor:
        """Map images [B, C, h, w] to [B, C, 2h, 2w] or [B, C, h/2, w/2]."""
        channels = x.shape[1]
        kernel = self.resample_filter.expand(channels, 1, 2, 2)
        if self.up:
            return F.conv_transpose2d(x, 4 * kernel, stride=2, groups=channels)
        return F.conv2d(x, kernel, stride=2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Resample alone."""
        return self.resampled(x)


class ResamplingConv(Resampling):
    """Resamples, then convolves; a module's own ``weight`` and ``bias``, as published."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, up: bool):
        super().__init__(up=up)
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(channels_out))
        nn.init.kaiming_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, h, w] to [B, C', 2h, 2w] or [B, C', h/2, w/2]."""
        return F.conv2d(self.resampled(x), self.weight, self.bias, padding=self.weight.shape[-1] // 2)


def convolution(channels_in: int, channels_out: int, kernel: int, resampling: str | None = None) -> nn.Module:
    """Return a convolution that keeps height and width, after ``resampling``: up, down or none."""
    if resampling is None:
        return nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
    return ResamplingConv(channels_in, channels_out, kernel, up=resampling == "up")


def normalisation(channels: int) -> nn.GroupNorm:
    """Return the group normalisation of so many channels."""
    return nn.GroupNorm(min(GROUPS, channels // SMALLEST_GROUP), channels, eps=NORM_EPSILON)


class Block(nn.Module):
    """A residual block, with self-attention behind it if ``attention``.

    x ← skip(x) + conv1(silu(norm1(conv0(silu(norm0(x))))·(1 + scale) + shift)), with scale and shift affine in the
    embedding; then x ← x + proj(attention(qkv(norm2(x)))).

    Args:
        channels_in: of the block's input.
        channels_out: of its output.
        embedding: size of the embedding.
        resampling: up, down or none.
        attention: whether there is attention, in heads of 64 channels.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int,
        *,
        resampling: str | None = None,
        attention: bool = False,
    ):
        super().__init__()
        self.channels_in, self.channels_out = channels_in, channels_out
        self.heads = channels_out // HEAD_CHANNELS if attention else 0
        self.norm0 = normalisation(channels_in)
        self.conv0 = convolution(channels_in, channels_out, 3, resampling)
        self.affine = nn.Linear(embedding, 2 * channels_out)
        self.norm1 = normalisation(channels_out)
        self.conv1 = convolution(channels_out, channels_out, 3)
        self.skip: nn.Module | None = None
        if channels_in != channels_out:
            self.skip = convolution(channels_in, channels_out, 1, resampling)
        elif resampling is not None:
            self.skip = Resampling(up=resampling == "up")
        if attention:
            self.norm2 = normalisation(channels_out)
            self.qkv = convolution(channels_out, 3 * channels_out, 1)
            self.proj = convolution(channels_out, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map images [B, C, h, w] and embeddings [B, E], or [1, E] for all of them, to images [B, C', h', w']."""
        inner = self.conv0(F.silu(self.norm0(x)))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        inner = self.conv1(F.silu(torch.addcmul(shift, self.norm1(inner), scale + 1)))
        x = inner + (x if self.skip is None else self.skip(x))
        return x + self.proj(self._attended(self.qkv(self.norm2(x)))) if self.heads else x

    def _attended(self, qkv: Tensor) -> Tensor:
        batch, _, height, width = qkv.shape
        # Head by head, and within one channel by channel: its query, its key, its value.
        parts = qkv.reshape(batch, self.heads, HEAD_CHANNELS, 3, height * width).permute(3, 0, 1, 4, 2)
        # A copy in that order: the fast kernels want a place's channels side by side.
        query, key, value = parts.clone(memory_format=torch.contiguous_format).unbind()
        answer = F.scaled_dot_product_attention(query, key, value)
        return answer.transpose(2, 3).reshape(batch, self.channels_out, height, width)


class ADM(nn.Module):
    """F of flat images, channels first: [B, d] with d = C·H·W.

    Args:
        spec: its sizes.
    """

    def __init__(self, spec: ADMSpec):
        super().__init__()
        self.shape = (spec.img_channels, spec.img_resolution, spec.img_resolution)
        self.frequencies = spec.model_channels // 2
        embedding = spec.model_channels * spec.channel_mult_emb
        self.map_layer0 = nn.Linear(spec.model_channels, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.map_label = nn.Linear(spec.label_dim, embedding, bias=False) if spec.label_dim else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        channels, kept = spec.img_channels, []
        for level, mult in enumerate(spec.channel_mult):
            side = spec.img_resolution >> level
            attention = side in spec.attn_resolutions
            if level == 0:
                self.enc[f"{side}x{side}_conv"] = convolution(channels, spec.model_channels * mult, 3)
                channels = spec.model_channels * mult
            else:
                self.enc[f"{side}x{side}_down"] = Block(channels, channels, embedding, resampling="down")
            kept.append(channels)
            for i in range(spec.num_blocks):
                block = Block(channels, spec.model_channels * mult, embedding, attention=attention)
                self.enc[f"{side}x{side}_block{i}"] = block
                channels = block.channels_out
                kept.append(channels)
        for level, mult in reversed(list(enumerate(spec.channel_mult))):
            side = spec.img_resolution >> level
            attention = side in spec.attn_resolutions
            if level == len(spec.channel_mult) - 1:
                self.dec[f"{side}x{side}_in0"] = Block(channels, channels, embedding, attention=True)
                self.dec[f"{side}x{side}_in1"] = Block(channels, channels, embedding)
            else:
                self.dec[f"{side}x{side}_up"] = Block(channels, channels, embedding, resampling="up")
            for i in range(spec.num_blocks + 1):
                block = Block(channels + kept.pop(), spec.model_channels * mult, embedding, attention=attention)
                self.dec[f"{side}x{side}_block{i}"] = block
                channels = block.channels_out
        self.out_norm = normalisation(channels)
        self.out_conv = convolution(channels, spec.img_channels, 3)

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        """Map inputs [B, d], one noise label [1, 1] for all and their classes [B] (int64) to outputs [B, d].

        Without classes a network that has some is asked for none of them, which it may not have been trained for.
        """
        embedding = self.map_layer1(F.silu(self.map_layer0(self._features(label))))
        if self.map_label is not None and classes is not None:
            embedding = embedding + self.map_label.weight.t()[classes]
        embedding = F.silu(embedding)
        images = x.reshape(len(x), *self.shape)
        kept = []
        for block in self.enc.values():
            images = block(images, embedding) if isinstance(block, Block) else block(images)
            kept.append(images)
        for name, block in self.dec.items():
            # Each block at a resolution, in and up apart, reads what one of the first half had there.
            images = block(torch.cat([images, kept.pop()], dim=1) if "_block" in name else images, embedding)
        images = self.out_conv(F.silu(self.out_norm(images)))
        return images.reshape(len(x), -1)

    def _features(self, label: Tensor) -> Tensor:
        steps = torch.arange(self.frequencies, dtype=label.dtype, device=label.device) / self.frequencies
        angles = label.reshape(-1, 1) * (1 / LONGEST_PERIOD) ** steps
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def empty_adm(spec: ADMSpec) -> ADM:
    """Return the network without numbers, on the device ``meta``: names, shapes, and what a call costs."""
    with torch.device("meta"):
        return ADM(spec).eval().requires_grad_(False)


def load_adm(spec: ADMSpec, tensors: Mapping[str, Tensor], where: str) -> ADM:
    """Return the network of a state dictionary, float32.

    Args:
        spec: its sizes.
        tensors: by their published names, after one of ``PREFIXES``.
        where: what to call the file in a message.

    Raises:
        UserError: if a tensor is missing, too many, of another shape or no floats; the first one is named.
    """
    network = empty_adm(spec)
    prefix = _prefix(tensors, where)
    unknown = next((name for name in tensors if not name.startswith(prefix)), None)
    if unknown is not None:
        raise UserError(f"{where}: has a tensor {unknown} beside those that begin with '{prefix}'; take it out")
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    found = {name: tensor for name, tensor in found.items() if name not in IGNORED}
    expected = network.state_dict()
    for name in [*expected, *found]:
        if name not in found:
            raise UserError(f"{where}: lacks the tensor {prefix}{name}; are the adapter's sizes this network's?")
        if name not in expected:
            raise UserError(f"{where}: has a tensor {prefix}{name} that no such network has; are the sizes its own?")
        if found[name].shape != expected[name].shape:
            raise UserError(
                f"{where}: {prefix}{name} is {tuple(found[name].shape)}, but by the adapter's sizes it must be"
                f" {tuple(expected[name].shape)}"
            )
        if not found[name].is_floating_point():
            raise UserError(f"{where}: {prefix}{name} holds {found[name].dtype}, no floating-point numbers")
    network.load_state_dict({name: found[name].float() for name in expected}, assign=True)
    return network.requires_grad_(False)


def _prefix(tensors: Mapping[str, Tensor], where: str) -> str:
    prefixes = sorted(name.removesuffix(ANCHOR) for name in tensors if f".{name}".endswith(f".{ANCHOR}"))
    known = [prefix for prefix in PREFIXES if prefix in prefixes]
    if known:
        return known[0]
    if prefixes:
        allowed = ", ".join(f"'{prefix}'" for prefix in PREFIXES)
        raise UserError(f"{where}: its names begin with '{prefixes[0]}'; known are {allowed}; rename its tensors")
    raise UserError(f"{where}: has no tensor …{ANCHOR}; it holds the weights of another network than 'adm'")
