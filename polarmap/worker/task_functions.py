"""Functions that workers call with a data block if the user's function f does not take the block itself.

Some of these functions convert the block to arguments of f: any pickled values, sparse rows, or several parts
whose results are added up. Others compute matrix products, and are defined at module level, so that they are
pickled by name. This module runs on workers, so it imports at most numpy. Only tasks on sparse rows also
import scipy.
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

# After this many seconds, a worker starts no further item of a batch. Other workers run the remaining items.
MAX_BATCH_SECONDS = 0.1
SORT_BENCHMARK_SIZE = 20_000  # size of the array sorted by a benchmark task

Array = npt.NDArray[Any]


def make_weighted_sum_task(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a task function that computes a weighted sum of several results of f.

    The task function takes a pair: an array of coefficients, and a sequence of data parts, one for each
    coefficient. It calls f with each part, multiplies each result by the coefficient, and returns the sum.
    """

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
    """Return a task function that calls f with a sparse matrix.

    The task function takes the three CSR arrays of the matrix: data, indices and indptr. It is a closure, so
    that the modules that f uses are sent to workers with it.

    Parameters
    ----------
    f : callable
        The user's function, which is called with a sparse matrix.
    matrix_class : type
        The class of the matrix, `scipy.sparse.csr_array` or `csr_matrix`.
    n_columns : int
        The number of columns of the matrix.
    """

    def call_with_matrix(block: Any) -> Any:
        return f(build_csr_matrix(block, matrix_class, n_columns))

    return call_with_matrix


def build_csr_matrix(csr_arrays: Sequence[Array], matrix_class: type, n_columns: int) -> Any:
    """Return a sparse matrix in CSR format, given its arrays (data, indices, indptr) and number of columns.

    >>> from scipy.sparse import csr_array
    >>> block = np.array([5.0, 7.0]), np.array([1, 0]), np.array([0, 1, 1, 2])
    >>> build_csr_matrix(block, csr_array, 2).toarray().tolist()
    [[0.0, 5.0], [0.0, 0.0], [7.0, 0.0]]
    """
    # Copy received arrays that are misaligned in memory, because scipy's compiled code may need alignment.
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
    """Return a task function that calls f with each item of a block, and pickles the results.

    It is a closure, so that the modules that f uses are sent to workers with it.

    Parameters
    ----------
    f : callable
        The user's function, which is called with each item.
    star : bool
        Whether each item is a tuple of positional arguments, as in `itertools.starmap`, instead of a single
        argument.
    args, kwargs : sequence and dict, optional
        Additional arguments for each call.
    unpickle_blocks : bool
        Whether blocks are pickled. A block of dtype int8 is then a pickle of several items, and any other
        block is a single item, pickled by `pickle_to_array`. If False, the block itself is the only item.
    may_stop_early : bool
        Whether to leave the remaining items of a block to other workers if the first ones take long.
    referenced_objects : sequence
        Classes and functions that the items refer to. The state of their modules is sent along with f.

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
    """Execute the function call or the batch of calls that a block contains. Return the pickled results.

    A block of dtype uint8 contains a single call: the tuple (function, arguments, keyword arguments), pickled
    by `pickle_to_array`. A block of dtype int8 contains a batch of calls of one function: a pickle of the
    function and a list of pickled arguments, one for each call. A batch is run by `execute_batch`.

    In both cases, the function may itself be a pickle by `pickle_to_array`, or the path of a file with such a
    pickle.

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
    """Call f with each item of a batch, and return the pickled results and errors.

    The pickled value is a pair (results, errors). `results` is a list with the result of each item, pickled
    by `pickle_each`. `errors` is a dict that maps the positions of failed items to their errors, as plain
    tuples.

    If `may_stop_early` is true, no further item is started after MAX_BATCH_SECONDS. The list of results is
    then shorter than the batch.

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
            # Leave the remaining items to other workers or, if f has forked this process, to its parent.
            if time.monotonic() > deadline or os.getpid() != original_pid:
                break

    pickled_results = pickle_each(call_until_deadline())
    for index, pickled_result in enumerate(pickled_results):
        if isinstance(pickled_result, Exception):
            pickled_results[index], errors[index] = None, to_plain_tuple(describe_error(pickled_result))
    return pickle_to_packed_tree((pickled_results, errors))


def call_each(f: Callable[..., Any], argument_tuples: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Call f with each tuple of arguments, and return the list of results.

    This function lets a single task run several calls.

    >>> call_each(pow, [(2, 3), (3, 2)])
    [8, 9]
    """
    return [f(*arguments) for arguments in argument_tuples]


def sort_repeatedly(n_repeats: int, block: Any) -> float:
    """Sort the same numbers `n_repeats` times, as a benchmark that keeps one core busy.

    The block is ignored.

    >>> sort_repeatedly(2, None)
    0.0
    """
    shuffled = np.arange(SORT_BENCHMARK_SIZE, dtype=float) * 7919 % SORT_BENCHMARK_SIZE
    for _ in range(n_repeats):
        sorted_values = np.sort(shuffled)
    return float(sorted_values[0])


def multiply_block(operand: Array, dtype: np.dtype[Any], is_sparse: bool, block: Any) -> Array:
    """Return the matrix product `block @ operand`, computed in `dtype`, for a dense or a sparse block.

    The block may be a parity block (a linear combination of data blocks), which can have a wider dtype than
    the data. An integer product may then overflow. This is harmless, because the linear equations between
    blocks hold modulo 2^64, and therefore also modulo smaller powers of two.

    If `dtype` is a floating-point type, a parity block of dtype uint64 is interpreted as int64.
    `check_parity_fits_int64` has verified that its values fit.

    >>> multiply_block(np.array([1.0, 2.0]), np.dtype(float), False, np.eye(2)).tolist()
    [1.0, 2.0]
    """
    values = block.data if is_sparse else block
    if values.dtype == "u8" and dtype.kind in "fc":
        values = values.view("i8")
    values = values.astype(dtype, copy=False)
    if not is_sparse:
        return np.asarray(values @ operand)
    # The matrix object was created for this task, so its array of values can be replaced. The array itself
    # must not be modified, because it may be cached.
    block.data = values
    return np.asarray(block @ operand.astype(dtype, copy=False))


def multiply_block_pair(dtype: np.dtype[Any], block_pair: tuple[Array, Array]) -> Array:
    """Return the block A_i B_j of a matrix product A B.

    `block_pair` contains A_i (rows of A) and the transpose of B_j (columns of B).
    """
    return np.matmul(block_pair[0], block_pair[1].T, dtype=dtype, casting="unsafe")  # type: ignore[no-any-return]


def compute_gram_block(weights: Array | None, dtype: np.dtype[Any], block_pair: tuple[Array, Array]) -> Array:
    """Return a block of the weighted Gram matrix A^H diag(weights) A, for two blocks of columns of A.

    Parameters
    ----------
    weights : array or None
        The weight of each row; None for an unweighted product. If its shape is (rows, m), the result contains
        m matrices along its last axis, one for each column of weights.
    dtype : numpy.dtype
        The dtype of the result.
    block_pair : tuple of array
        The transposes of the two blocks of columns.
    """
    left, right = block_pair
    if weights is None or weights.ndim == 1:
        right = right if weights is None else np.multiply(right, weights, dtype=dtype, casting="unsafe")
        return multiply_block_pair(dtype, (left.conj(), right))
    products = np.multiply(left.conj()[:, np.newaxis], right, dtype=dtype, casting="unsafe")
    return np.asarray(products @ weights.astype(dtype, copy=False))
