"""Other coordinates: samples of k numbers, written in d ≥ k by a fixed isometry."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.data.raw import GaussianMixture, RawData
from dmdpipe.data.rotations import random_rotation
from dmdpipe.specs.data import dimension

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmdpipe.specs.data import DataSpec


def transform(raw: RawData, spec: DataSpec, rng: np.random.Generator) -> RawData:
    """Return the data x ↦ E·x, with E [d, k] the first k columns of a random rotation or permutation of d axes.

    E depends on d and on the kind of axes, not on the family: all data of one d and k lie in one subspace. Distances,
    and an exact distribution, are kept; in the d − k other directions nothing varies.
    """
    if spec.ambient is None:
        raise ValueError("the spec asks for no other coordinates")
    dim, own = dimension(spec), raw.train.shape[1]
    whole = random_rotation(dim, rng) if spec.ambient.axes == "rotated" else np.eye(dim)[rng.permutation(dim)]
    columns = whole[:, :own]

    def moved(rows: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        return None if rows is None else rows @ columns.T

    return replace(
        raw,
        train=raw.train @ columns.T,
        held_out=raw.held_out @ columns.T,
        modes=moved(raw.modes),
        images=moved(raw.images),
        exact=None if raw.exact is None else _embedded(raw.exact, whole),
    )


def _embedded(own: GaussianMixture, whole: NDArray[np.float64]) -> GaussianMixture:
    k, others = own.means.shape[1], len(whole) - own.means.shape[1]
    basis = whole.copy()
    basis[:, :k] = whole[:, :k] @ own.basis
    return GaussianMixture(
        weights=own.weights,
        means=own.means @ whole[:, :k].T,
        basis=basis,
        variances=np.pad(own.variances, ((0, 0), (0, others))),
    )
