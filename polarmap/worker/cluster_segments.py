"""Parts of blocks that an engine keeps: read by its own means.

Runs on workers of Dask or Ray.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polarmap.worker.segments import Location, Segment

DASK_FETCH_TIMEOUT = 60.0  # that Dask may take to bring one


def read_from_cluster(location: Location, segment: Segment) -> Any:
    """The bytes of an array that Dask or Ray has, without a copy where it lies on this machine."""
    cluster_key: Any = segment.key
    array = _fetch_from_dask(cluster_key) if location.kind == "dask" else _fetch_from_ray(*cluster_key)
    return array.reshape(-1).view(np.uint8).data


def _fetch_from_dask(dask_key: Any) -> Any:
    import distributed

    module: Any = distributed
    data = module.get_worker().data
    try:
        return data[dask_key]
    except KeyError:
        remote_future = module.Future(dask_key, module.get_client(), state="memory")
        return remote_future.result(timeout=DASK_FETCH_TIMEOUT)


def _fetch_from_ray(actor_name: str, reference_index: int) -> Any:
    import ray

    module: Any = ray
    [reference] = module.get(module.get_actor(actor_name).get_reference.remote(reference_index))
    return module.get(reference)
