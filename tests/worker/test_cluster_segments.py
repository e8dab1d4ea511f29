"""Tests that a Dask worker reads segments of another worker. tests/maps/test_clusters.py also covers Ray."""

from __future__ import annotations

from typing import Any

import distributed
import numpy as np
import pytest

from polarmap.worker.cluster_segments import read_from_cluster
from polarmap.worker.segments import Segment

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def test_a_worker_reads_local_and_remote_segments() -> None:
    array = np.arange(6.0).reshape(2, 3)
    sizes: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "memory_limit": 0}
    with distributed.LocalCluster(**sizes, dashboard_address=":0") as cluster, cluster.get_client() as client:
        here, there = client.scheduler_info()["workers"]
        [data] = client.scatter([array], workers=[here])
        read = [
            client.submit(_read, data.key, array.nbytes, workers=[where], pure=False)
            for where in (here, there)
        ]
        assert client.gather(read) == [array.tobytes()] * 2


def _read(key: str, size: int) -> bytes:
    return bytes(read_from_cluster("dask", Segment(key, size)))
