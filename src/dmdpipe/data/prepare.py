"""The data step: draw a family's samples, centre them and bring them to the common scale."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from dmdpipe.errors import UserError, did_you_mean
from dmdpipe.seeds import derive_seed
from dmdpipe.specs.data import FAMILIES, SIGMA_DATA, class_count, data_name, dimension, transformations

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmdpipe.artifacts.step import Step
    from dmdpipe.data.raw import RawData
    from dmdpipe.specs.data import DataSpec

MAX_LISTED_DIM = 784


def prepare_data(step: Step) -> None:
    """Write ``data.safetensors`` and ``facts.json`` for the step's ``DataSpec``."""
    tensors, facts = prepare(step.spec)
    step.write_tensors("data.safetensors", tensors)
    step.write_json("facts.json", facts)


def prepare(spec: DataSpec) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """Return the tensors and the facts of one dataset, the same for the same spec.

    Everything is shifted by one vector and multiplied by one number, in float64, so that the mean variance of
    a coordinate is σ_data² = 0.25: of the exact distribution where it is known, else of the training pool.

    Returns:
        tensors: ``train`` [n, d] and ``held_out`` [m, d], float32; ``modes`` [k, d], float32, where the modes
            are known; ``images`` [n_images, d], float32, the distinct training images without noise, of image
            families; ``labels`` [n] and ``labels_held_out`` [m], int64, where the spec asks for them;
            ``exact.weights`` [k], ``exact.means`` [k, d], ``exact.basis`` [d, d] and
            ``exact.variances`` [k, d], float64, where the distribution is a known Gaussian mixture.
        facts: name, dimension, the shift (``raw_mean``, where d ≤ 784), the spread in raw units, the factor
            (``scale``), source, licence, dequantisation and the number of distinct training images (or null).

    Raises:
        UserError: if the family's files cannot be had, or the training pool has no spread to scale by.
    """
    raw = _draw(spec)
    mean = raw.train.mean(axis=0) if raw.exact is None else raw.exact.mean()
    variance = float(raw.train.var(axis=0).mean()) if raw.exact is None else raw.exact.mean_variance()
    if variance == 0:
        raise UserError(f"data.n_train: all rows of {data_name(spec)} are equal at n_train {spec.n_train}; raise it")
    raw_spread = variance**0.5
    scale = SIGMA_DATA / raw_spread

    tensors = {
        "train": ((raw.train - mean) * scale).astype(np.float32),
        "held_out": ((raw.held_out - mean) * scale).astype(np.float32),
    }
    for name, rows in (("modes", raw.modes), ("images", raw.images)):
        if rows is not None:
            tensors[name] = ((rows - mean) * scale).astype(np.float32)
    if class_count(spec):
        # By name, so that an edit of it touches only the data that have labels.
        labels = importlib.import_module("dmdpipe.data.labels")
        tensors |= labels.labels_of_rows(raw, spec, _stream(spec.family))
    if raw.exact is not None:
        tensors |= {f"exact.{name}": array for name, array in vars(raw.exact.scaled(mean, scale)).items()}

    facts = {
        "name": data_name(spec),
        "dim": dimension(spec),
        "raw_spread": raw_spread,
        "scale": scale,
        "dequantisation": raw.dequantisation,
        "source": raw.source,
        "licence": raw.licence,
        "n_images": raw.n_images,
    }
    if dimension(spec) <= MAX_LISTED_DIM:
        facts["raw_mean"] = mean.tolist()
    return tensors, facts


def _draw(spec: DataSpec) -> RawData:
    """Call the modules of family and transformations, imported only now: a step's code is that of its own ones."""
    if spec.family not in FAMILIES:
        raise UserError(f"data.family: '{spec.family}' is unknown{did_you_mean(spec.family, FAMILIES)}")
    family = importlib.import_module(f"dmdpipe.data.{spec.family}")
    raw: RawData = family.draw(spec, _stream(spec.family))
    for name in transformations(spec):
        raw = importlib.import_module(f"dmdpipe.data.{name}").transform(raw, spec, _stream(name))
    return raw


def _stream(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=derive_seed(0, "data", name)))
