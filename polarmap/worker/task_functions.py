"""Functions that workers call with a block: f where its argument is not the block itself, and products.

f may take any value, sparse rows, or parts whose results are added up. Products of matrix blocks are
module-level functions, which `functools.partial` objects pickle by name.
Runs on workers: imports numpy. The class that comes with f on sparse rows brings scipy along.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.worker.pickled_values import (
    pickle_each,
    pickle_to_packed_tree,
    unpickle_array,
    unpickle_data_or_file,
    unpickle_item,
)
from polarmap.worker.pytree import PackedTree, Structure, describe_type, flatten, unflatten
from polarmap.worker.task_records import describe_error, to_plain_tuple

MAX_BATCH_SECONDS = 0.1  # after which the rest of a batch is left to others
SORT_BENCHMARK_SIZE = 20_000  # that a task sorts which only shows how long tasks take

Array = npt.NDArray[Any]


def make_weighted_sum_task(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The sum of f over the parts that a worker gets, each times a coefficient."""

    def sum_weighted_results(block: Any) -> Any:
        coefficients, parts = block
        sums: list[Any] = []
        structure: Structure = ()
        for coefficient, part in zip(coefficients.tolist(), parts):
            leaves, structure = flatten(f(part))
            invalid_dtypes = [leaf.dtype for leaf in leaves if leaf.dtype.kind not in "biufc"]
            if invalid_dtypes:
                raise TypeError(
                    f"f returned dtype {invalid_dtypes[0]}, which cannot be added up: return numbers"
                )
            terms = [coefficient * leaf for leaf in leaves]
            if sums and len(sums) != len(terms):
                raise ValueError("f returned different structures for different parts")
            sums = [partial_sum + term for partial_sum, term in zip(sums, terms)] if sums else terms
        return unflatten(structure, [np.asarray(leaf) for leaf in sums])

    return sum_weighted_results


def make_csr_task(f: Callable[[Any], Any], matrix_class: type, n_columns: int) -> Callable[[Any], Any]:
    """f of sparse rows, of which a block holds data, indices and indptr, the three arrays of their CSR form.

    A closure, so that f's own modules travel with it.

    matrix_class : csr_array or csr_matrix of scipy.
    """

    def call_with_matrix(block: Any) -> Any:
        return f(build_csr_matrix(block, matrix_class, n_columns))

    return call_with_matrix


def build_csr_matrix(csr_arrays: Sequence[Array], matrix_class: type, n_columns: int) -> Any:
    """The matrix of so many columns that has these arrays.

    >>> from scipy.sparse import csr_array
    >>> block = np.array([5.0, 7.0]), np.array([1, 0]), np.array([0, 1, 1, 2])
    >>> build_csr_matrix(block, csr_array, 2).toarray().tolist()
    [[0.0, 5.0], [0.0, 0.0], [7.0, 0.0]]
    """
    # Compiled code may expect aligned numbers, which those behind odd numbers of bytes are not.
    data, indices, indptr = (np.require(array, requirements="A") for array in csr_arrays)
    return matrix_class((data, indices, indptr), shape=(len(indptr) - 1, n_columns))


def make_call_task(
    f: Callable[..., Any],
    star: bool = False,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    unpickle_blocks: bool = False,
    may_stop_early: bool = True,
    referenced_objects: Sequence[Any] = (),
) -> Callable[[Any], PackedTree]:
    """Return the function that workers call with a block: f of its items, with the results pickled.

    The function is a closure, so that the modules of f travel with it.

    Parameters
    ----------
    f : callable
    star : bool
        Whether an item is a tuple of arguments of f, rather than its first argument.
    args, kwargs : sequence and dict, optional
        Further arguments of each call.
    unpickle_blocks : bool
        Whether blocks are those of `pickle_to_array`, or pickles of several items as integers of 8 bits.
        If not, a block is the item.
    may_stop_early : bool
        Whether the last items of a batch are left to other workers if the first ones take long.
    referenced_objects : sequence
        Classes and functions that items refer to. f brings the state of their modules along.

    Examples
    --------
    >>> from polarmap.worker.pickled_values import pickle_to_array
    >>> call = make_call_task(dict.get, args=("a",), unpickle_blocks=True)
    >>> unpickle_array(np.frombuffer(call(pickle_to_array({"a": {1, 2}})).data, np.uint8))
    {1, 2}
    """
    keyword_args = dict(kwargs or {})

    def call_with_item(item: Any) -> Any:
        return f(*(item if star else (item,)), *args, **keyword_args)

    def call_on_block(block: Any) -> PackedTree:
        item = block
        if unpickle_blocks and block.dtype == np.int8:
            _, pickled_items = pickle.loads(block.data)
            if len(pickled_items) > 1:
                return execute_batch(call_with_item, pickled_items, may_stop_early)
            item = unpickle_item(pickled_items[0])
        elif unpickle_blocks:
            item = unpickle_array(block)
        result = call_with_item(item)
        try:
            return pickle_to_packed_tree(result)
        except Exception as error:
            raise TypeError(f"f returned {describe_type(result)} that cannot be pickled: {error}") from error

    if referenced_objects:
        call_on_block.kinds = list(dict.fromkeys(referenced_objects))  # type: ignore[attr-defined]
    return call_on_block


def execute_pickled_call(block: Array) -> PackedTree:
    """What the call of a block returns, as `pickle_to_packed_tree` has it; of several of one function, as
    `execute_batch`.

    These are a pickle of f and of pickles of what it is called with, as integers of 8 bits. f may be one that
    was pickled before: a block as bytes, or the path of its file.

    >>> from polarmap.worker.pickled_values import pickle_to_array
    >>> packed = execute_pickled_call(pickle_to_array((divmod, (7, 2), {})))
    >>> unpickle_array(np.frombuffer(packed.data, np.uint8))
    (3, 1)
    """
    if block.dtype != np.int8:
        f, args, kwargs = unpickle_array(block)
        return pickle_to_packed_tree(_load_function(f)(*args, **kwargs))
    f, values = pickle.loads(block.data)
    if len(values) > 1:
        return execute_batch(_load_function(f), values)
    return pickle_to_packed_tree(_load_function(f)(unpickle_item(values[0])))


def _load_function(function_or_pickle: Any) -> Callable[..., Any]:
    if isinstance(function_or_pickle, (bytes, str)):
        function_or_pickle = unpickle_data_or_file(function_or_pickle)
    return function_or_pickle  # type: ignore[no-any-return]


def execute_batch(
    f: Callable[[Any], Any],
    pickled_items: Sequence[bytes | Array],
    may_stop_early: bool = True,
) -> PackedTree:
    """Call f with each item of a batch, and return the pickled results and what f raised.

    With `may_stop_early`, no further item is started after `MAX_BATCH_SECONDS`. The returned value is a list
    with the result of each item that was started, as `unpickle_item` reads it, and a dict from the positions
    of items that failed to their errors as plain data.

    >>> data = execute_batch(abs, [pickle.dumps(-3), pickle.dumps("x")]).data
    >>> (three, _), errors = unpickle_array(np.frombuffer(data, np.uint8))
    >>> pickle.loads(three), errors[1][0]
    (3, 'TypeError')
    """
    original_pid, deadline = os.getpid(), time.monotonic() + (MAX_BATCH_SECONDS if may_stop_early else inf)
    errors = dict[int, Any]()

    def call_until_deadline() -> Iterator[Any]:
        for index, pickled_item in enumerate(pickled_items):
            result = None
            try:
                result = f(unpickle_item(pickled_item))
            except BaseException as error:
                errors[index] = to_plain_tuple(describe_error(error))
            yield result
            # Other workers may do the rest. In a child that f has forked, its parent does.
            if time.monotonic() > deadline or os.getpid() != original_pid:
                break

    pickled_results = pickle_each(call_until_deadline())
    for index, pickled_result in enumerate(pickled_results):
        if isinstance(pickled_result, Exception):
            pickled_results[index], errors[index] = None, to_plain_tuple(describe_error(pickled_result))
    return pickle_to_packed_tree((pickled_results, errors))


def call_each(f: Callable[..., Any], argument_tuples: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Several calls as one.

    >>> call_each(pow, [(2, 3), (3, 2)])
    [8, 9]
    """
    return [f(*arguments) for arguments in argument_tuples]


def sort_repeatedly(n_repeats: int, block: Any) -> float:
    """Sort the same numbers so often, whatever the block: work of one core, to be timed.

    >>> sort_repeatedly(2, None)
    0.0
    """
    shuffled = np.arange(SORT_BENCHMARK_SIZE, dtype=float) * 7919 % SORT_BENCHMARK_SIZE
    for _ in range(n_repeats):
        sorted_values = np.sort(shuffled)
    return float(sorted_values[0])


def multiply_block(operand: Array, dtype: np.dtype[Any], is_sparse: bool, block: Any) -> Array:
    """block @ operand in `dtype`, for a block that is an array or in CSR form.

    Integers wrap in `dtype` also where a parity block is wider than the data: equations that hold
    modulo 2^64 hold modulo a smaller power of two. In real products parity of uint64 is what it was
    before it wrapped, which `check_parity_fits_int64` has made sure int64 can hold.

    >>> multiply_block(np.array([1.0, 2.0]), np.dtype(float), False, np.eye(2)).tolist()
    [1.0, 2.0]
    """
    values = block.data if is_sparse else block
    if values.dtype == "u8" and dtype.kind in "fc":
        values = values.view("i8")
    values = values.astype(dtype, copy=False)
    if not is_sparse:
        return np.asarray(values @ operand)
    block.data = values  # the arrays are the worker's, the matrix is ours
    return np.asarray(block @ operand.astype(dtype, copy=False))


def multiply_block_pair(dtype: np.dtype[Any], block_pair: tuple[Array, Array]) -> Array:
    """A_i B_j from A_i and the transpose of B_j."""
    return np.matmul(block_pair[0], block_pair[1].T, dtype=dtype, casting="unsafe")  # type: ignore[no-any-return]


def compute_gram_block(weights: Array | None, dtype: np.dtype[Any], block_pair: tuple[Array, Array]) -> Array:
    """A_i^H diag(weights) A_j from the transposes of A_i and A_j; without weights these are 1.

    Of weights (rows, m) there are m such matrices, along the last axis.
    """
    left, right = block_pair
    if weights is None or weights.ndim == 1:
        right = right if weights is None else np.multiply(right, weights, dtype=dtype, casting="unsafe")
        return multiply_block_pair(dtype, (left.conj(), right))
    products = np.multiply(left.conj()[:, np.newaxis], right, dtype=dtype, casting="unsafe")
    return np.asarray(products @ weights.astype(dtype, copy=False))
