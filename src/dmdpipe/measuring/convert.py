"""``dmdpipe convert``: the tensors of a pickled state dictionary as safetensors.

The only place that opens a pickle, for weights that are published in no other form, and only where a user asks for it
by name. It is read by torch's own unpickler of weights, which makes tensors, numbers, texts and containers of these,
and refuses to import or call anything else.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from dmdpipe.artifacts.atomic import sync_folder, write_synced
from dmdpipe.artifacts.disk import failures_told
from dmdpipe.errors import UserError
from dmdpipe.files import open_ordinary


def convert(
    source: Annotated[Path, typer.Argument(help="a state dictionary that torch.save wrote: .bin, .pt, .pth, .ckpt")],
    out: Annotated[Path, typer.Argument(help="a .safetensors file that is not there yet")],
    within: Annotated[str, typer.Option("--within", help="keys that lead to it, with dots between: model.net")] = "",
) -> None:
    """Convert a pickled dictionary of tensors to safetensors, and print the checksums of both.

    Nothing else of dmdpipe opens a pickle. A file that holds more than tensors, numbers and texts is refused, unread.

    \b
    dmdpipe convert pytorch_model.bin dmd2-imagenet-64x64.safetensors
    """
    import safetensors.torch

    if out.suffix != ".safetensors":
        raise UserError(f"{out}: must end in .safetensors")
    if os.path.lexists(out):
        raise UserError(f"{out}: is there already; name a new file, or remove it")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out.absolute().parent}: is no folder; make it first")
    with _folder_beside(out) as private:
        tensors, digest = _read(source, within)
        try:
            data = safetensors.torch.save(tensors)
        except (ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{source}: cannot be kept as safetensors ({reason}); save plain tensors") from None
        _publish(data, private / out.name, out)
    typer.echo(f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} numbers")
    typer.echo(f"{digest}  {source}\n{hashlib.sha256(data).hexdigest()}  {out}")


@contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """Make a folder of its own for what is to become ``out``, and remove it after the block.

    Raises:
        UserError: if nothing can be written there, at first or in the block.
    """
    try:
        with (
            failures_told(out),
            tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.absolute().parent) as private,
        ):
            yield Path(private)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); name a file elsewhere") from None


def _publish(data: bytes, whole: Path, out: Path) -> None:
    """Make a file that is whole from its first moment, and never in another's place.

    Raises:
        UserError: if there is one by then.
        OSError: if the disk fails.
    """
    write_synced(whole, data)
    try:
        # A second name for the file: unlike a new name, refused where somebody has taken it in the meantime.
        os.link(whole, out)
    except FileExistsError:
        raise UserError(f"{out}: was made by another program meanwhile; name a new file, or remove it") from None
    sync_folder(out.absolute().parent)


def _read(source: Path, within: str) -> tuple[dict[str, Any], str]:
    """Return the tensors of a pickled state dictionary, each with memory of its own, and the file's SHA-256."""
    import torch

    try:
        with open_ordinary(source.resolve()) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            with warnings.catch_warnings(action="ignore"):  # of pickles by other protocols than torch's own
                # weights_only: see above. Never leave it out, and never call this from anywhere else.
                held = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror or error})") from None
    except Exception as error:
        # Whatever a file that was made to harm brings up, besides torch's own refusal.
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"{source}: is no dictionary of tensors alone, and was not opened ({reason}); where you trust it, save"
            " model.state_dict() with safetensors.torch.save_file in its publisher's environment"
        ) from None
    for key in within.split(".") if within else ():
        if not isinstance(held, Mapping) or key not in held:
            keys = ", ".join(str(known) for known in list(held)[:9]) if isinstance(held, Mapping) else "none"
            raise UserError(f"--within: {source} has no '{key}' there; its keys are {keys}")
        held = held[key]
    if not isinstance(held, Mapping) or not held:
        raise UserError(f"{source}: holds no dictionary of tensors there, but {type(held).__name__}; give --within")
    for name, value in held.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(
                f"{source}: '{name}' is no tensor, but {type(value).__name__}; if the weights lie below it, give"
                f" --within {name}"
            )
        plain = value.layout == torch.strided and not value.is_quantized and not value.is_meta
        # A small file can say one number any number of times.
        if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{source}: '{name}' is no plain tensor of numbers; save it as one")
    return {name: value.detach().clone().contiguous() for name, value in held.items()}, digest
