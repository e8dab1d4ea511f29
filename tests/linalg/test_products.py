"""Tests of coded_matmul against NumPy: all shapes, dtypes and layouts, with stragglers and failures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from coded_maps import losing
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap import CodedOperator, coded_gram, coded_matmul, encode
from polarmap.codes import PolarCode
from polarmap.codes.product import ProductCode
from polarmap.errors import CodeError, NotDecodableError, NotLinearError
from polarmap.executors.lithops_internals import get_interpreter_for_lithops
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

STREAM = np.random.default_rng(0)
A, B = STREAM.standard_normal((23, 17)), STREAM.standard_normal((17, 19))
DEAD = Fault("raise", attempts=9)
# The lost tasks of a 5 x 5 grid with 4 x 4 data tasks. They include two data tasks in one row, one in another
# row, and parity tasks.
LOST = dict.fromkeys([0, 1, 6, 18, 22], DEAD)
GRID = {"method": "grid", "tasks": (5, 5), "blocks": (4, 4)}


def matmul(left: Any, right: Any, faults: Any = LOST, seconds: Any = None, **options: Any) -> Any:
    executor = FaultyExecutor(ReplayExecutor(seconds), faults)
    return coded_matmul(left, right, executor=executor, timeout=1000.0, **options)


def matrix(shape: tuple[int, ...], dtype: str, seed: int = 1) -> np.ndarray:
    stream = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu":
        return stream.integers(0, 2**63, shape, dtype=np.uint64).astype(dtype)
    normal = stream.standard_normal(shape)
    return (normal + 1j * stream.standard_normal(shape) if dtype.startswith("c") else normal).astype(dtype)


def assert_close(actual: np.ndarray, expected: np.ndarray, rtol: float) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    if expected.dtype.kind in "iu":
        np.testing.assert_array_equal(actual, expected)
        return
    assert np.abs(actual - expected).max(initial=0) <= rtol * np.abs(expected).max(initial=1e-300)


@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128", "complex64"])
def test_a_grid_matches_the_product_of_numpy(dtype: str) -> None:
    left, right = matrix((23, 17), dtype), matrix((17, 19), dtype, 2)
    array, report = matmul(left, right, **GRID)
    assert_close(array, left @ right, 1e-9 if dtype in ("float64", "complex128") else 1e-3)
    assert report.recovered == (0, 1, 6) and report.code == "rotation grid 5 x 5"


@pytest.mark.parametrize("right_dtype", ["int8", "int64", "uint8", "uint64", "int32"])
@pytest.mark.parametrize("left_dtype", ["int8", "int64", "uint16", "uint64"])
@pytest.mark.parametrize("method", ["grid", "rows", "columns"])
def test_integers_are_exact_and_wrap_as_in_numpy(left_dtype: str, right_dtype: str, method: str) -> None:
    left, right = matrix((11, 6), left_dtype), matrix((6, 9), right_dtype, 2)
    workers: Any = (5, 5) if method == "grid" else 8
    array, report = matmul(left, right, {1: DEAD}, method=method, tasks=workers)
    with np.errstate(over="ignore"):
        assert_close(array, left @ right, 1e-9)
    assert 1 in report.recovered


def test_mixed_dtypes_are_as_precise_as_in_numpy() -> None:
    pairs = [("int32", "float64"), ("float32", "float64"), ("complex64", "float64"), ("float64", "complex64")]
    for left_dtype, right_dtype in pairs:
        left, right = matrix((23, 17), left_dtype), matrix((17, 19), right_dtype, 2)
        for options in (GRID, {"method": "rows"}, {"method": "columns"}):
            assert_close(matmul(left, right, {1: DEAD}, **options).array, left @ right, 1e-9)


@settings(max_examples=60)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    data=st.data(),
    lost=st.integers(0, 1000),
)
def test_products_of_any_shape(shape: tuple[int, int, int], data: st.DataObject, lost: int) -> None:
    m, inner, n = shape
    left, right = matrix((m, inner), "float64"), matrix((inner, n), "float64", 2)
    k = data.draw(st.integers(1, m)), data.draw(st.integers(1, n))
    workers = k[0] + data.draw(st.integers(1, 3)), k[1] + data.draw(st.integers(1, 3))
    faults = {lost % (k[0] * k[1]): DEAD}
    array, report = matmul(left, right, faults, blocks=k, tasks=workers, rtol=1e-7)
    assert_close(array, left @ right, 1e-7)
    # These counts leave no block empty.
    filled = [-(-length // -(-length // count)) for length, count in zip((m, n), k)]
    assert (report.n, report.k) == (workers[0] * workers[1], filled[0] * filled[1])
    for method, side in (("rows", 0), ("columns", 1)):
        sizes = {"blocks": k[side], "tasks": workers[side]}
        actual = matmul(left, right, {lost % k[side]: DEAD}, method=method, rtol=1e-7, **sizes)
        assert_close(actual.array, left @ right, 1e-7)


def test_a_grid_ends_as_soon_as_its_lines_decode_each_other() -> None:
    # In a 3 x 3 grid with 2 x 2 data blocks, these four tasks determine all others.
    chain = [(0, 0), (0, 2), (2, 0), (1, 2)]
    places = ProductCode(PolarCode(3, 2), PolarCode(3, 2)).block_grid
    seconds = dict.fromkeys(range(9), math.inf) | {int(places[cell]): 1.0 for cell in chain}
    array, report = matmul(A, B, {}, seconds, blocks=(2, 2), tasks=(3, 3))
    assert_close(array, A @ B, 1e-9)
    assert report.needed == 4 and report.recovered == (1, 2, 3)


def test_too_few_results() -> None:
    with pytest.raises(NotDecodableError):
        matmul(A, B, dict.fromkeys([0, 1, 4, 5], DEAD), blocks=(4, 4), tasks=(5, 5))


@pytest.mark.parametrize("method", ["auto", "rows", "columns"])
def test_vectors_as_in_numpy(method: str) -> None:
    if method != "columns":
        assert_close(matmul(A, B[:, 0], {1: DEAD}, method=method, tasks=8).array, A @ B[:, 0], 1e-9)
    if method != "rows":
        assert_close(matmul(A[0], B, {1: DEAD}, method=method, tasks=8).array, A[0] @ B, 1e-9)
    assert_close(matmul(A[:1], B, {0: DEAD}, tasks=8).array, A[:1] @ B, 1e-9)
    assert_close(matmul(A, B[:, :1], {0: DEAD}, tasks=8).array, A @ B[:, :1], 1e-9)


def test_lists_and_arrays_on_disk(tmp_path: Any) -> None:
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        left, right = file.create_dataset("a", data=A), file.create_dataset("b", data=B)
        for options in (GRID, {"method": "rows"}, {"method": "columns"}):
            assert_close(matmul(left, right, {1: DEAD}, **options).array, A @ B, 1e-9)
    assert_close(matmul(A.tolist(), B.tolist(), **GRID).array, A @ B, 1e-9)
    places = {"blocks": 3, "tasks": 5, "storage": tmp_path, "progress": False}
    left, right = encode(A, name="a", **places), encode(B, name="b", **places)
    for options in (GRID, {"method": "rows"}, {"method": "columns"}):
        assert_close(matmul(left, right, {1: DEAD}, **options).array, A @ B, 1e-9)


@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_garbage_is_detected_and_excluded(dtype: str) -> None:
    left, right = matrix((20, 8), dtype), matrix((8, 20), dtype, 2)
    faults = {2: DEAD, 1: Fault("garbage", attempts=9)}
    seconds = {0: 2.0}  # This task is late, so decoding is needed even after the surplus has arrived.
    array, report = matmul(left, right, faults, seconds, blocks=(3, 3), tasks=(5, 5), verify=True)
    assert_close(array, left @ right, 1e-9)
    assert report.tasks_in_state("failed") == [1, 2]
    assert "contradicts" in report.tasks[1].failures[0]


def test_garbage_that_cannot_be_located_is_an_error() -> None:
    faults = {2: DEAD, 3: Fault("garbage", attempts=9), 5: Fault("garbage", attempts=9)}
    with pytest.raises(NotLinearError, match="a product of two blocks"):
        matmul(A, B, faults, blocks=(2, 2), tasks=(3, 3), retries=0, verify=True)


def test_stragglers_and_dead_processes_of_lithops_and_every_block_is_stored_once(tmp_path: Any) -> None:
    import lithops

    config = {
        "lithops": {"backend": "localhost", "storage": "localhost", "monitoring_interval": 0.02},
        "localhost": {"version": 1, "runtime": get_interpreter_for_lithops(), "worker_processes": 3},
    }
    with lithops.FunctionExecutor(config=config, log_level=None) as functions:
        storage, put, keys = functions.storage, functions.storage.put_object, []
        storage.put_object = lambda bucket, key, body: keys.append(key) or put(bucket, key, body)
        executor = FaultyExecutor(functions, {0: Fault("sleep", 60), 1: Fault("kill")})
        product = coded_matmul(A, B, blocks=(2, 2), tasks=(3, 3), executor=executor, timeout=60)
        assert_close(product.array, A @ B, 1e-9)
        assert product.report.tasks[0].arrived is None and 0 in product.report.recovered
        assert len([key for key in keys if "/blocks/" in key]) == 3 + 3
        assert storage.list_keys(storage.bucket, "polarmap") == []


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (A, A, r"A of shape \(23, 17\) and B of shape \(23, 17\) do not match: 17 columns against 23 rows"),
        (A[0], B[:, 0], "A and B are both vectors"),
        (A, np.ones((17, 0)), r"B must be a matrix with rows and columns, not of shape \(17, 0\)"),
        (A, np.array([["x"]] * 17), "B has dtype <U1"),
        (scipy.sparse.eye_array(17).tocsr(), B, r"A is a sparse csr_array: use CodedOperator\(A\) @ B"),
        (A, scipy.sparse.eye_array(17).tocsr(), r"B is a sparse .*use \(CodedOperator\(B\.T\) @ A\.T\)\.T"),
        (A, np.ma.array(B), "B is a masked array"),
        *[(np.full((23, 17), value), B, "A has NaN or inf") for value in (math.nan, math.inf)],
        *[(A, np.full((17, 19), value), "B has NaN or inf") for value in (math.nan, math.inf)],
    ],
)
def test_invalid_factors_are_refused(left: Any, right: Any, message: str) -> None:
    for options in ({}, GRID, {"method": "rows"}, {"method": "columns"}):
        with pytest.raises(CodeError, match=message):
            coded_matmul(left, right, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method must be 'auto', 'rows', 'columns' or 'grid', not 'magic'"),
        (
            {"method": "rows", "blocks": (2, 2)},
            r"encodes one factor, so blocks must be an integer, not \(2, 2\)",
        ),
        ({"method": "rows", "blocks": 24}, "blocks=24 is more than the 23 rows; use blocks <= 23"),
        ({"method": "columns", "blocks": 20}, "blocks=20 is more than the 19 columns"),
        ({"blocks": (24, 2)}, "blocks=24 is more than the 23 rows; use blocks <= 23"),
        ({"method": "grid", "blocks": 4}, r"blocks of a grid must be a pair \(for A, for B\), not 4"),
        ({"tasks": (4, 4, 4)}, "tasks of a grid must be a pair"),
        ({"method": "grid", "tasks": 3}, r"at least 4 \(2 x 2\), not 3"),
        ({"tasks": (4, 1)}, "tasks=1 leaves no parity blocks for 1 blocks of columns"),
        (
            {"method": "rows", "blocks": 4, "tasks": 4},
            "no parity blocks for 4 blocks of rows: use tasks > 4",
        ),
        ({"tasks": 0}, "tasks must be a positive integer, not 0"),
        ({"method": "grid", "code": "fountain"}, "code must be"),
    ],
)
def test_invalid_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        coded_matmul(A, B, **options)


def test_a_product_prints_one_line() -> None:
    product = coded_matmul(np.ones((12, 5)), np.ones((5, 3)), executor=ReplayExecutor())
    assert repr(product) == "<CodedProduct of 12 x 3 float64, 0 of its blocks decoded>"


def test_products_of_other_byte_orders() -> None:
    A, B = STREAM.standard_normal((48, 3)).astype(">f8"), STREAM.standard_normal((3, 5)).astype(">f8")
    wide = STREAM.integers(0, 99, (12, 4)).astype(">i4")
    never = {"executor": losing(0)}
    for method in ("rows", "columns", "grid"):
        np.testing.assert_allclose(coded_matmul(A, B, method=method, **never).array, A @ B, atol=1e-10)
    np.testing.assert_allclose(coded_gram(A, blocks=3, **never).array, A.T @ A, atol=1e-9)
    assert np.array_equal(coded_gram(wide, blocks=2, tasks=4, **never).array, wide.T @ wide)
    with CodedOperator(A, blocks=6, **never) as operator:
        np.testing.assert_allclose(operator @ B[:, 0], A @ B[:, 0], atol=1e-10)
