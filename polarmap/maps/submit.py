"""submit: a map that begins now and returns later."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict, TypeVar, Unpack, overload

import numpy as np

from polarmap.arrays.encode import encode
from polarmap.arrays.stored_result import Stored
from polarmap.blocks.choose_code import CodeName
from polarmap.code.base import Code
from polarmap.code.masked import Masked
from polarmap.errors import CodeError, without_our_frames
from polarmap.executors.base import MapExecutor
from polarmap.executors.faulty import FaultyExecutor
from polarmap.executors.pickling import pickled
from polarmap.executors.pool import Pool
from polarmap.maps.coded_map import coded_map, prepared_coded_map
from polarmap.maps.hedged_map import hedged_map, prepared_hedged_map
from polarmap.planning.planner import Plan
from polarmap.run.coded_future import CodedFuture, FutureMap
from polarmap.run.coded_result import CodedResult
from polarmap.run.options import OnTimeout, ScheduleName, Verify
from polarmap.run.prepared_map import PreparedMap
from polarmap.run.progress import observer_of

R = TypeVar("R")
T = TypeVar("T")


class CodedMapOptions(TypedDict, total=False):
    """The options of `coded_map`, for type checkers."""

    blocks: int | None
    workers: int | None
    code: CodeName | Code | Masked
    degree: int
    schedule: ScheduleName | Plan
    executor: Any
    out: Stored | None
    verify: Verify
    rtol: float | None
    timeout: float | None
    on_timeout: OnTimeout
    retries: int
    key: str | bytes | None
    progress: bool | None


DATA = {"data", "parts", "x", "A", "B", "weights", "directions", "scale", "args", "kwargs"}  # of all verbs
# From a verb to what checks its arguments and cuts the data, without `progress`.
_PREPARED: dict[Any, Callable[..., PreparedMap[Any]]] = {
    coded_map: prepared_coded_map,
    hedged_map: prepared_hedged_map,
}


@overload
def submit(
    f: Callable[[Any], T], data: Any, /, **options: Unpack[CodedMapOptions]
) -> CodedFuture[CodedResult[T]]: ...
@overload
def submit(*arguments: Any, verb: Callable[..., R], **options: Any) -> CodedFuture[R]: ...
def submit(*arguments: Any, verb: Callable[..., Any] = coded_map, **options: Any) -> CodedFuture[Any]:
    """Begin a map and return its future at once: `submit(f, data, ...)` is `coded_map(f, data, ...)` later.

    The results are those of `coded_map`; `future.blocks` tells each as soon as it is there. Up to 32 maps
    are under way at a time, on threads that all futures share, and share the workers of a pool; further
    ones wait for their turn. Data in memory is copied before `submit` returns, and f too unless it runs on
    threads: what the caller changes later is not seen.

    Parameters
    ----------
    *arguments
        Of `coded_map`: f and data.
    verb : callable
        What to call instead of `coded_map`: `hedged_map`, `coded_sum`, `coded_matmul`, `coded_gram`,
        `coded_gradient` or `encode`, with their arguments.
    **options
        Of `coded_map`, or of the `verb`.

    Returns
    -------
    CodedFuture
        Whose result is what the verb returns.

    Raises
    ------
    CodeError, ExecutorError
        Arguments that `coded_map` refuses before it begins; all else is raised by the future's `result()`.

    Examples
    --------
    >>> import numpy as np, polarmap
    >>> A = np.arange(24.0).reshape(8, 3)
    >>> future = polarmap.submit(lambda block: block @ np.ones(3), A, blocks=4)
    >>> future.result(60.0).concatenate().round(9).tolist()
    [3.0, 12.0, 21.0, 30.0, 39.0, 48.0, 57.0, 66.0]
    >>> [block.result(60.0).shape for block in future.blocks]
    [(2,), (2,), (2,), (2,)]
    """
    with without_our_frames:
        observer = observer_of(options.pop("progress", None))
        return FutureMap(_prepared(verb, arguments, options), observer).start()


def _prepared(verb: Callable[..., Any], arguments: Any, options: dict[str, Any]) -> PreparedMap[Any]:
    """The map that a call of a verb is; CodeError for a verb that is none of ours."""
    name = getattr(verb, "__name__", repr(verb))
    try:
        signature = inspect.signature(verb)
    except (TypeError, ValueError):
        signature = inspect.Signature()
    if "progress" not in signature.parameters:
        raise CodeError(
            f"verb={name} is no map: pass coded_map, hedged_map, coded_sum, coded_matmul or encode"
        )
    try:
        bound = signature.bind(*arguments, **options)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    for argument, value in bound.arguments.items():
        if argument in DATA:
            bound.arguments[argument] = _as_it_is(value)
    if "f" in bound.arguments and _is_elsewhere(bound.arguments.get("executor")):
        bound.arguments["f"] = _as_it_travels(bound.arguments["f"])
    if verb in _PREPARED:
        bound.apply_defaults()
        del bound.arguments["progress"]
        return _PREPARED[verb](*bound.arguments.values())

    def run(observer: Any) -> Any:
        return verb(*bound.args, **bound.kwargs, progress=observer)

    return PreparedMap(None, 0, run, is_lasting=verb is encode)


def _as_it_is(data: Any) -> Any:
    """A copy of what lies in memory; what lies in files or storage, or cannot be copied, itself."""
    is_stored = isinstance(data, (str, os.PathLike, np.memmap))
    if is_stored or hasattr(data, "coded_blocks") or getattr(data, "chunks", None):  # of Zarr, HDF5, dask
        return data
    try:
        return copy.deepcopy(data)
    except Exception:  # of iterators, which are used up here, and of classes of the caller's
        return data


def _is_elsewhere(executor: Any) -> bool:
    """Whether workers get f as bytes: not on threads, nor on an executor of the caller's own."""
    if isinstance(executor, FaultyExecutor):
        return _is_elsewhere(executor.executor)
    return isinstance(executor, Pool) or not isinstance(executor, (ThreadPoolExecutor, MapExecutor))


def _as_it_travels(f: Any) -> Any:
    """f as a worker would get it; itself if it cannot travel, which the map tells."""
    try:
        return pickle.loads(pickled(f, "its workers"))
    except Exception:
        return f
