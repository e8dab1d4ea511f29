"""Tests of the allowed factors of a product, and of how they are read and multiplied."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from linalg.test_operators import TALL, assert_close, lossy, operator, random_matrix

from polarmap import CodedOperator
from polarmap.errors import CodeError
from polarmap.linalg.operands import TransposedView, ValidatedMatrix, choose_encoding_dtype
from polarmap.testing import Fault


@pytest.mark.parametrize("of_x", ["int8", "uint8", "int64", "uint64", "bool"])
@pytest.mark.parametrize("of_a", ["int8", "uint8", "uint16", "int64", "uint64"])
def test_integers_are_exact_and_wrap_as_in_numpy(of_a: str, of_x: str) -> None:
    stream = np.random.default_rng(2)
    A = stream.integers(0, 2**62, (20, 8)).astype(of_a)
    x, y = stream.integers(0, 2**62, (8, 2)).astype(of_x), stream.integers(0, 2**62, 20).astype(of_x)
    with operator(A, blocks=4, tasks=8, executor=lossy({1: Fault("raise", attempts=9)})) as coded:
        # NumPy gives float64 for uint64 with a signed dtype.
        if np.result_type(A, x).kind == "f" and A.itemsize < 8:
            assert_close(coded @ x, A @ x, 1e-9)
            return
        if np.result_type(A, x).kind == "f":
            with pytest.raises(CodeError, match="do not fit into 64 bits"):
                coded @ x
            return
        for result, expected in [(coded @ x, A @ x), (coded.rmatvec(y), A.T @ y)]:
            assert result.dtype == expected.dtype
            np.testing.assert_array_equal(result, expected)


def test_integers_with_real_vectors() -> None:
    A = np.random.default_rng(3).integers(-9, 9, (30, 12))
    x = np.random.default_rng(4).standard_normal(12)
    with operator(A) as coded:
        assert_close(coded @ x, A @ x, 1e-10)


def test_mixed_precisions_have_the_dtype_of_numpy() -> None:
    A = random_matrix((20, 12), "float32")
    with operator(A) as coded:
        assert_close(coded @ np.ones(12), A @ np.ones(12), 1e-4)
        assert_close(coded @ np.full(12, 1j), A @ np.full(12, 1j), 1e-4)


@pytest.mark.parametrize(
    ("A", "message"),
    [
        (np.ones(3), r"A must be a matrix with rows and columns, not of shape \(3,\)"),
        (np.ones((2, 3, 4)), r"not of shape \(2, 3, 4\)"),
        (np.ones((0, 3)), r"not of shape \(0, 3\)"),
        (np.ones((3, 0)), r"not of shape \(3, 0\)"),
        (3.0, r"not of shape \(\)"),
        (np.ones((2, 2), bool), "A has dtype bool"),
        (np.array([["a", "b"]]), "A has dtype <U1"),
        ([[1, 2], [3]], "A is not a matrix"),
        (np.ma.ones((2, 2)), "A is a masked array"),
        (
            scipy.sparse.coo_array([1.0, 2.0]),
            r"A must have two axes, but is a sparse coo_array of shape \(2,\): use .*reshape",
        ),
        (scipy.sparse.csr_array((3, 0)), r"A of shape \(3, 0\) is empty"),
        (scipy.sparse.eye_array(3, dtype=bool), "A has dtype bool"),
        (scipy.sparse.csr_array([[1.0, math.nan]]), "A has NaN or inf"),
    ],
)
def test_operands_that_are_not_matrices_are_refused(A: Any, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        CodedOperator(A)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_inf_are_refused(value: float) -> None:
    A = TALL.copy()
    A[3, 5] = value
    with pytest.raises(CodeError, match=r"A has NaN or inf \(1 in a block"):
        operator(A) @ np.ones(13)
    with pytest.raises(CodeError, match=r"the operand has NaN or inf \(2 in"):
        operator(TALL) @ np.array([value] * 2 + [1] * 11)


def test_a_matrix_is_checked_and_cast_as_it_is_read() -> None:
    matrix = np.arange(12, dtype=np.int32).reshape(4, 3)
    checked = ValidatedMatrix(matrix, "A")
    assert checked[1:3].dtype == np.int32 and checked.max_abs == 8
    assert np.shares_memory(checked[1:3], matrix)
    turned = TransposedView(ValidatedMatrix(matrix, "A", np.dtype(float)))
    assert turned.shape == (3, 4) and turned.dtype == float
    np.testing.assert_array_equal(turned[1:], matrix.T[1:])
    np.testing.assert_array_equal(turned[:2, 1:3], matrix.T[:2, 1:3])
    with pytest.raises(CodeError, match=r"B has NaN or inf \(1 in a block of shape \(2, 2\)"):
        ValidatedMatrix(np.array([[1.0, np.nan], [0.0, 1.0], [2.0, 3.0]]), "B")[:2]


def test_no_factor_is_coarser_than_the_product() -> None:
    real = [("i4", "f8", "f8"), ("f4", "f8", "f8"), ("f4", "c16", "f8")]
    for factor, product, expected in [*real, ("c8", "c16", "c16"), ("i4", "i8", "i4")]:
        assert choose_encoding_dtype(np.dtype(factor), np.dtype(product)) == expected
