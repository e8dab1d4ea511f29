"""Provide `submit`, which starts a map in the background and returns its future."""

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

# The parameters of map functions that hold data. `submit` copies their values, because the caller may modify
# the data while the map runs in the background.
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
    """Start a map in the background and return its future.

    `submit(coded_map, f, data)` runs `coded_map(f, data)`.

    Each future in `future.blocks` is done as soon as the result of its block has arrived. Up to 32 maps run
    concurrently and share the workers of a pool. Further maps are queued. Data in memory is copied before
    `submit` returns, and so is f unless it runs on threads. Later changes to them have no effect on the map.

    Parameters
    ----------
    map_function : callable
        `coded_map`, `hedged_map`, `coded_sum`, `coded_matmul`, `coded_gram`, `coded_gradient`, `encode` or
        `xr.apply`.
    *arguments, **options
        The arguments of the map function. `on_result`, if given, is called on the map's thread.

    Returns
    -------
    CodedFuture
        A future whose result is the return value of the map function.

    Raises
    ------
    CodeError, ExecutorError
        If an argument turns out to be invalid before the map starts. All other exceptions are raised by the
        future's `result()`.

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
                f"{map_function!r:.100} is not a map function"
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
    """Return a copy of a map function's argument, so that the caller may modify the original.

    Only in-memory data is copied, and f if `pickle_f` is set. All other arguments are returned unchanged.
    """
    if name in DATA_PARAMETERS:
        return _copy_if_in_memory(argument)
    return _copy_by_pickle_round_trip(argument) if name == "f" and pickle_f else argument


def _copy_if_in_memory(data: Any) -> Any:
    """Return a copy of in-memory data. Stored data, and data that cannot be copied, is returned unchanged."""
    is_stored = isinstance(data, (str, os.PathLike, np.memmap))
    # The attribute `chunks` identifies Zarr, HDF5 and Dask arrays, which are not copied either.
    if is_stored or hasattr(data, "coded_blocks") or getattr(data, "chunks", None):
        return data
    try:
        return copy.deepcopy(data)
    except Exception:  # Iterators and the user's classes may not support copying.
        return data


def _copy_by_pickle_round_trip(f: Any) -> Any:
    """Return a copy of f made by pickling. If that fails, return f itself: the map then raises the error."""
    try:
        return copy_by_pickling(f, "its workers")
    except Exception:
        return f
