"""Tests that rows and columns of a matrix are encoded once, kept between products, and finally deleted."""

from __future__ import annotations

import gc
import os
from typing import Any

import numpy as np
import pytest
from linalg.test_operators import TALL, K, N, assert_close, operator

from polarmap import CodedOperator, encode
from polarmap.codes import PolarCode
from polarmap.errors import CodeError
from polarmap.executors import resolve_executor
from polarmap.linalg.coded_matrix import CodedMatrix
from polarmap.linalg.layouts import BlockCounts
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor


def test_each_side_is_encoded_once() -> None:
    big = np.random.default_rng(8).standard_normal((240, 120))
    with operator(big) as coded:
        seconds = []
        for _ in range(3):
            coded @ np.ones(120)
            seconds.append(coded.report.encode_seconds)
            coded.rmatvec(np.ones(240))
            seconds.append(coded.report.encode_seconds)
    assert all(seconds[:2]) and not any(seconds[2:])


def test_small_sides_have_blocks_in_proportion() -> None:
    coded = CodedOperator(TALL, blocks=24, tasks=36, executor=ReplayExecutor())
    coded.rmatvec(np.ones(50))
    assert (coded.report.k, coded.report.n) == (13, 20)
    coded = CodedOperator(TALL, tasks=8, executor=ReplayExecutor())
    coded @ np.ones(13)
    assert (coded.report.k, coded.report.n) == (6, 8)


def test_a_code_of_the_caller() -> None:
    code = PolarCode(18, 14, kernel="arikan")
    coded = CodedOperator(TALL, code=code, executor=ReplayExecutor())
    coded @ np.ones(13)
    # With k = 14, one block would be empty.
    assert (coded.report.k, coded.report.n, coded.report.code) == (
        13,
        17,
        "arikan code",
    )
    coded.rmatvec(np.ones(50))
    assert (coded.report.k, coded.report.n, coded.report.code) == (13, 17, "arikan code")


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": "arikan", "decoder": "sequential", "erasure": 0.1},
        {"kernel": "arikan", "decoder": "sequential"},
        {"kernel": "arikan", "levels": 3},
        {"kernel": "rotation", "seed": 7},
    ],
)
def test_a_small_side_keeps_all_options_of_the_callers_code(options: dict[str, Any]) -> None:
    sides = CodedMatrix(
        np.ones((10, 48)),
        resolve_executor(ReplayExecutor()),
        BlockCounts(24, 32),
        PolarCode(32, 24, **options),
    )
    expected = PolarCode(14, 10, **options)
    code = sides.get_encoding("rows").code
    assert isinstance(code, PolarCode)
    assert (code.n, code.k, code.kernel, code.decoder) == (14, 10, expected.kernel, expected.decoder)
    assert (code.erasure, code.seed, code.levels) == (expected.erasure, expected.seed, expected.levels)
    assert np.array_equal(code.encoding_matrix, expected.encoding_matrix)
    assert sides.get_encoding("columns").code.n == 32


def test_a_side_too_small_for_a_code_of_unequal_workers_is_refused() -> None:
    code = PolarCode(32, 24, erasure=np.linspace(0.1, 0.4, 32))
    coded = CodedOperator(np.ones((48, 10)), code=code, executor=ReplayExecutor())
    coded @ np.ones(10)
    with pytest.raises(CodeError, match=r"has one erasure probability for each of 32 workers.*\(14, 10"):
        coded.rmatvec(np.ones(48))


@pytest.mark.parametrize("counts", [{"blocks": 10}, {"tasks": 16}, {"blocks": 30, "tasks": 32}])
def test_counts_that_contradict_the_callers_code_are_refused(counts: dict[str, int]) -> None:
    with pytest.raises(CodeError, match=r"must match code=PolarCode\(32, 24"):
        CodedOperator(np.ones((48, 10)), code=PolarCode(32, 24), executor=ReplayExecutor(), **counts)


OBJECTS = N + 3  # number of objects of a coded array: blocks, a manifest, and two Zarr metadata documents


def stored() -> list[str]:
    folder = resolve_executor("localhost").choose_storage(TALL)
    return [name for _, _, names in os.walk(folder) for name in names]


def test_stragglers_and_dead_processes_on_localhost() -> None:
    b = np.random.default_rng(9).standard_normal(50)
    faults = {0: Fault("sleep", 60), 3: Fault("kill")}
    with operator(TALL, FaultyExecutor("localhost", faults), timeout=60) as coded:
        assert_close(coded.rmatvec(b), TALL.T @ b, 1e-9)
        assert_close(coded @ np.ones(13), TALL @ np.ones(13), 1e-9)
        assert coded.report.tasks[0].arrived is None
        assert len(stored()) == 2 * OBJECTS - 1  # The 13 columns fill only five blocks.
    assert stored() == []


def test_stored_arrays_are_deleted_with_the_operator(tmp_path: Any) -> None:
    np.save(tmp_path / "A.npy", TALL)
    coded = CodedOperator(np.load(tmp_path / "A.npy", mmap_mode="r"), blocks=K, tasks=N, timeout=60)
    coded @ np.ones(13)
    assert len(stored()) == OBJECTS
    del coded
    gc.collect()
    assert stored() == []


def test_persistent_workers_cache_blocks_and_files_are_not_loaded(tmp_path: Any) -> None:
    with operator(TALL, FaultyExecutor(None, {0: Fault("sleep", 60), 3: Fault("kill")}), timeout=60) as coded:
        for _ in range(3):
            assert_close(coded @ np.ones(13), TALL @ np.ones(13), 1e-10)
            assert_close(coded.T @ np.ones(50), TALL.T @ np.ones(50), 1e-10)
        assert stored() == []
    np.save(tmp_path / "A.npy", TALL)
    with CodedOperator(np.load(tmp_path / "A.npy", mmap_mode="r"), blocks=K, tasks=N, timeout=60) as coded:
        for _ in range(2):
            assert_close(coded @ np.ones(13), TALL @ np.ones(13), 1e-10)
        assert len(stored()) == OBJECTS
    assert stored() == []


def test_coded_arrays_are_used_without_encoding(tmp_path: Any) -> None:
    options = {"blocks": 5, "tasks": 8, "storage": tmp_path, "progress": False}
    rows, columns = encode(TALL, name="rows", **options), encode(TALL.T, name="columns", **options)
    with operator(rows, transpose=columns) as coded:
        assert_close(coded @ np.ones(13), TALL @ np.ones(13), 1e-10)
        assert (coded.report.k, coded.report.n) == (5, 8)
        assert_close(coded.rmatvec(np.ones(50)), TALL.T @ np.ones(50), 1e-10)
        assert (coded.report.k, coded.report.n) == (5, 8)
    with operator(rows) as coded:  # The operator then reads and encodes the columns itself.
        assert_close(coded.rmatvec(np.ones(50)), TALL.T @ np.ones(50), 1e-10)
        assert (coded.report.k, coded.report.n) == (5, N - 1)
    assert rows.check().ok and columns.check().ok
    with pytest.raises(CodeError, match=r"float64 and shape \(50, 13\), which is not the transpose of A"):
        operator(rows, transpose=rows)
    with pytest.raises(CodeError, match="transpose must be a CodedArray, not ndarray"):
        operator(rows, transpose=TALL.T)


def test_coded_arrays_of_integers_with_real_vectors(tmp_path: Any) -> None:
    whole = np.random.default_rng(3).integers(-9, 9, (30, 12))
    options = {"blocks": 5, "tasks": 8, "storage": tmp_path, "progress": False}
    with operator(encode(whole, name="small", **options)) as coded:
        assert_close(coded @ np.full(12, 0.5), whole @ np.full(12, 0.5), 1e-10)
        assert_close(coded @ np.ones(12, int), whole @ np.ones(12, int), 0)
    with (
        operator(encode(whole << 59, name="large", **options)) as coded,
        pytest.raises(CodeError, match="do not fit into 64 bits"),
    ):
        coded @ np.full(12, 0.5)
