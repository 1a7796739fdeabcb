"""Opening a teacher or a student, of a step's folder or of weights with an adapter, as a map of noise."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dmdpipe.artifacts.manifest import FILE_NAME
from dmdpipe.artifacts.stages import find_stage
from dmdpipe.artifacts.tensors import decode_tensors
from dmdpipe.audit.tree import read_artifact
from dmdpipe.data.layout import image_shape
from dmdpipe.data.own_file import read_whole
from dmdpipe.diffusion.teacher import load_teacher, load_weights
from dmdpipe.distill.student import Student, build_student
from dmdpipe.errors import UserError
from dmdpipe.files import open_ordinary, read_ordinary
from dmdpipe.measuring.hub import folder_from_hub
from dmdpipe.networks.adapted import AdaptedDenoiser, WithLabels
from dmdpipe.networks.adm import load_adm
from dmdpipe.networks.mlp import build
from dmdpipe.networks.unet import CONFIG, WEIGHTS, FlatUNet, load_unet
from dmdpipe.pairing.classes import Classes
from dmdpipe.specs.adapter import Adapter
from dmdpipe.specs.adapter import UNet as AdaptedUNet
from dmdpipe.specs.data import are_images, dimension
from dmdpipe.specs.diffusion import NoiseRange, TeacherSpec
from dmdpipe.specs.problems import parse

if TYPE_CHECKING:
    from dmdpipe.diffusion.sampler import DenoiserFunction

# Those that hold objects with their code, and those that may hold no more than tensors.
OBJECTS, STATES = (".pkl", ".pickle"), (".pt", ".pth", ".bin", ".ckpt")
LARGEST_ADAPTER = 2**16  # bytes
ADAPTER = "adapter.json"


@dataclass(frozen=True)
class Images:
    """How images lie in rows [n, d]: as (C, H, W), or as (H, W, C), with the channels of a pixel side by side.

    Attributes:
        channels, height, width: C, H and W.
        channels_first: which of the two.
    """

    channels: int
    height: int
    width: int
    channels_first: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W), however they lie."""
        return self.channels, self.height, self.width

    def lying(self, rows: Tensor, channels_first: bool) -> Tensor:
        """Return the same images [n, d] as they lie with channels first or last."""
        if self.channels_first == channels_first:
            return rows
        if channels_first:
            return rows.reshape(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2).reshape(rows.shape)
        return rows.reshape(-1, *self.shape).permute(0, 2, 3, 1).reshape(rows.shape)

    def __str__(self) -> str:
        return "×".join(map(str, self.shape))


@dataclass(frozen=True)
class Model:
    """A teacher or a student, ready to be asked.

    Attributes:
        path: where it lies.
        dim: number of coordinates d.
        files: SHA-256 of each file that was read, by its path.
        denoiser: D(x [B, d], σ [1, 1]) → [B, d]; None of a student of this project. With ``classes``, its third
            argument is the class of each row [B].
        student: S, of a student of this project.
        noise_range: the noise levels that it was made for.
        teacher: the spec of the teacher that it was distilled from, or that it is, where that is known.
        ends_at: the largest σ of its training, where there is one.
        classes: what it is asked for, if its network has classes.
        unpinned: the checksums of weights which their adapter names and does not state, by that name.
        images: how images lie in its rows; None where they are none, or nothing says so.
    """

    path: Path
    dim: int
    files: dict[str, str]
    noise_range: NoiseRange
    denoiser: DenoiserFunction | None = None
    student: Student | None = None
    teacher: TeacherSpec | None = None
    ends_at: float | None = None
    classes: Classes | None = None
    unpinned: dict[str, str] = field(default_factory=dict)
    images: Images | None = None

    def on(self, device: torch.device) -> Model:
        """Move the model to a device."""
        held: Any = self.student or self.denoiser
        return replace(self, **{"student" if self.student else "denoiser": held.to(device)})

    def asked_for(self, classes: Tensor | None) -> DenoiserFunction:
        """Return the denoiser for rows of these classes [B], if it must be told; else as it is."""
        assert self.denoiser
        if self.classes is None:
            return self.denoiser
        told: Any = self.denoiser
        return lambda x, sigma: told(x, sigma, classes)

    def one_step(self, z: Tensor, between: list[Tensor], sigma_max: float, classes: Tensor | None = None) -> Tensor:
        """Return S(z) [B, d]: a student's sample, with the noise between its steps, or a denoiser's answer at σ_max."""
        if self.student is not None:
            dtype = next(self.student.parameters()).dtype
            asked = () if classes is None or self.classes is None else (classes,)
            sample: Tensor = self.student(z.to(dtype), [noise.to(dtype) for noise in between], *asked)
            return sample.float()
        return self.asked_for(classes)(sigma_max * z, z.new_full((1, 1), sigma_max))


def open_model(path: Path, adapter: Path | None = None) -> Model:
    """Return the model of a step's folder (teacher, student or member), a diffusers folder or a safetensors file.

    Args:
        path: of that folder or of the weights in it, or the name of a U-Net on a hub.
        adapter: of the JSON file that describes weights which are no step's; else it lies beside them.

    Raises:
        UserError: if it is none of these, or damaged. Pickles are never opened.
    """
    if not path.exists():
        path = folder_from_hub(path, (CONFIG, WEIGHTS, ADAPTER))
    if path.suffix in OBJECTS:
        raise UserError(
            f"{path}: is a pickle of whole objects, which runs any code when it is read; where you trust it, in a clone"
            f" of its publisher's repository (EDM's: NVlabs/edm), run: python -m pip install safetensors; then:"
            f" {_unpickling(path)}"
        )
    if path.suffix in STATES:
        files = f"{quote(str(path))} {quote(str(path.with_suffix('.safetensors')))}"
        raise UserError(
            f"{path}: is a pickle, which can run any code when it is read; if it is a dictionary of tensors, run:"
            f" dmdpipe convert {files}; else, in its publisher's environment:"
            " safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        )
    folder = path.parent if path.is_file() else path
    if (folder / FILE_NAME).exists():
        return _of_step(path, folder)
    if path.is_dir() and (path / CONFIG).exists():
        return _of_folder(path, adapter or path / ADAPTER)
    if path.is_file() and path.suffix == ".safetensors":
        beside = path.with_suffix(".json")
        if _is_config(beside) or ((folder / CONFIG).exists() and not beside.exists()):
            beside = folder / ADAPTER
        return _of_file(path, adapter or beside)
    within = f"; try {path / 'unet'}" if (path / "unet" / CONFIG).exists() else ""
    raise UserError(f"{path}: is no step's folder, no folder with {CONFIG} and {WEIGHTS}, no .safetensors file{within}")


def _unpickling(path: Path) -> str:
    """Return the command that saves a published network's averaged weights, to be copied into a shell."""
    # A name that a shell or Python would take for more than a name has no place in a command.
    name = path.name if re.fullmatch(r"[\w.-]+", path.name) else "FILE.pkl"
    return (
        f"python -c \"import pickle, safetensors.torch as s; n = pickle.load(open('{name}', 'rb'))['ema'];"
        f" s.save_file({{k: v.contiguous() for k, v in n.state_dict().items()}}, '{Path(name).stem}.safetensors')\""
    )


def _of_step(named: Path, path: Path) -> Model:
    artifact = read_artifact(path)
    result = artifact.manifest.result
    spec = find_stage(result.stage).parse(result.spec)
    if result.stage not in ("teacher", "student", "member"):
        raise UserError(f"{path}: is a step '{result.stage}'; name one in teachers/, students/ or members/")
    name = "model.safetensors" if result.stage == "teacher" else "snapshots.safetensors"
    if named not in (path, path / name):
        raise UserError(f"{named}: lies in the folder of a step; name that folder, or its {name}")
    tensors = decode_tensors(artifact.read(name), str(path / name))
    files = {str(path / name): result.payload[name].sha256}
    if result.stage == "teacher":
        return Model(
            path,
            dimension(spec.data),
            files,
            NoiseRange(),
            denoiser=load_teacher(spec, tensors),
            teacher=spec,
            classes=_classes_of(spec),
            images=_images_of(spec),
        )
    if spec.network.kind == "particles":
        raise UserError(
            f"{path}: its particles answer to the noises that they were made for, and to no others; its own study has"
            " measured them: see its metrics step"
        )
    tensors.pop("generator_step")
    student = build_student(spec).requires_grad_(False)
    # The last snapshot: the one at which studies are read.
    load_weights(student, {name: stacked[-1] for name, stacked in tensors.items()})
    return Model(
        path,
        dimension(spec.teacher.data),
        files,
        spec.noise_range,
        student=student,
        teacher=spec.teacher,
        classes=_classes_of(spec.teacher),
        images=_images_of(spec.teacher),
    )


def _classes_of(teacher: TeacherSpec) -> Classes | None:
    return Classes(teacher.classes) if teacher.classes else None


def _images_of(teacher: TeacherSpec) -> Images | None:
    if not are_images(teacher.data):
        return None
    side, colours = image_shape(dimension(teacher.data))
    return Images(colours, side, side, channels_first=False)


def _of_folder(path: Path, adapter_path: Path) -> Model:
    adapter = read_adapter(adapter_path)
    if adapter.network.kind != "unet":
        raise UserError(f"{adapter_path}: network.kind '{adapter.network.kind}': a folder with {CONFIG} is a 'unet'")
    return _of_unet(path, path / WEIGHTS, path / CONFIG, adapter, adapter.network, adapter_path)


def _of_unet(
    path: Path, weights: Path, config: Path, adapter: Adapter, asked: AdaptedUNet, adapter_path: Path
) -> Model:
    unet = _loaded_unet(weights, config)
    _check_sides(unet, config)
    if max(asked.drawn_from or 0, -1 if asked.label is None else asked.label + 1, 0) > unet.classes:
        key = "label" if asked.drawn_from is None else "drawn_from"
        has = (
            f"{unet.classes} classes: give one, 0 to {unet.classes - 1}" if unet.classes else "no classes: leave it out"
        )
        raise UserError(f"{adapter_path}: network.{key} is {getattr(asked, key)}, but the network of {path} has {has}")
    files = {str(file): _sha256(file) for file in (config, weights, adapter_path)}
    return Model(
        path,
        math.prod(unet.shape),
        files,
        _range_of(adapter),
        denoiser=_adapted(unet, adapter),
        ends_at=_range_of(adapter).sigma_max if adapter.schedule else None,
        classes=Classes(unet.classes, asked.label, asked.drawn_from) if unet.classes else None,
        unpinned=_unpinned(weights, files[str(weights)], adapter, adapter_path),
        images=Images(*unet.shape, channels_first=True),
    )


def _of_file(path: Path, adapter_path: Path) -> Model:
    adapter = read_adapter(adapter_path)
    if adapter.network.kind == "unet":
        named, beside = adapter.network.config, path.with_suffix(".json")
        config = adapter_path.parent / named if named else beside if _is_config(beside) else path.parent / CONFIG
        if not config.exists():
            raise UserError(
                f"{path}: network.kind in {adapter_path} says 'unet', whose weights need their {CONFIG}: put it beside"
                f" them, there or as {beside.name}, or name it as network.config; {config} is not there"
            )
        # The name that diffusers gives to all weights says nothing.
        shown = path.parent if path.name == WEIGHTS and config == path.parent / CONFIG else path
        return _of_unet(shown, path, config, adapter, adapter.network, adapter_path)
    try:
        data = read_whole(path.resolve())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    checksum = hashlib.sha256(data).hexdigest()
    unpinned = _unpinned(path, checksum, adapter, adapter_path)
    files = {str(path): checksum, str(adapter_path): _sha256(adapter_path)}
    tensors = _decoded(data, path)
    if adapter.network.kind == "adm":
        sizes = adapter.network
        adm = load_adm(sizes, tensors, str(path))
        return Model(
            path,
            math.prod(adm.shape),
            files,
            _range_of(adapter),
            denoiser=_adapted(adm, adapter),
            classes=Classes(sizes.label_dim, sizes.label, sizes.drawn_from) if sizes.label_dim else None,
            unpinned=unpinned,
            images=Images(*adm.shape, channels_first=True),
        )
    try:
        dim = len(tensors["output.bias"])
        network = build(dim, adapter.network)
        network.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: its tensors are not those of the network in {adapter_path} ({reason})") from None
    denoiser = _adapted(WithLabels(network), adapter)
    return Model(path, dim, files, _range_of(adapter), denoiser=denoiser, unpinned=unpinned)


def _is_config(path: Path) -> bool:
    """Whether this is the config of a network, and no adapter: diffusers names the class in all of its own."""
    try:
        value = json.loads(read_ordinary(path.resolve(), LARGEST_ADAPTER))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "_class_name" in value


def _loaded_unet(weights: Path, config: Path) -> FlatUNet:
    """Return the U-Net of two files of any names, wherever they lie."""
    folder = weights.parent
    if (weights, config) == (folder / WEIGHTS, folder / CONFIG):
        return load_unet(folder)
    # diffusers opens folders alone: one that holds the two, by the names that it knows.
    with tempfile.TemporaryDirectory() as made:
        links = {str(Path(made, WEIGHTS)): weights, str(Path(made, CONFIG)): config, made: weights}
        for name, file in list(links.items())[:2]:
            os.symlink(file.resolve(), name)
        try:
            return load_unet(Path(made))
        except UserError as error:
            said = str(error)
            for name, file in links.items():
                said = said.replace(name, str(file))
            raise UserError(said) from None


@torch.no_grad()
def _check_sides(unet: FlatUNet, config: Path) -> None:
    """Refuse sides that the levels cannot halve and double again.

    Raises:
        UserError: if the network itself fails at them: others may have blocks that take any side.
    """
    inner: Any = unet.unet
    factor = 2 ** (len(inner.config.block_out_channels) - 1)
    if unet.shape[1] % factor == unet.shape[2] % factor == 0:
        return
    classes = torch.zeros(1, dtype=torch.int64) if unet.classes else None
    try:
        unet(torch.zeros(1, math.prod(unet.shape)), torch.zeros(1, 1), classes)
    except RuntimeError:
        height, width = unet.shape[1:]
        raise UserError(
            f"{config}: sample_size, {height}×{width}, must be divisible by {factor}, since its levels halve it so"
            " often; give the size that the network was trained at"
        ) from None


def _unpinned(path: Path, checksum: str, adapter: Adapter, adapter_path: Path) -> dict[str, str]:
    """Return the checksum of weights by their name in the adapter, if that names them without one.

    Raises:
        UserError: if it states another, or states some and names none of these weights.
    """
    # By where the file was named to lie, and not by what a link there leads to.
    parts = Path(os.path.abspath(path)).parts
    names = [name for name in adapter.weights if parts[-len(Path(name).parts) :] == Path(name).parts]
    name = max(names, key=lambda name: len(Path(name).parts), default=None)
    if name is None:
        pinned = [name for name, known in adapter.weights.items() if known.sha256]
        if pinned:
            raise UserError(
                f"{path}: is none of the weights that {adapter_path} pins ({', '.join(pinned)}): take the right file,"
                " or add this one to weights"
            )
        return {}
    known = adapter.weights[name].sha256
    if known is not None and known != checksum:
        raise UserError(
            f"{path}: its sha256 is {checksum}, but {adapter_path} pins {known} in weights: take the right file,"
            " or make it again"
        )
    return {} if known else {name: checksum}


def _decoded(data: bytes, path: Path) -> dict[str, Tensor]:
    """Return a file's tensors by name; by the loader of torch, since NumPy has no bfloat16."""
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is no valid safetensors file ({reason}); convert or copy it again") from None


def _adapted(network: nn.Module, adapter: Adapter) -> AdaptedDenoiser:
    return AdaptedDenoiser(network, adapter).requires_grad_(False)


def _range_of(adapter: Adapter) -> NoiseRange:
    if adapter.schedule is None:
        return NoiseRange()
    sigmas = adapter.schedule.sigmas()
    return NoiseRange(sigma_min=sigmas[0], sigma_max=sigmas[-1])


def read_adapter(path: Path) -> Adapter:
    """Return what an adapter's file says.

    Raises:
        UserError: if there is none, or it is wrong.
    """
    try:
        value = json.loads(read_ordinary(path.resolve(), LARGEST_ADAPTER))
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such file; it must say what the weights mean, e.g."
            ' {"network": {"kind": "unet"}, "prediction": "epsilon", "schedule": {}}'
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'it is no JSON'})") from None
    return parse(Adapter, value, str(path))


def _sha256(path: Path) -> str:
    with open_ordinary(path.resolve()) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
