"""Tests of the functions that workers call: arguments of f, sparse rows, sums, batches and products."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import pytest
import scipy.sparse

from polarmap.executors.pickling import pickle_worker_code_by_value
from polarmap.worker.pickled_values import pickle_to_array, unpickle_array
from polarmap.worker.pytree import PackedTree, unpack_leaves
from polarmap.worker.task_functions import (
    build_csr_matrix,
    call_each,
    compute_gram_block,
    execute_batch,
    execute_pickled_call,
    make_call_task,
    make_csr_task,
    make_weighted_sum_task,
    multiply_block,
    multiply_block_pair,
)


def unpickle_result(packed: PackedTree) -> Any:
    """Return the value that the driver unpickles from a packed result."""
    return unpickle_array(unpack_leaves(packed.layout, packed.data)[0])


def test_the_arguments_of_a_call() -> None:
    def return_arguments(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    assert unpickle_result(make_call_task(return_arguments)([1, 2])) == (([1, 2],), {})
    assert unpickle_result(make_call_task(return_arguments, True)((1, 2))) == ((1, 2), {})
    call = make_call_task(return_arguments, True, (Path("a"), 3), {"b": None}, unpickle_blocks=True)
    assert unpickle_result(call(pickle_to_array(("x", {1})))) == (("x", {1}, Path("a"), 3), {"b": None})
    assert unpickle_result(
        execute_pickled_call(pickle_to_array((return_arguments, ({1},), {"b": None})))
    ) == (
        ({1},),
        {"b": None},
    )
    assert unpickle_result(
        execute_pickled_call(pickle_to_array((call_each, (return_arguments, [(7, 2), ()]), {})))
    ) == [
        ((7, 2), {}),
        ((), {}),
    ]


WORKER = """
import pickle, sys
sys.modules["polarmap"] = None  # cannot be imported
calls = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(pickle.dumps([tuple(call(block)) for call, block in calls]))
"""


def test_a_worker_needs_numpy_and_cloudpickle_only() -> None:
    class Inside(NamedTuple):
        x: Any

    def f(value: Any, factor: int) -> Any:
        return Inside((value["path"], factor * value["x"], None))

    value = {"path": Path("a"), "x": np.arange(3)}
    with pickle_worker_code_by_value():
        block, call = pickle_to_array(value), pickle_to_array((partial(call_each, f), ([(value, 2)],), {}))
        sent = cloudpickle.dumps(
            [(make_call_task(f, args=(2,), unpickle_blocks=True), block), (execute_pickled_call, call)]
        )
    run = subprocess.run([sys.executable, "-c", WORKER], input=sent, capture_output=True, timeout=60)
    assert run.returncode == 0, run.stderr.decode()
    first, [second] = [unpickle_result(PackedTree(*packed)) for packed in pickle.loads(run.stdout)]
    for actual in (first, second):
        assert type(actual) is Inside and (actual.x[0], actual.x[2]) == (Path("a"), None)
        np.testing.assert_array_equal(actual.x[1], np.arange(0, 6, 2), strict=True)


# --- sums and sparse rows ---------------------------------------------------------------------------

PARTS = [np.arange(3.0), np.arange(3.0) + 10]


def test_results_are_added_up_with_their_coefficients() -> None:
    combine = make_weighted_sum_task(lambda part: {"square": part**2, "sum": part.sum()})
    total = combine((np.array([2.0, -1.0]), PARTS))
    assert total["square"].tolist() == (2 * PARTS[0] ** 2 - PARTS[1] ** 2).tolist()
    assert float(total["sum"]) == 2 * 3.0 - 33.0


def test_truth_values_are_counted() -> None:
    total = make_weighted_sum_task(lambda part: part > 1)((np.array([1, 1]), PARTS))
    assert total.tolist() == [1, 1, 2]
    assert total.dtype.kind == "i"


@pytest.mark.parametrize(
    ("f", "error", "words"),
    [
        (lambda part: part.astype(str), TypeError, "cannot be added up: return numbers"),
        (
            lambda part: [part] * (1 + int(part[0] > 1)),
            ValueError,
            "different structures",
        ),
    ],
)
def test_results_that_cannot_be_added_raise_a_clear_error(f: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make_weighted_sum_task(f)((np.ones(2), PARTS))


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.csr_matrix])
def test_f_sees_the_matrix(kind: Any) -> None:
    matrix = kind(np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 4.0]]))
    leaves = matrix.data, matrix.indices, matrix.indptr
    seen = make_csr_task(lambda rows: rows, kind, 3)(leaves)
    assert type(seen) is kind and seen.shape == (3, 3)
    assert (seen != matrix).nnz == 0


def test_numbers_at_unaligned_offsets_are_read() -> None:
    matrix = scipy.sparse.csr_array(np.array([[5, 0, 6], [0, 7, 0]], np.int8))
    arrays = (matrix.data, matrix.indices, matrix.indptr)
    raw, places = (
        b"".join(array.tobytes() for array in arrays),
        np.cumsum([0, *(array.nbytes for array in arrays)]),
    )
    leaves = [np.frombuffer(raw, array.dtype, array.size, start) for array, start in zip(arrays, places)]
    assert not leaves[1].flags.aligned
    np.testing.assert_array_equal(
        build_csr_matrix(leaves, scipy.sparse.csr_array, 3).toarray(), matrix.toarray()
    )


def test_a_child_forked_by_f_does_not_continue_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the parent process continues the batch, so f runs once for each item.
    monkeypatch.setattr("polarmap.worker.task_functions.MAX_BATCH_SECONDS", 60.0)
    here, forked = os.getpid(), list[int]()

    def f(number: int) -> int:
        if number == 1:
            forked.append(os.fork())
        return number

    ends, _ = unpickle_result(execute_batch(f, [pickle.dumps(number) for number in range(4)]))
    if os.getpid() != here:
        os._exit(len(ends))
    _, status = os.waitpid(forked[0], 0)
    assert (len(ends), os.waitstatus_to_exitcode(status)) == (4, 2)


def test_calls_in_a_batch_return_the_same_as_a_single_call_in_a_block() -> None:
    def block(head: Any, *values: Any) -> np.ndarray:
        return np.frombuffer(pickle.dumps((head, [pickle.dumps(value) for value in values])), np.int8)

    for call, head in (
        (make_call_task(abs, unpickle_blocks=True), None),
        (execute_pickled_call, abs),
        (execute_pickled_call, pickle_to_array(abs).tobytes()),
    ):
        assert unpickle_result(call(block(head, -3))) == 3
        (actual, _), errors = unpickle_result(call(block(head, -3, "x")))
        assert pickle.loads(actual) == 3
        assert errors[1][:2] == ("TypeError", "bad operand type for abs(): 'str'")
    (_, actual), errors = unpickle_result(make_call_task(iter, unpickle_blocks=True)(block(None, map, [1])))
    assert "'type' object is not iterable" in errors[0][1]
    assert list(pickle.loads(actual)) == [1]
    _, errors = unpickle_result(execute_batch(lambda value: threading.Lock(), [pickle.dumps(1)] * 2))
    assert all("cannot pickle '_thread.lock' object" in errors[item][1] for item in (0, 1))


# --- products of blocks ---------------------------------------------------------------------------

STREAM = np.random.default_rng(0)
LEFT, RIGHT = STREAM.integers(0, 9, (4, 6)), STREAM.integers(0, 9, (3, 6))


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "uint16", "float32", "complex64"])
def test_a_product_has_the_given_dtype(dtype: str, is_sparse: bool) -> None:
    expected_dtype, operand = np.dtype(dtype), RIGHT.T.astype(dtype)
    block = scipy.sparse.csr_array(LEFT) if is_sparse else LEFT
    actual = multiply_block(operand, expected_dtype, is_sparse, block)
    assert actual.dtype == expected_dtype
    np.testing.assert_array_equal(actual, LEFT.astype(dtype) @ operand)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_parity_of_uint64_is_unwrapped(is_sparse: bool) -> None:
    parity = (-LEFT).astype(np.uint64)
    block = scipy.sparse.csr_array(parity) if is_sparse else parity
    actual = multiply_block(RIGHT.T.astype(float), np.dtype(float), is_sparse, block)
    np.testing.assert_array_equal(actual, -LEFT @ RIGHT.T)


def test_pairs_of_blocks_with_and_without_weights() -> None:
    left, right, weights = LEFT + 1j, RIGHT - 2j, np.arange(6.0)
    dtype = np.dtype(complex)
    np.testing.assert_array_equal(multiply_block_pair(dtype, (left, right)), left @ right.T)
    np.testing.assert_array_equal(compute_gram_block(None, dtype, (left, right)), left.conj() @ right.T)
    actual = compute_gram_block(weights, dtype, (left, right))
    np.testing.assert_array_equal(actual, left.conj() @ np.diag(weights) @ right.T)


def test_a_product_is_pickled_by_its_name() -> None:
    # Pickling the function by value took a tenth of the Python calls of a map.
    f = partial(multiply_block, np.ones(6), np.dtype(float), False)
    assert len(pickle.dumps(f)) < 600
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(f))(LEFT), LEFT.sum(axis=1))
