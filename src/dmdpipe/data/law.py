"""Another law with the images' mean and covariance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.data.raw import GaussianMixture, RawData

if TYPE_CHECKING:
    from dmdpipe.specs.data import Digits, Fashion, Photos


def transform(raw: RawData, spec: Digits | Fashion | Photos, rng: np.random.Generator) -> RawData:
    """Return samples of the Gaussian that has the pool's mean and covariance, and that Gaussian as exact.

    No image stands behind them: source and licence stay, since the moments are the images'.
    """
    mean = raw.train.mean(axis=0)
    centred = raw.train - mean
    variances, basis = np.linalg.eigh(centred.T @ centred / len(centred))
    # Another LAPACK may choose other signs, which would draw other samples.
    largest = basis[np.abs(basis).argmax(axis=0), np.arange(len(basis))]
    basis = basis * np.where(largest < 0, -1.0, 1.0)
    gaussian = GaussianMixture(
        weights=np.ones(1),
        means=mean[None, :],
        basis=basis,
        # Rounding makes zeros negative.
        variances=np.maximum(variances, 0)[None, :],
    )
    return RawData(
        train=gaussian.sample(len(raw.train), rng),
        held_out=gaussian.sample(len(raw.held_out), rng),
        exact=gaussian,
        source=f"a Gaussian with mean and covariance of: {raw.source}",
        licence=raw.licence,
        dequantisation=raw.dequantisation,
    )
