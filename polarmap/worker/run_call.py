"""A call of any function as workers make it: arguments as bytes, what it returns or raises as a result.

Runs on workers: imports numpy and cloudpickle at most.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import Any

from polarmap.worker.any_value import Array, from_block, from_result, loaded, to_block, to_result


def to_call(f: Callable[..., Any] | bytes | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Array:
    """A call as a block; f may be one that was pickled before: a block as bytes, or the path of its file.

    >>> returned(run_call(to_call(divmod, (7, 2), {})))
    (3, 1)
    """
    return to_block((f, args, kwargs))


def run_call(block: Array) -> Any:
    """What the call of a block returns, as `to_result` has it; in a dict, what it raises."""
    try:
        f, args, kwargs = from_block(block)
        f = loaded(f) if isinstance(f, (bytes, str)) else f
        return to_result(f(*args, **kwargs))
    except BaseException as error:  # as in a pool of processes, whose tasks may raise anything
        return {"raised": _raised(error)}


class RaisedError(Exception):
    """Is raised in the place of what a call raised: `error`, and `trace`, its traceback on the worker."""

    def __init__(self, error: BaseException, trace: str) -> None:
        super().__init__(error, trace)
        self.error, self.trace = error, trace


def returned(result: Any) -> Any:
    """What a call returned, of the result of `run_call`; RaisedError if it raised."""
    if isinstance(result, dict):
        raise RaisedError(*from_block(result["raised"]))
    return from_result(result)


def call_each(f: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Several calls as one.

    >>> call_each(pow, [(2, 3), (3, 2)])
    [8, 9]
    """
    return [f(*each) for each in arguments]


def _raised(error: BaseException) -> Array:
    """An exception and its traceback; one that cannot travel is replaced by what it says."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    error.__traceback__ = None  # nothing of the call is kept by it
    try:
        block = to_block((error, trace))
        from_block(block)
    except Exception as reason:
        said = f"{type(error).__name__}: {error} (which cannot be pickled: {reason})"
        return to_block((RuntimeError(said), trace))
    return block
