"""Memory in large pages: zeros like any others, each its own, there as long as somebody holds them."""

from __future__ import annotations

import gc
import mmap

import pytest
import torch

from dmdpipe.kernels import large_pages
from dmdpipe.kernels.large_pages import CHUNK, PAGE, zeros, zeros_like


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was given out before."""
    monkeypatch.setattr(large_pages, "_current", [])


@pytest.mark.parametrize("shape", [(1,), (3, 5), (0,), (4, 0), (), (2**20, 3), (CHUNK // 4 + 1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_they_are_zeros_of_that_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = zeros(*shape, dtype=dtype)
    expected = torch.zeros(shape, dtype=dtype)
    assert (given.shape, given.dtype, given.is_contiguous()) == (expected.shape, dtype, True)
    assert torch.equal(given, expected) and torch.equal(zeros_like(given + 1), expected)


@pytest.mark.usefixtures("fresh")
def test_they_lie_beside_each_other_in_large_pages_and_share_nothing() -> None:
    sizes = [1, 1000, 2**18, 3, 2**18, 2**18]
    given = [zeros(size) for size in sizes]
    begins = [one.data_ptr() for one in given]
    assert begins[0] % PAGE == 0 and all(begin % 64 == 0 for begin in begins)
    assert all(here + 4 * size <= following for here, size, following in zip(begins, sizes, begins[1:], strict=False))
    assert max(begins) - begins[0] < sum(4 * size + 128 for size in sizes)
    # Vectors of one power of two would otherwise lie on top of each other in the first cache.
    assert (begins[5] - begins[4]) % 4096
    assert len({one.untyped_storage().data_ptr() for one in given}) == len(given)
    for value, one in enumerate(given, 1):
        one.fill_(value)
    assert [one.unique().tolist() for one in given] == [[value] for value in range(1, 7)]


@pytest.mark.usefixtures("fresh")
def test_a_chunk_that_is_full_is_followed_by_another_and_stays_while_it_is_held() -> None:
    first = zeros(CHUNK // 8)
    first.fill_(7.0)
    for _ in range(5):
        zeros(CHUNK // 8).fill_(1.0)
    gc.collect()
    assert bool((first == 7.0).all())
    assert not zeros(CHUNK // 8).any()


@pytest.mark.usefixtures("fresh")
def test_a_system_that_has_none_gives_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(mmap.mmap):
        def madvise(self, *option: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    assert not zeros(5).any()
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert not zeros(5).any()


def test_what_lies_elsewhere_is_left_to_torch() -> None:
    assert zeros(3, device=torch.device("meta")).device.type == "meta"


@pytest.mark.usefixtures("fresh")
def test_memory_that_there_is_not_in_one_piece_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*size: int, **flags: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", none)
    assert torch.equal(zeros(5, 2), torch.zeros(5, 2))
    assert large_pages._current == []


@pytest.mark.usefixtures("fresh")
def test_what_is_large_has_a_chunk_of_its_own_and_ends_none() -> None:
    first = zeros(10)
    large = zeros(CHUNK // 4)
    second = zeros(10)
    assert 0 < second.data_ptr() - first.data_ptr() < 1000
    assert large.data_ptr() % PAGE == 0
