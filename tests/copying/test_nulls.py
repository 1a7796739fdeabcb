"""The negative control, and the dimension artefact of every assignment or retrieval metric."""

import numpy as np
import pytest

from dmdpipe.copying.nulls import dimension_matched_null, shuffled_pairing
from dmdpipe.copying.pairing_metrics import relative_pair_error


@pytest.mark.parametrize("n", [2, 3, 10, 1_000])
@pytest.mark.parametrize("seed", [0, 1])
def test_shuffling_leaves_no_pair_in_place(n, seed):
    permutation = shuffled_pairing(n, seed)
    assert sorted(permutation) == list(range(n))
    assert not np.any(permutation == np.arange(n))
    assert np.array_equal(permutation, shuffled_pairing(n, seed))


def test_shuffling_a_single_row_is_refused():
    with pytest.raises(ValueError, match="fixed point"):
        shuffled_pairing(1, 0)


def test_a_shuffled_copy_reads_one():
    t = np.random.default_rng(0).standard_normal((1_000, 16))
    rhos = [relative_pair_error(t, t[shuffled_pairing(1_000, seed)]) for seed in range(5)]
    assert rhos == pytest.approx(np.ones(5), abs=0.03)
    assert len(set(rhos)) == 5


@pytest.mark.parametrize(
    ("d", "delta_e", "retrieval"),
    [(64, 0.86, 0.01), (784, 0.49, 0.06), (12_288, 0.00, 0.91)],
)
def test_the_dimension_artefact(d, delta_e, retrieval):
    # The same weak correlation in every dimension "becomes" copying in ΔE and retrieval, not in ρ.
    null = dimension_matched_null(d, 400, seed=0)
    assert null.delta_e == pytest.approx(delta_e, abs=0.03)
    assert null.retrieval_at_1 == pytest.approx(retrieval, abs=0.04)


@pytest.mark.parametrize("d", [64, 784])
def test_rho_does_not_share_the_artefact(d):
    s, e = np.random.default_rng(0).standard_normal((2, 400, d))
    assert relative_pair_error(s, 0.05 * s + np.sqrt(1 - 0.05**2) * e) == pytest.approx(0.95, abs=0.02)


def test_the_null_at_its_ends():
    assert dimension_matched_null(8, 50, 1.0, seed=0) == (0.0, 1.0)
    unrelated = dimension_matched_null(4, 1_000, 0.0, seed=0)
    assert unrelated.delta_e == pytest.approx(1, abs=0.1)
    assert unrelated.retrieval_at_1 < 0.01
