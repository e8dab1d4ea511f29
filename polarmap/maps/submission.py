"""submit: a map that begins now and returns later."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from polarmap.driver.coded_future import BackgroundMap, CodedFuture
from polarmap.driver.prepared_map import PreparedMap, make_observers
from polarmap.errors import CodeError, trimmed_tracebacks
from polarmap.executors import resolve_executor
from polarmap.executors.pickling import copy_by_pickling

P = ParamSpec("P")
R = TypeVar("R")

# of all map functions
DATA_PARAMETERS = {
    "data",
    "parts",
    "x",
    "A",
    "B",
    "weights",
    "directions",
    "scale",
    "args",
    "kwargs",
}


def submit(map_function: Callable[P, R], /, *arguments: P.args, **options: P.kwargs) -> CodedFuture[R]:
    """Begin a map and return its future at once: `submit(coded_map, f, data)` is `coded_map(f, data)` later.

    `future.blocks` tells the result of each block as soon as it is there. Up to 32 maps are under way at a
    time, on threads that all futures share, and share the workers of a pool; further ones wait for their
    turn. Data in memory is copied before `submit` returns, and f too unless it runs on threads: what the
    caller changes later is not seen.

    Parameters
    ----------
    map_function : callable
        `coded_map`, `hedged_map`, `coded_sum`, `coded_matmul`, `coded_gram`, `coded_gradient`, `encode` or
        `xr.apply`.
    *arguments, **options
        Of the map function. It calls `on_result`, if there is one, on the thread of the map.

    Returns
    -------
    CodedFuture
        Whose result is what the map function returns.

    Raises
    ------
    CodeError, ExecutorError
        Arguments that the map function refuses before it begins; all else is raised by the future's
        `result()`.

    Examples
    --------
    >>> import numpy as np, polarmap
    >>> A = np.arange(24.0).reshape(8, 3)
    >>> future = polarmap.submit(polarmap.coded_map, lambda block: block @ np.ones(3), A, blocks=4)
    >>> future.result(60.0).concatenate().round(9).tolist()
    [3.0, 12.0, 21.0, 30.0, 39.0, 48.0, 57.0, 66.0]
    >>> [block.result(60.0).shape for block in future.blocks]
    [(2,), (2,), (2,), (2,)]
    """
    with trimmed_tracebacks:
        prepare: Callable[..., PreparedMap[R]] | None = getattr(map_function, "prepare", None)
        if prepare is None:
            raise CodeError(
                "submit begins a map: pass it first, as submit(coded_map, f, data); "
                f"{map_function!r:.100} is none"
            )
        pickle_f = resolve_executor(options.get("executor")).pickles_f
        map_options = {name: _snapshot_argument(name, item, pickle_f) for name, item in options.items()}
        argument_names = ("f" if callable(item) else "data" for item in arguments)
        prepared_map = prepare(
            *(_snapshot_argument(*item, pickle_f) for item in zip(argument_names, arguments)), **map_options
        )
        observers = make_observers(options.get("progress"), options.get("on_result"))
        return BackgroundMap(prepared_map, observers).start()


def _snapshot_argument(name: str, argument: Any, pickle_f: bool) -> Any:
    """An argument of a map as it is now, whatever its caller does to it later; `pickle_f`: f does."""
    if name in DATA_PARAMETERS:
        return _copy_if_in_memory(argument)
    return _copy_by_pickle_round_trip(argument) if name == "f" and pickle_f else argument


def _copy_if_in_memory(data: Any) -> Any:
    """A copy of what lies in memory; what lies in files or storage, or cannot be copied, itself."""
    is_stored = isinstance(data, (str, os.PathLike, np.memmap))
    if is_stored or hasattr(data, "coded_blocks") or getattr(data, "chunks", None):  # of Zarr, HDF5, dask
        return data
    try:
        return copy.deepcopy(data)
    except Exception:  # of iterators, which are used up here, and of classes of the caller's
        return data


def _copy_by_pickle_round_trip(f: Any) -> Any:
    """f as a worker would get it; itself if it cannot travel, which the map tells."""
    try:
        return copy_by_pickling(f, "its workers")
    except Exception:
        return f
