"""The optimal assignment against every permutation, closed forms and SciPy's."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from dmdpipe.kernels.assignment import optimal_assignment


def total(costs, columns):
    assert sorted(columns) == list(range(len(costs)))
    return costs[np.arange(len(costs)), columns].sum()


def draw(*shape):
    return np.random.default_rng(list(shape)).standard_normal(shape)


@pytest.mark.parametrize("n", range(1, 7))
def test_no_permutation_is_cheaper(n):
    for costs in (draw(n, n), np.round(draw(n, n)), -np.abs(draw(n, n))):
        found = total(costs, optimal_assignment(costs))
        assert found == pytest.approx(min(total(costs, one) for one in permutations(range(n))), abs=1e-12)


@pytest.mark.parametrize("n", [7, 8, 9, 100, 257])
@pytest.mark.parametrize("kind", ["normal", "ties", "in the plane", "offset"])
def test_it_costs_what_scipys_does(n, kind):
    x, y = draw(n, 2), draw(2, n).T
    costs = {
        "normal": draw(n, n),
        "ties": np.floor(3 * draw(n, n)),
        "in the plane": np.square(x[:, None] - y).sum(-1),
        "offset": 1e6 + draw(n, n),
    }[kind]
    rows, columns = linear_sum_assignment(costs)
    assert total(costs, optimal_assignment(costs)) == pytest.approx(costs[rows, columns].sum(), rel=1e-12)


def test_on_a_line_the_order_is_kept():
    x, y = draw(300), draw(301)[:300]
    found = optimal_assignment(np.square(x[:, None] - y))
    assert (np.argsort(np.argsort(y))[found] == np.argsort(np.argsort(x))).all()


def test_a_planted_permutation_is_found():
    costs, planted = np.abs(draw(200, 200)), np.random.default_rng(0).permutation(200)
    costs[np.arange(200), planted] = -1
    assert (optimal_assignment(costs) == planted).all()


@pytest.mark.parametrize("n", [1, 7, 100])
def test_prices_decide_nothing_and_end_as_the_problems_own(n):
    x, y = draw(n, 2), draw(2, n).T
    costs = np.square(x[:, None] - y).sum(-1)
    alone = optimal_assignment(costs)
    for start in (np.zeros(n), 100 * draw(1, n)[0], np.square(x[:, None] - (y + 0.01)).sum(-1).min(axis=0)):
        prices = start.copy()
        assert (optimal_assignment(costs, prices) == alone).all()
        over = costs - prices
        np.testing.assert_allclose(over[np.arange(n), alone], over.min(axis=1), atol=1e-12)
        again = prices.copy()
        assert (optimal_assignment(costs, again) == alone).all()
        np.testing.assert_allclose(again, prices, atol=1e-12)


def test_where_everything_costs_the_same_rows_keep_their_places():
    assert (optimal_assignment(np.zeros((500, 500))) == np.arange(500)).all()


@pytest.mark.parametrize(
    "costs",
    [
        np.zeros((2, 3)),
        np.array([[np.nan]]),
        np.array([[np.inf, 0], [0, 0]]),
        np.array([[1e300, 0], [0, 0]]),
        np.zeros((0, 0)),
    ],
)
def test_what_is_no_square_of_finite_costs_is_refused(costs):
    with pytest.raises(ValueError, match="a square matrix of finite costs"):
        optimal_assignment(costs)


@pytest.mark.parametrize("prices", [np.zeros(3), np.full(4, np.nan), np.full(4, np.inf), np.full(4, 1e300)])
def test_prices_that_are_none_are_refused(prices):
    with pytest.raises(ValueError, match="finite prices of 4 columns"):
        optimal_assignment(draw(4, 4), prices)
