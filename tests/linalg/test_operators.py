"""Tests of CodedOperator against products of NumPy and solvers of SciPy, with failures in every product."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from coded_maps import losing
from hypothesis import given, settings
from hypothesis import strategies as st
from linalg.test_products import assert_close, matrix
from scipy.sparse import csr_array
from scipy.sparse.linalg import cg, eigsh, gmres, lsmr, lsqr, svds

import polarmap
from polarmap import CodedOperator, Pool, hedged_map
from polarmap.codes import PolarCode
from polarmap.driver import map_execution
from polarmap.driver.events import PLAIN_CONTEXT
from polarmap.errors import CodeError
from polarmap.linalg import operators
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

K, N = 6, 9
LOST = {1: Fault("raise"), 4: Fault("raise", attempts=9), 7: Fault("raise")}
STREAM = np.random.default_rng(0)
TALL = STREAM.standard_normal((50, 13))
DTYPES = ["float64", "float32", "complex128", "complex64"]
ROOM = {"float64": 1e-10, "complex128": 1e-10, "float32": 1e-4, "complex64": 1e-4}


def random_matrix(shape: tuple[int, int], dtype: str) -> np.ndarray:
    return 10 * matrix(shape, dtype)


def lossy(faults: Any = LOST) -> FaultyExecutor:
    """Return a replay executor with `faults` in every product. By default, tasks 1, 4 and 7 fail."""
    return FaultyExecutor(ReplayExecutor(), faults)


def operator(A: Any, executor: Any = None, **options: Any) -> CodedOperator:
    defaults = {"blocks": K, "tasks": N, "timeout": 1000.0}
    return CodedOperator(A, executor=executor or lossy(), **defaults | options)


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_fault_injection_does_not_change_the_number_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polarmap.executors.persistent_executor.count_available_cores", lambda: 2)
    A = random_matrix((96, 4), "float64")
    with CodedOperator(A) as plain, CodedOperator(A, executor=FaultyExecutor(None)) as faulty:
        assert plain @ np.ones(4) == pytest.approx(faulty @ np.ones(4))
        counts = [(operator.report.k, operator.report.n) for operator in (plain, faulty)]
    assert counts == [(6, 8), (6, 8)]


# --- products ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(50, 13), (13, 50), (6, 6), (7, 3), (1, 9)])
def test_products_match_numpy(dtype: str, shape: tuple[int, int]) -> None:
    A = random_matrix(shape, dtype)
    x, y = random_matrix((shape[1], 3), dtype), random_matrix((shape[0], 3), dtype)
    with operator(A) as coded:
        for result, expected in [
            (coded @ x[:, 0], A @ x[:, 0]),
            (coded @ x[:, :1], A @ x[:, :1]),
            (coded @ x, A @ x),
            (coded.rmatvec(y[:, 0]), A.conj().T @ y[:, 0]),
            (coded.rmatmat(y), A.conj().T @ y),
            (coded.H @ y, A.conj().T @ y),
            (coded.T @ y, A.T @ y),
            (y.T @ coded, y.T @ A),
        ]:
            assert_close(result, expected, ROOM[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cut", [{"blocks": 4, "tasks": 6}, {"blocks": 24}, {"blocks": 6, "code": "arikan"}])
def test_gram_matrices_match_numpy_and_count_as_products(dtype: str, cut: dict[str, Any]) -> None:
    A = random_matrix((50, 13), dtype)
    with CodedOperator(A, executor=lossy(), **cut) as coded:
        for weights in STREAM.standard_normal((3, 50)):
            assert_close(coded.gram(weights), A.conj().T @ (weights[:, None] * A), 100 * ROOM[dtype])
        several = STREAM.standard_normal((50, 5))
        expected = np.einsum("ma,mw,mb->abw", A.conj(), several, A)
        assert_close(coded.gram(several), expected, 100 * ROOM[dtype])
        assert coded.n_products == 4 and coded.report.recovered == (1, 4, 7)
        assert coded.report.n <= 36  # A task is a pair of at most 8 blocks.


def test_invalid_gram_matrices_are_refused() -> None:
    with pytest.raises(
        CodeError, match=r"needs a dense matrix of real or complex numbers: use A.toarray\(\)"
    ):
        operator(csr_array(TALL)).gram(np.ones(50))
    for shape in (49, (50, 2, 2)):
        with pytest.raises(CodeError, match="weights has shape"):
            operator(TALL).gram(np.ones(shape))


@settings(max_examples=60)
@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 30),
    blocks=st.integers(1, 8),
    extra=st.integers(1, 4),
    width=st.integers(0, 3),
    lost=st.integers(0, 100),
)
def test_products_of_any_shape(
    rows: int, columns: int, blocks: int, extra: int, width: int, lost: int
) -> None:
    A = random_matrix((rows, columns), "float64")
    x, y = random_matrix((columns, width), "float64"), random_matrix((rows, width), "float64")
    for fault in (Fault("raise", attempts=9), Fault("sleep", 1e6)):
        executor = lossy({lost % (min(rows, blocks) + 1): fault})
        with CodedOperator(
            A, blocks=blocks, tasks=blocks + extra, executor=executor, rtol=1e-6, timeout=9e3
        ) as coded:
            assert_close(coded @ x, A @ x, 1e-6)
        executor = lossy({lost % (min(columns, blocks) + 1): fault})
        with CodedOperator(
            A, blocks=blocks, tasks=blocks + extra, executor=executor, rtol=1e-6, timeout=9e3
        ) as coded:
            assert_close(coded.rmatmat(y), A.T @ y, 1e-6)


def test_lists_and_arrays_on_disk(tmp_path: Any) -> None:
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        stored = file.create_dataset("a", data=TALL)
        with operator(stored) as coded:
            assert_close(coded @ np.ones(13), TALL @ np.ones(13), 1e-10)
            assert_close(coded.rmatvec(np.ones(50)), TALL.T @ np.ones(50), 1e-10)
    with operator(TALL.tolist()) as coded:
        assert_close(coded @ np.ones(13), TALL @ np.ones(13), 1e-10)


# --- solvers -------------------------------------------------------------------------------------


SQUARE, RIGHT = TALL.T @ TALL + np.eye(13), np.random.default_rng(6).standard_normal(50)
SOLVED = np.linalg.solve(SQUARE, RIGHT[:13])
FITTED = np.linalg.lstsq(TALL, RIGHT)[0]
HARD = {"rtol": 1e-12, "atol": 0}
SOLVERS: dict[str, tuple[np.ndarray, Any, np.ndarray]] = {
    "lsqr": (TALL, lambda coded: lsqr(coded, RIGHT, atol=1e-13, btol=1e-13)[0], FITTED),
    "lsmr": (TALL, lambda coded: lsmr(coded, RIGHT, atol=1e-13, btol=1e-13)[0], FITTED),
    "cg": (SQUARE, lambda coded: cg(coded, RIGHT[:13], **HARD)[0], SOLVED),
    "gmres": (SQUARE, lambda coded: gmres(coded, RIGHT[:13], **HARD)[0], SOLVED),
    "normal equations": (TALL, lambda coded: cg(coded.H @ coded, coded.rmatvec(RIGHT), **HARD)[0], FITTED),
    "eigsh": (
        SQUARE,
        lambda coded: np.sort(eigsh(coded, k=4, return_eigenvectors=False)),
        np.linalg.eigvalsh(SQUARE)[-4:],
    ),
}
for one in ("float64", "complex128"):
    SOLVERS[f"svds of {one}"] = (
        random_matrix((40, 15), one),
        lambda coded: np.sort(svds(coded, k=3, return_singular_vectors=False, rng=0))[::-1],
        np.linalg.svd(random_matrix((40, 15), one), compute_uv=False)[:3],
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_of_scipy_accept_an_operator(name: str) -> None:
    A, solve, expected = SOLVERS[name]
    with operator(A) as coded:
        np.testing.assert_allclose(solve(coded), expected, rtol=1e-9 if name == "eigsh" else 1e-8)


# --- state between products ----------------------------------------------------------------------


def test_report_is_of_the_last_product() -> None:
    coded = operator(TALL)
    assert coded.report is None
    coded @ np.ones(13)
    assert (coded.report.n, coded.report.k, coded.report.recovered) == (N, K, (1, 4))
    assert coded.report.padding == 4
    coded.rmatvec(np.ones(50))
    assert (coded.report.k, coded.report.padding, coded.n_products) == (5, 2, 2)


def test_an_unread_report_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    final_report = map_execution.build_final_report
    monkeypatch.setattr(
        map_execution, "build_final_report", lambda *args: built.append(args) or final_report(*args)
    )
    monkeypatch.setattr(operators, "make_context", lambda progress: PLAIN_CONTEXT)
    with polarmap.CodedOperator(TALL, blocks=K) as coded:
        for _ in range(2):
            coded @ np.ones(13)
        assert not built
        assert coded.report is coded.report
    assert len(built) == 1


def test_a_pool_stays_open(threads: Executor) -> None:
    with operator(TALL, threads) as coded:
        coded @ np.ones(13)
    assert threads.submit(int).result(timeout=9) == 0


def test_a_closed_operator_cannot_be_used() -> None:
    coded = operator(TALL)
    coded.close()
    coded.close()
    with pytest.raises(CodeError, match="closed"):
        coded @ np.ones(13)


# --- failures -----------------------------------------------------------------------------------


def test_garbage_is_located_by_redundant_results() -> None:
    executor = lossy({1: Fault("raise", attempts=9), 2: Fault("garbage", attempts=9)})
    coded = operator(TALL, executor, verify=True)
    assert_close(coded @ np.ones(13), TALL @ np.ones(13), 1e-10)
    assert coded.report.tasks_in_state("failed") == [1, 2]
    assert "contradicts" in coded.report.tasks[2].failures[0]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.sets(st.integers(0, N - 1), max_size=2),
    st.integers(0, 18),
    st.booleans(),
)
def test_sums_that_cancel_to_rounding_cause_neither_an_error_nor_a_warning(
    dtype: str, lost: set[int], power: int, is_sparse: bool
) -> None:
    A = matrix((2000, 13), dtype)
    basis, _ = np.linalg.qr(A)
    b = matrix((2000,), dtype, 2)
    b = (b - basis @ (basis.conj().T @ b) + 10.0**-power * A[:, 0]).astype(dtype)
    with operator(csr_array(A) if is_sparse else A, losing(*lost), verify=True) as coded:
        product = coded.H @ b
    roundings = 10 * (1 + coded.report.amplification)
    allowed = roundings * np.finfo(dtype).eps * np.abs(A).T @ np.abs(b)
    assert (np.abs(product - A.conj().T @ b) <= allowed).all()


def test_no_result_is_awaited_only_to_verify_a_product() -> None:
    late = {2: math.inf} | dict.fromkeys(range(7, N), 500.0)
    coded = operator(TALL, ReplayExecutor(late))
    assert_close(coded @ np.ones(13), TALL @ np.ones(13), 1e-10)
    assert coded.report.seconds < 2 and coded.report.verified == "earlier"


def test_too_many_dead_workers() -> None:
    coded = operator(TALL, lossy({task: Fault("raise", attempts=9) for task in range(4)}))
    with pytest.raises(RuntimeError, match="injected fault"):
        coded @ np.ones(13)


def test_parity_takes_no_cores_from_data_that_is_not_late() -> None:
    # Parity starts with the data only once. Later it starts when data tasks are late or lost.
    with Pool(workers=8) as pool, operator(TALL, pool) as coded:

        def started(operand: np.ndarray) -> int:
            assert_close(coded @ operand, TALL @ operand, 1e-12)
            assert coded.report is not None
            return sum(task.launched is not None for task in coded.report.tasks)

        assert started(np.ones(13)) == N
        deadline = time.monotonic() + 60.0
        while started(np.ones(13)) > K:
            assert time.monotonic() < deadline
        assert started(np.ones((13, 3))) == N  # Run times are learned separately for each size.


def test_a_worker_that_is_stopped_between_products_costs_little_time() -> None:
    with Pool(workers=8) as pool, operator(TALL, pool) as coded:
        for _ in range(3):
            coded @ np.ones(13)
        workers = hedged_map(lambda item: os.getpid(), range(8), executor=pool)
        stopped = sorted({int(worker) for worker in workers})[:1]
        try:
            os.kill(stopped[0], signal.SIGSTOP)
            for _ in range(20):
                began = time.monotonic()
                assert_close(coded @ np.ones(13), TALL @ np.ones(13), 1e-12)
                assert time.monotonic() - began < 20.0
        finally:
            with contextlib.suppress(ProcessLookupError):  # The pool has replaced it if this took long.
                os.kill(stopped[0], signal.SIGCONT)


def test_workers_of_a_lithops_configuration_persist_for_all_products(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lithops

    config = tmp_path / "local.yaml"
    config.write_text(
        "lithops: {backend: localhost, storage: localhost, monitoring_interval: 0.02}\n"
        "localhost: {version: 1, worker_processes: 3}\n"
    )
    executors, started = [], []
    build, start = lithops.FunctionExecutor, lithops.FunctionExecutor.map

    def counting(functions: Any, task: Any, items: list[Any], **options: Any) -> Any:
        started.extend(items)
        return start(functions, task, items, **options)

    monkeypatch.setattr(build, "map", counting)
    monkeypatch.setattr(
        lithops, "FunctionExecutor", lambda **kwargs: executors.append(build(**kwargs)) or executors[-1]
    )
    killing = FaultyExecutor(str(config), {1: Fault("kill", attempts=1)})
    for executor, killed in ((str(config), 0), (killing, 6)):  # Each product kills at most one worker.
        n_earlier = len(executors)
        started.clear()
        with operator(TALL, executor, timeout=100) as coded:
            for _ in range(3):
                assert_close(coded @ np.ones(13), TALL @ np.ones(13), 1e-10)
                assert_close(coded @ np.ones((13, 2)), TALL @ np.ones((13, 2)), 1e-10)
            assert coded.report is not None
            assert coded.report.executor == "persistent workers on lithops/localhost (TCP)"
        assert N <= len(started) <= N + killed  # A worker starts for each task, and for each lost worker.
        # One executor reads the configuration, and each job of workers has one.
        assert len(executors) - n_earlier <= 2 + killed
    storage = executors[0].storage
    left = storage.list_keys(storage.bucket, "lithops.jobs")
    assert storage.list_keys(storage.bucket, "polarmap") == []
    assert not [
        key
        for executor in executors
        for key in left
        if key.startswith(f"lithops.jobs/{executor.executor_id}")
    ]


# --- invalid arguments -----------------------------------------------------------------------------


def test_invalid_sizes_are_refused() -> None:
    with pytest.raises(CodeError, match="tasks=6 leaves no parity blocks for 6 blocks"):
        CodedOperator(TALL, blocks=6, tasks=6)
    with pytest.raises(CodeError, match="blocks must be a positive integer, not 0"):
        CodedOperator(TALL, blocks=0)
    with pytest.raises(CodeError, match="code must be"):
        operator(TALL, code="fountain") @ np.ones(13)


def test_operands_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"(?i)dimension mismatch"):
        operator(TALL) @ np.ones(12)
    with pytest.raises(ValueError, match=r"(?i)dimension mismatch"):
        operator(TALL).rmatmat(np.ones((13, 2)))
    with pytest.raises(CodeError, match="the operand has dtype object"):
        operator(TALL) @ np.array([None] * 13)


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "polarmap.linalg.operators")
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(ImportError, match="pip install 'scipy>="):
        _ = polarmap.CodedOperator


def test_an_operator_of_unsigned_integers_takes_real_vectors() -> None:
    A = STREAM.integers(0, 1000, (24, 5), dtype="u8")
    x = STREAM.standard_normal(5)
    for lost in [(), (0, 4), (1, 8), (5,)]:
        assert PolarCode(9, 6, "arikan").is_decodable(~np.isin(np.arange(9), lost))
        with CodedOperator(A, blocks=6, tasks=9, executor=losing(*lost)) as operator:
            np.testing.assert_allclose(operator @ x, A @ x, rtol=1e-10)
