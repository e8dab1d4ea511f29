"""A call of any function as workers make it: its arguments as bytes, what it returns as a result.

Runs on workers: imports numpy and cloudpickle at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from polarmap.worker.any_value import Array, from_block, loaded, to_block, to_result


def to_call(f: Callable[..., Any] | bytes | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Array:
    """A call as a block; f may be one that was pickled before: a block as bytes, or the path of its file.

    >>> run_call(to_call(divmod, (7, 2), {}))
    ((3, 1),)
    """
    return to_block((f, args, kwargs))


def run_call(block: Array) -> Any:
    """What the call of a block returns, as `to_result` has it."""
    f, args, kwargs = from_block(block)
    f = loaded(f) if isinstance(f, (bytes, str)) else f
    return to_result(f(*args, **kwargs))


def call_each(f: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Several calls as one.

    >>> call_each(pow, [(2, 3), (3, 2)])
    [8, 9]
    """
    return [f(*each) for each in arguments]
