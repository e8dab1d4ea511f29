"""Parts of blocks that an engine keeps: read by its own means.

Runs on workers of Dask or Ray.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polarmap.worker.parts import Part, Place

FETCH_SECONDS = 60.0  # that Dask may take to bring one


def read_from_engine(place: Place, part: Part) -> Any:
    """The bytes of an array that Dask or Ray has, without a copy where it lies on this machine."""
    name: Any = part.key
    array = _from_dask(name) if place.kind == "dask" else _from_ray(*name)
    return array.reshape(-1).view(np.uint8).data


def _from_dask(key: Any) -> Any:
    import distributed

    module: Any = distributed
    data = module.get_worker().data
    try:
        return data[key]
    except KeyError:
        there = module.Future(key, module.get_client(), state="memory")
        return there.result(timeout=FETCH_SECONDS)


def _from_ray(holder: str, number: int) -> Any:
    import ray

    module: Any = ray
    [reference] = module.get(module.get_actor(holder).reference.remote(number))
    return module.get(reference)
