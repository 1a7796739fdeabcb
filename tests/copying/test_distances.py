"""Distances between all points of two sets, against numpy's, however the points lie in memory."""

from __future__ import annotations

import numpy as np
import pytest

from dmdpipe.copying.distances import mean_distance, squared_distances


@pytest.mark.parametrize("lie", [np.asfortranarray, lambda x: np.repeat(x, 2, axis=0)[::2], lambda x: x[::-1][::-1]])
def test_how_points_lie_in_memory_does_not_matter(lie) -> None:
    """The kernel in C reads rows that follow one another."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((70, 5)), rng.standard_normal((41, 5))
    distances = np.linalg.norm(x[:, None] - y, axis=2)
    assert mean_distance(lie(x), lie(y)) == pytest.approx(distances.mean(), rel=1e-12)
    np.testing.assert_allclose(squared_distances(lie(x), lie(y)), distances**2, rtol=1e-12)
