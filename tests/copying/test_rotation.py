"""The rotation of a linear map: planted ones come out, also where the covariance has no full rank."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import polar, sqrtm
from scipy.stats import special_ortho_group

from dmdpipe.copying.measure import measure
from dmdpipe.copying.rotation import rotation

D = 6
Z = np.random.default_rng(0).standard_normal((200, D))
BASIS = special_ortho_group.rvs(D, random_state=1)
SIGMA = BASIS @ np.diag([4.0, 2.0, 1.0, 0.5, 0.1, 0.01]) @ BASIS.T
ROOT = sqrtm(SIGMA).real


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_rotation_is_read_as_planted(seed):
    q = special_ortho_group.rvs(D, random_state=seed)
    expected = np.sum((q - np.eye(D)) ** 2) / (2 * D)
    assert rotation(Z @ (ROOT @ q).T + 3.0, Z, SIGMA) == pytest.approx(expected, abs=1e-9)


def test_the_ends_of_the_scale():
    assert rotation(Z @ ROOT, Z, SIGMA) == pytest.approx(0, abs=1e-12)
    assert rotation(-Z @ ROOT, Z, SIGMA) == pytest.approx(2)
    at_random = [rotation(Z @ (ROOT @ q).T, Z, SIGMA) for q in special_ortho_group.rvs(D, size=400, random_state=2)]
    assert np.mean(at_random) == pytest.approx(1, abs=5 * np.std(at_random) / 20)


def test_any_map_is_read_by_its_linear_part_and_not_by_its_spread():
    matrix = np.random.default_rng(3).standard_normal((D, D))
    expected = np.sum((polar(np.linalg.inv(ROOT) @ matrix)[0] - np.eye(D)) ** 2) / (2 * D)
    assert rotation(Z @ matrix.T, Z, SIGMA) == pytest.approx(expected, abs=1e-8)
    # A start that commutes with Σ but has another spread is not turned.
    assert rotation(0.01 * Z @ SIGMA, Z, SIGMA) == pytest.approx(0, abs=1e-9)


def test_without_full_rank_it_is_read_on_the_range():
    flat = BASIS @ np.diag([4.0, 1.0, 0, 0, 0, 0]) @ BASIS.T
    root = BASIS @ np.diag([2.0, 1.0, 0, 0, 0, 0]) @ BASIS.T
    q = special_ortho_group.rvs(D, random_state=4)
    # Along the basis, rows 1 and 2 of the turned identity.
    turned = (BASIS.T @ q)[:2]
    expected = np.sum((turned - BASIS.T[:2]) ** 2) / 4
    assert rotation(Z @ root, Z, flat) == pytest.approx(0, abs=1e-9)
    assert rotation(Z @ (root @ q).T, Z, flat) == pytest.approx(expected, abs=1e-9)


def test_what_cannot_be_read_is_nan():
    assert np.isnan(rotation((Z @ ROOT)[: 2 * D - 1], Z[: 2 * D - 1], SIGMA))
    assert np.isnan(rotation(np.zeros_like(Z), Z, SIGMA))
    lacking = BASIS[:, :5] @ BASIS[:, :5].T @ ROOT
    assert np.isnan(rotation(Z @ lacking.T, Z, SIGMA))


def test_it_is_in_the_table_of_gaussian_data_only():
    z = Z.astype(np.float32)
    given = {
        "z": z,
        "teacher": z,
        "student": np.stack([z, -z, np.full_like(z, np.nan)]),
        "generator_step": np.array([0, 1, 2]),
        "teacher_doubled": z,
        "teacher_rotated": z,
        "teacher_held_out": z,
        "reference": np.stack([z, z[::-1]]),
        "noise_held_out": z,
        "data_held_out": z,
        "training": z + 1,
    }
    table = measure(**given, covariance=np.eye(D))
    read = table[table["metric"] == "rotation"].set_index("generator_step")["value"]
    assert read.tolist() == pytest.approx([0, 2, np.nan], abs=1e-9, nan_ok=True)
    assert "rotation" not in set(measure(**given)["metric"])
