"""The test cluster, up for one session; without root or SLURM its tests are skipped, and say why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from cluster import PROGRAMS_OF_ACCOUNTS, Cluster, NoSlurmError, missing, running_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real SLURM of three nodes on this machine; it keeps accounts if it can."""
    with ExitStack() as stack:
        try:
            up = stack.enter_context(running_cluster(has_accounts=not missing(PROGRAMS_OF_ACCOUNTS)))
        except NoSlurmError as reason:
            pytest.skip(str(reason))
        yield up
