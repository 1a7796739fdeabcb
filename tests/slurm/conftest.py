"""The test cluster, up for one session; without root or SLURM its tests are skipped, and say why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from cluster import Cluster, NoSlurmError, running_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real SLURM of two nodes on this machine."""
    with ExitStack() as stack:
        try:
            up = stack.enter_context(running_cluster())
        except NoSlurmError as reason:
            pytest.skip(str(reason))
        yield up
