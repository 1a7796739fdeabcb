"""Images of fewer principal components, in as many coordinates as before."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.data.raw import RawData

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmdpipe.specs.data import Digits, Fashion, Photos


def transform(raw: RawData, spec: Digits | Fashion | Photos, rng: np.random.Generator) -> RawData:
    """Return the data, projected on the pool's mean and its ``components`` leading principal components.

    Held-out rows are projected on the same ones. Nothing is random.
    """
    mean = raw.train.mean(axis=0)
    centred = raw.train - mean
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, : spec.components]

    def projected(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return mean + (rows - mean) @ axes @ axes.T

    return replace(
        raw,
        train=projected(raw.train),
        held_out=projected(raw.held_out),
        images=None if raw.images is None else projected(raw.images),
        modes=None if raw.modes is None else projected(raw.modes),
    )
