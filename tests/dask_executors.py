"""Provide the executor of a Dask client whose cluster runs its workers as threads of this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def dask_executor(threads: int) -> Iterator[Any]:
    import distributed

    sizes = {"n_workers": 1, "threads_per_worker": threads, "processes": False, "memory_limit": 0}
    with (
        distributed.LocalCluster(**sizes, dashboard_address=":0") as cluster,
        cluster.get_client() as client,
    ):
        yield client.get_executor(pure=False)
