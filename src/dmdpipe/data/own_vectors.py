"""Vectors of the user's own, from one array."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.data.own_file import load_own, split
from dmdpipe.data.raw import RawData
from dmdpipe.errors import UserError

if TYPE_CHECKING:
    from dmdpipe.specs.data import OwnVectors


def draw(spec: OwnVectors, rng: np.random.Generator) -> RawData:
    """Return the vectors: row i is vector ``i mod m``. Nothing but the split is random, and that is always the same.

    Raises:
        UserError: if the file is not the one that the spec means, or holds no vectors of ``spec.dim`` numbers.
    """
    vectors = load_own(spec)
    if vectors.ndim != 2 or vectors.shape[1] != spec.dim:
        raise UserError(
            f"data.dim: {spec.dim}, but own_data.{spec.name} has shape {vectors.shape}, not (n, {spec.dim})"
        )
    train, held_out = (rows.astype(np.float64) for rows in split(vectors, f"own_data.{spec.name}"))
    return RawData(
        train=train[np.arange(spec.n_train) % len(train)],
        held_out=held_out[np.arange(spec.n_held_out) % len(held_out)],
        source=f"own data '{spec.name}', sha256 {spec.sha256}",
        licence="not known to dmdpipe",
    )
