"""f as workers call it where its block is not what f takes: any values, sparse rows, parts to be added up.

Runs on workers: imports numpy. The class that comes with f on sparse rows brings scipy along.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.worker.messages import describe, plain
from polarmap.worker.pytree import (
    Packed,
    Structure,
    flatten,
    from_block,
    loaded,
    naming,
    packed_block,
    pickles,
    unflatten,
)

BATCH_MOST_SECONDS = 0.1  # after which the rest of a batch is left to others
MEASURED_NUMBERS = 20_000  # that a task sorts which only shows how long tasks take

Array = npt.NDArray[Any]


def combination(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The sum of f over the parts that a worker gets, each times a coefficient."""

    def combine(block: Any) -> Any:
        coefficients, parts = block
        total: list[Any] = []
        structure: Structure = ()
        for coefficient, part in zip(coefficients.tolist(), parts):
            leaves, structure = flatten(f(part))
            wrong = [leaf.dtype for leaf in leaves if leaf.dtype.kind not in "biufc"]
            if wrong:
                raise TypeError(f"f returned dtype {wrong[0]}, which cannot be added up: return numbers")
            terms = [coefficient * leaf for leaf in leaves]
            if total and len(total) != len(terms):
                raise ValueError("f returned different structures for different parts")
            total = [one + two for one, two in zip(total, terms)] if total else terms
        return unflatten(structure, [np.asarray(leaf) for leaf in total])

    return combine


def on_sparse_rows(f: Callable[[Any], Any], kind: type, columns: int) -> Callable[[Any], Any]:
    """f of sparse rows, of which a block holds data, indices and indptr, the three arrays of their CSR form.

    A closure, so that f's own modules travel with it.

    kind : csr_array or csr_matrix of scipy.
    """

    def call(block: Any) -> Any:
        return f(sparse_rows(block, kind, columns))

    return call


def sparse_rows(leaves: Sequence[Array], kind: type, columns: int) -> Any:
    """The matrix of so many columns that has these arrays.

    >>> from scipy.sparse import csr_array
    >>> block = np.array([5.0, 7.0]), np.array([1, 0]), np.array([0, 1, 1, 2])
    >>> sparse_rows(block, csr_array, 2).toarray().tolist()
    [[0.0, 5.0], [0.0, 0.0], [7.0, 0.0]]
    """
    # Compiled code may expect aligned numbers, which those behind odd numbers of bytes are not.
    data, indices, indptr = (np.require(leaf, requirements="A") for leaf in leaves)
    return kind((data, indices, indptr), shape=(len(indptr) - 1, columns))


def any_call(
    f: Callable[..., Any],
    star: bool = False,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    is_pickled: bool = False,
    is_group: bool = False,
    keeps_exceptions: bool = False,
    kinds: Sequence[Any] = (),
) -> Callable[[Any], Packed]:
    """f as workers call it, with what a block stands for; its result as `packed_block` has it.

    A closure, so that f's own modules travel with it.

    star : whether the value of a block is all positional arguments, rather than the first.
    args, kwargs : further arguments of every call.
    is_pickled : whether blocks are made by `to_block`, or are pickles of the pickles of some values, as
        integers of 8 bits; else they are the values.
    is_group : whether the value of a block is a list of what f is called with, one after the other.
    keeps_exceptions : of a group, whether what f raises on one of these stands in the place of its result:
        each is told as (True, its result) or (False, its error as plain data).
    kinds : classes and functions that values are made of. f brings along the state of their modules.

    >>> from polarmap.worker.pytree import to_block
    >>> call = any_call(dict.get, args=("a",), is_pickled=True)
    >>> from_block(np.frombuffer(call(to_block({"a": {1, 2}})).data, np.uint8))
    {1, 2}
    """
    named = dict(kwargs or {})

    def call_one(value: Any) -> Any:
        return f(*(value if star else (value,)), *args, **named)

    def told(value: Any) -> Any:
        if not keeps_exceptions:
            return call_one(value)
        try:
            return True, call_one(value)
        except BaseException as error:  # sys.exit on one item is not to end the others
            return False, plain(describe(error))

    def call(block: Any) -> Packed:
        value = block
        if is_pickled and block.dtype == np.int8:
            _, values = pickle.loads(block.data)
            if len(values) > 1:
                return each_of(call_one, values)
            value = pickle.loads(values[0])
        elif is_pickled:
            value = from_block(block)
        result = [told(one) for one in value] if is_group else call_one(value)
        try:
            return packed_block(result)
        except Exception as error:
            raise TypeError(f"f returned {naming(result)} that cannot be pickled: {error}") from error

    if kinds:
        call.kinds = list(dict.fromkeys(kinds))  # type: ignore[attr-defined]
    return call


def run_call(block: Array) -> Packed:
    """What the call of a block returns, as `packed_block` has it; of several of one function, as `each_of`.

    These are a pickle of f and of pickles of what it is called with, as integers of 8 bits. f may be one that
    was pickled before: a block as bytes, or the path of its file.

    >>> from polarmap.worker.pytree import to_block
    >>> from_block(np.frombuffer(run_call(to_block((divmod, (7, 2), {}))).data, np.uint8))
    (3, 1)
    """
    if block.dtype != np.int8:
        f, args, kwargs = from_block(block)
        return packed_block(_function(f)(*args, **kwargs))
    f, values = pickle.loads(block.data)
    if len(values) > 1:
        return each_of(_function(f), values)
    return packed_block(_function(f)(pickle.loads(values[0])))


def _function(sent: Any) -> Callable[..., Any]:
    return loaded(sent) if isinstance(sent, (bytes, str)) else sent  # type: ignore[no-any-return]


def each_of(f: Callable[[Any], Any], values: Sequence[bytes]) -> Packed:
    """What f returns for each value of these pickles, or raises; of the first ones only, if these take long.

    A list of pickles, and errors as plain data by position.

    >>> data = each_of(abs, [pickle.dumps(-3), pickle.dumps("x")]).data
    >>> (three, _), errors = from_block(np.frombuffer(data, np.uint8))
    >>> pickle.loads(three), errors[1][0]
    (3, 'TypeError')
    """
    process, until = os.getpid(), time.monotonic() + BATCH_MOST_SECONDS
    errors = dict[int, Any]()

    def results() -> Iterator[Any]:
        for position, value in enumerate(values):
            result = None
            try:
                result = f(pickle.loads(value))
            except BaseException as error:
                errors[position] = plain(describe(error))
            yield result
            # Others may do the rest; in a child that f has forked, its parent does.
            if time.monotonic() > until or os.getpid() != process:
                break

    found = pickles(results())
    for position, one in enumerate(found):
        if isinstance(one, Exception):
            found[position], errors[position] = None, plain(describe(one))
    return packed_block((found, errors))


def call_each(f: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Several calls as one.

    >>> call_each(pow, [(2, 3), (3, 2)])
    [8, 9]
    """
    return [f(*each) for each in arguments]


def repeated_sorts(count: int, block: Any) -> float:
    """Sort the same numbers so often, whatever the block: work of one core, to be timed.

    >>> repeated_sorts(2, None)
    0.0
    """
    mixed = np.arange(MEASURED_NUMBERS, dtype=float) * 7919 % MEASURED_NUMBERS
    for _ in range(count):
        ordered = np.sort(mixed)
    return float(ordered[0])
