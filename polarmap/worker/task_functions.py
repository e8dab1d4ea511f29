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
    is_batch: bool = False,
    return_exceptions: bool = False,
    referenced_objects: Sequence[Any] = (),
) -> Callable[[Any], PackedTree]:
    """f as workers call it, with what a block stands for; its result as `pickle_to_packed_tree` has it.

    A closure, so that f's own modules travel with it.

    star : whether the value of a block is all positional arguments, rather than the first.
    args, kwargs : further arguments of every call.
    unpickle_blocks : whether blocks are made by `pickle_to_array`, or are pickles of the pickles of some
        values, as integers of 8 bits; else they are the values.
    is_batch : whether the value of a block is a list of what f is called with, one after the other.
    return_exceptions : of a group, whether what f raises on one of these stands in the place of its result:
        each is told as (True, its result) or (False, its error as plain data).
    referenced_objects : classes and functions that values are made of. f brings along the state of their
        modules.

    >>> from polarmap.worker.pickled_values import pickle_to_array
    >>> call = make_call_task(dict.get, args=("a",), unpickle_blocks=True)
    >>> unpickle_array(np.frombuffer(call(pickle_to_array({"a": {1, 2}})).data, np.uint8))
    {1, 2}
    """
    keyword_args = dict(kwargs or {})

    def call_with_value(value: Any) -> Any:
        return f(*(value if star else (value,)), *args, **keyword_args)

    def call_and_catch(value: Any) -> Any:
        if not return_exceptions:
            return call_with_value(value)
        try:
            return True, call_with_value(value)
        except BaseException as error:  # sys.exit on one item is not to end the others
            return False, to_plain_tuple(describe_error(error))

    def call_on_block(block: Any) -> PackedTree:
        value = block
        if unpickle_blocks and block.dtype == np.int8:
            _, values = pickle.loads(block.data)
            if len(values) > 1:
                return execute_batch(call_with_value, values)
            value = unpickle_item(values[0])
        elif unpickle_blocks:
            value = unpickle_array(block)
        result = [call_and_catch(item) for item in value] if is_batch else call_with_value(value)
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


def execute_batch(f: Callable[[Any], Any], pickled_values: Sequence[bytes]) -> PackedTree:
    """What f returns for each value of these pickles, or raises; of the first ones only, if these take long.

    A list of pickles, and errors as plain data by position.

    >>> data = execute_batch(abs, [pickle.dumps(-3), pickle.dumps("x")]).data
    >>> (three, _), errors = unpickle_array(np.frombuffer(data, np.uint8))
    >>> pickle.loads(three), errors[1][0]
    (3, 'TypeError')
    """
    original_pid, deadline = os.getpid(), time.monotonic() + MAX_BATCH_SECONDS
    errors = dict[int, Any]()

    def call_until_deadline() -> Iterator[Any]:
        for index, pickled_value in enumerate(pickled_values):
            result = None
            try:
                result = f(unpickle_item(pickled_value))
            except BaseException as error:
                errors[index] = to_plain_tuple(describe_error(error))
            yield result
            # Others may do the rest; in a child that f has forked, its parent does.
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
