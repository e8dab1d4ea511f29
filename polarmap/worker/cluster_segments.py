"""Read blocks that are stored in the memory of a Dask or Ray cluster.

This module runs on the workers of the cluster. It is not pickled by value, so polarmap must be installed on
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polarmap.worker.segments import Segment

DASK_FETCH_TIMEOUT = 60.0  # maximum seconds to wait for Dask to transfer an array from another worker


def read_from_cluster(engine: str, segment: Segment) -> Any:
    """Return the bytes of an array that is stored in the memory of a Dask or Ray cluster.

    If the array is on this machine, its bytes are not copied.

    Parameters
    ----------
    engine : str
        "dask" or "ray".
    segment : Segment
        The reference to the array. Its `key` is the name by which workers find the array in the cluster, as
        returned by `make_worker_reference_names` on the driver.
    """
    array = FETCH_BY_ENGINE[engine](segment.key)
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


def _fetch_from_ray(worker_name: tuple[str, int]) -> Any:
    import ray

    actor_name, reference_index = worker_name
    module: Any = ray
    [reference] = module.get(module.get_actor(actor_name).get_reference.remote(reference_index))
    return module.get(reference)


FETCH_BY_ENGINE: dict[str, Callable[[Any], Any]] = {"dask": _fetch_from_dask, "ray": _fetch_from_ray}
