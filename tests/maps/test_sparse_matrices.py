"""Sparse matrices through maps and operators, with scipy's products as the oracle."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import lsqr, svds

from polarmap import CodedOperator, Pool, coded_gradient, coded_gram, coded_map, coded_sum, encode, hedged_map
from polarmap.arrays import Stored
from polarmap.blocks import sparse
from polarmap.blocks.equal import compute_max_nonempty_blocks
from polarmap.codes import PolarCode, SecretSharing
from polarmap.errors import CodeError, NotLinearError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

A = scipy.sparse.random_array((50, 13), density=0.2, format="csr", rng=0)
X, Y = np.random.default_rng(1).standard_normal(13), np.random.default_rng(2).standard_normal(50)
LOST = {1: Fault("raise", attempts=9), 4: Fault("raise", attempts=9), 7: Fault("raise", attempts=9)}
FORMATS = ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make maps use backup tasks instead of parity, by allowing no extra work for parity blocks."""
    monkeypatch.setattr(sparse, "MAX_RELATIVE_WORK", 0.0)


def lossy(faults: Any = LOST) -> FaultyExecutor:
    return FaultyExecutor(ReplayExecutor(), faults)


def assert_close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, atol=1e-12)


# --- coded_map -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", [scipy.sparse.coo_array, scipy.sparse.coo_matrix])
def test_every_format_is_cut_into_csr_rows(form: str, kind: Any) -> None:
    matrix, seen = kind(A).asformat(form), set()

    def f(rows: Any) -> Any:
        seen.add(type(rows))
        return rows @ X

    result = coded_map(f, matrix, blocks=6, tasks=9, executor=lossy())
    assert_close(result.concatenate(), A @ X)
    report = result.report
    assert report.recovered == (1, 4) and report.k == 6
    assert report.code_reason in str(report) and "coded: a parity block has" in str(report)
    assert seen == {scipy.sparse.csr_matrix if kind is scipy.sparse.coo_matrix else scipy.sparse.csr_array}


@settings(max_examples=60)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 10),
    k=st.integers(1, 7),
    density=st.sampled_from([0.0, 0.03, 0.3, 1.0]),
    dtype=st.sampled_from(["f4", "f8", "c16", "i1", "i8", "u8"]),
    lost=st.sets(st.integers(0, 9), max_size=2),
    verb=st.sampled_from(["map", "rows", "columns"]),
    attempts=st.sampled_from([0, 1, 9]),
)
def test_products_with_any_matrix(
    rows: int, columns: int, k: int, density: float, dtype: str, lost: set[int], verb: str, attempts: int
) -> None:
    stream = np.random.default_rng(rows * columns)
    values = stream.integers(-9, 9, (rows, columns)) * (stream.random((rows, columns)) < density)
    matrix = scipy.sparse.csr_array(values.astype(dtype) * np.array(1, dtype))
    length = rows if verb == "columns" else columns
    x = stream.integers(-9, 9, (length, 2)).astype(dtype)
    expected = (matrix.toarray().T if verb == "columns" else matrix.toarray()) @ x
    if rows == 1:  # The map may then have two tasks only. If both raise, f is taken to fail everywhere.
        lost -= {1}
    if dtype[0] in "iu":  # Some pairs of lost results cannot be decoded over the integers.
        lost = set(sorted(lost)[:1])
    executor = lossy({task: Fault("raise", attempts=attempts) for task in lost})
    if verb == "map":
        k = compute_max_nonempty_blocks(rows, min(k, rows))
        result = coded_map(lambda block: block @ x, matrix, blocks=k, tasks=k + 5, executor=executor)
        joined = result.concatenate()
    else:
        with CodedOperator(matrix, blocks=k, tasks=k + 6, executor=executor) as operator:
            joined = operator @ x if verb == "rows" else operator.T @ x
    assert joined.dtype == expected.dtype
    if dtype[0] in "iu":
        np.testing.assert_array_equal(joined, expected)
    else:
        scale = np.abs(expected).max(initial=1.0)
        np.testing.assert_allclose(joined, expected, atol=scale * (1e-3 if dtype == "f4" else 1e-9))


def test_reductions_and_functions_that_modify_their_block() -> None:
    sums = coded_map(
        lambda rows: rows.sum(axis=0), A, blocks=5, tasks=8, executor=lossy({1: Fault("raise", attempts=9)})
    )
    assert_close(sum(sums), A.sum(axis=0))

    def double(rows: Any) -> Any:
        rows.data *= 2
        return rows @ X

    with Pool(workers=2) as pool:
        for _ in range(2):  # the second map reads cached blocks
            result = coded_map(double, A, blocks=5, executor=pool)
            assert_close(result.concatenate(), 2 * (A @ X))


def test_nonlinear_function_is_detected() -> None:
    with pytest.raises(NotLinearError):
        coded_map(lambda rows: (rows * rows) @ X, A, blocks=5, tasks=8, executor=lossy())


def test_error_for_a_sparse_result_says_what_to_return() -> None:
    with pytest.raises(TypeError, match=r"f returned a .*csr_array: use its \.toarray\(\)"):
        coded_map(lambda rows: 2 * rows, A, blocks=5, executor=ReplayExecutor())


@pytest.mark.filterwarnings("ignore:.*no result beyond")
def test_warning_about_nan_names_its_row() -> None:
    matrix = A.copy()
    matrix.data[matrix.indptr[17]] = math.nan
    with pytest.warns(RuntimeWarning, match="NaN or inf at 1 position, the first in row 17"):
        result = coded_map(lambda rows: rows @ X, matrix, blocks=5, tasks=8, executor=ReplayExecutor())
    assert_close(result.concatenate(), matrix @ X)


@pytest.mark.parametrize("options", [{"schedule": "on_demand"}, {"timeout": 9.0, "on_timeout": "estimate"}])
def test_options_that_need_parity_use_parity(options: Any, copies: None) -> None:
    result = coded_map(lambda rows: rows @ X, A, blocks=6, tasks=9, executor=lossy(), **options)
    assert_close(result.concatenate(), A @ X)
    assert result.report.recovered and result.report.code_reason.startswith("coded, because ")


def test_results_may_stay_in_storage(tmp_path: Any, copies: None) -> None:
    with ThreadPoolExecutor(4) as pool:
        result = coded_map(
            lambda rows: rows @ X, A, blocks=6, tasks=9, executor=pool, out=Stored("product", tmp_path)
        )
    assert_close(result.concatenate(), A @ X)
    assert result.report.code_reason == "coded, because out= needs parity blocks"


# --- backups of late tasks -----------------------------------------------------------------------


def test_late_tasks_get_backups(copies: None) -> None:
    slow = FaultyExecutor(ReplayExecutor(), {2: Fault("sleep", 60.0), 3: Fault("raise")})
    result = coded_map(lambda rows: rows @ X, A, blocks=6, executor=slow)
    np.testing.assert_array_equal(result.concatenate(), A @ X)
    report = result.report
    assert (report.n, report.k, report.code) == (6, 6, "no code, backup tasks")
    assert [report.tasks[task].attempts for task in (2, 3)] == [2, 2] and report.seconds < 60
    assert report.code_reason.startswith("backups of late tasks: a parity block has up to ")


def test_backups_need_no_linear_function(copies: None) -> None:
    result = coded_map(lambda rows: (rows * rows) @ X, A, blocks=6, executor=ReplayExecutor())
    assert_close(result.concatenate(), (A * A) @ X)


def test_operator_starts_backups_of_late_tasks(copies: None) -> None:
    slow = FaultyExecutor(ReplayExecutor(), {2: Fault("sleep", 60.0), 3: Fault("raise")})
    with CodedOperator(A, blocks=6, executor=slow) as operator:
        for _ in range(2):
            assert_close(operator @ X, A @ X)
            assert_close(operator.rmatvec(Y), A.T @ Y)
        assert operator.report.code_reason.startswith("backups of late tasks")
    with CodedOperator(A, blocks=6, tasks=9, code="rotation", executor=lossy()) as operator:
        assert_close(operator @ X, A @ X)
        assert operator.report.code == "rotation code"


# --- workers that sleep or die -------------------------------------------------------------------


def test_solvers_with_dead_workers() -> None:
    matrix = scipy.sparse.random_array((120, 4), density=0.2, format="csr", rng=3)
    b = np.random.default_rng(4).standard_normal(120)
    unlucky = FaultyExecutor(None, {1: Fault("kill"), 4: Fault("sleep", 60.0)})
    with CodedOperator(matrix, blocks=6, tasks=9, executor=unlucky) as operator:
        solution = lsqr(operator, b, atol=1e-12, btol=1e-12, iter_lim=30)[0]
        values = svds(operator, k=2, return_singular_vectors=False)
        assert operator.report.code == "rotation code"
    np.testing.assert_allclose(solution, np.linalg.lstsq(matrix.toarray(), b)[0], atol=1e-8)
    np.testing.assert_allclose(sorted(values), np.linalg.svd(matrix.toarray(), compute_uv=False)[[1, 0]])


# --- integers ------------------------------------------------------------------------------------


def test_integers_with_real_vectors() -> None:
    for dtype in ("i2", "i8", "u8"):
        matrix = (A * 90).astype(dtype)
        with CodedOperator(
            matrix, blocks=6, tasks=9, executor=lossy({1: Fault("raise", attempts=9)})
        ) as operator:
            assert_close(operator @ X, matrix @ X)
    large = scipy.sparse.csr_array(np.full((9, 3), 2**62))
    operator = CodedOperator(large, blocks=3, executor=ReplayExecutor())
    with pytest.raises(CodeError, match="do not fit into 64 bits"):
        operator @ np.ones(3)


# --- unsupported uses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: coded_map(abs, A, degree=2), r"sparse csr_array, .*with degree=2, pass data\.toarray\(\)"),
        (lambda: coded_map(abs, A, code=SecretSharing()), r"with code=SecretSharing.*pass data\.toarray\(\)"),
        (
            lambda: coded_map(abs, A, code="fountain"),
            "code must be 'auto', 'rotation', 'arikan'.* not 'fountain'",
        ),
        (lambda: coded_map(abs, A, blocks=5, code=PolarCode(6, 4)), "does not fit 5 blocks"),
        (lambda: coded_map(abs, A, blocks=51), "blocks=51 is more than the 50 rows"),
        (lambda: coded_map(abs, A > 0), "data has dtype bool"),
        (lambda: coded_map(abs, [A, A]), r"csr_array: use its \.toarray\(\)"),
        (lambda: encode(A, name="sparse"), r"A is a sparse csr_array, .*CodedOperator.*: use A\.toarray\(\)"),
        (lambda: coded_gram(A), r"A is a sparse csr_array: use A\.toarray\(\), or sum\(hedged_map\("),
        (lambda: coded_sum(abs, A, tolerate=1), r"use its \.toarray\(\)"),
        (lambda: coded_gradient(abs, A), r"x is a sparse csr_array: use x\.toarray\(\)"),
    ],
)
def test_unsupported_uses_of_sparse_matrices_are_refused(call: Any, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        call()


def test_suggested_replacement_of_a_gram_matrix_is_correct() -> None:
    parts = hedged_map(lambda rows: rows.T @ rows, A.tocsr(), executor=ReplayExecutor())
    np.testing.assert_allclose(sum(parts).toarray(), (A.T @ A).toarray())
