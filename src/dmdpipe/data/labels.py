"""Which class each row of the data is of."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.data.images import chosen
from dmdpipe.specs.data import Digits, Fashion, Mixture, Ring

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmdpipe.data.raw import RawData
    from dmdpipe.specs.data import DataSpec


def labels_of_rows(raw: RawData, spec: DataSpec, rng: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """Return ``labels`` [n] and ``labels_held_out`` [m], 0 … classes − 1, of the rows of ``raw``.

    An image's is that which its publisher gave it. A sample's of a mixture is its nearest mode, which is the component
    that it was drawn from where modes lie well apart.

    Args:
        raw: the data.
        spec: theirs.
        rng: a stream like the one that the family's ``draw`` began with.
    """
    if isinstance(spec, Ring | Mixture):
        assert raw.modes is not None
        return {"labels": nearest(raw.train, raw.modes), "labels_held_out": nearest(raw.held_out, raw.modes)}
    assert isinstance(spec, Digits | Fashion)
    train, held_out = import_module(f"dmdpipe.data.{spec.family}").split_labels(rng)
    # Row i is of image i mod m, as in ``dmdpipe.data.images.image_rows``.
    return {
        name: labels[np.arange(len(rows)) % len(labels)].astype(np.int64)
        for name, rows, labels in (
            ("labels", raw.train, chosen(train, spec)),
            ("labels_held_out", raw.held_out, held_out),
        )
    }


def nearest(points: NDArray[np.float64], modes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index [n] of the mode [k, d] that is nearest to each point [n, d]."""
    # Without the points' own squares, which all modes of a point share.
    return (0.5 * np.square(modes).sum(axis=1) - points @ modes.T).argmin(axis=1).astype(np.int64)
