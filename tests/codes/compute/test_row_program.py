"""Tests of row operations in NumPy and compiled code. The oracle is the sum of Python integers."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from polarmap.codes.compute import row_program, tiling, transforms_numba
from polarmap.codes.compute.row_program import RowOperationBatch, RowOperationProgram
from polarmap.codes.polar import PolarCode

INTEGERS = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]
WIDTH = 1500  # columns: more than WIDE, and not a multiple of the width of a tile


def draw_integers(seed: int, shape: tuple[int, ...], dtype: str) -> Any:
    """Draw integers from the whole range of `dtype`."""
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max, shape, dtype, endpoint=True)


def multiply_exactly(matrix: Any, rows: Any, dtype: Any) -> Any:
    """Return matrix @ rows, computed with Python integers and reduced modulo 2^bits."""
    bits, signed = 8 * np.dtype(dtype).itemsize, np.dtype(dtype).kind == "i"
    sums = matrix.astype(object) @ rows.astype(object) % 2**bits
    return np.array(
        [[int(x) - (signed and x >= 2 ** (bits - 1)) * 2**bits for x in row] for row in sums], dtype
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 70), st.data())
def test_butterflies_compute_the_parity(n: int, draw: st.DataObject) -> None:
    k = draw.draw(st.integers(1, n - 1))
    code = PolarCode(n, k, "arikan")
    program = code._encoding_program
    assert (run_program(program, np.eye(k, dtype=int), n - k) == code.encoding_matrix).all()
    assert len(program.operation_table) <= code.mother_code_length * code.levels


def run_program(program: RowOperationProgram, given: Any, n_outputs: int) -> Any:
    """Return the rows that a program computes row by row, and check that batches give the same."""
    by_row, by_batch = (np.full((n_outputs, given.shape[1]), 7, given.dtype) for _ in range(2))
    program._compute_row_by_row(given, by_row)
    program._compute_by_batches(given, by_batch)
    assert (by_row == by_batch).all()
    return by_row


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 999), st.integers(1, 12))
def test_programs_match_their_steps(seed: int, count: int) -> None:
    # A program drops the random steps and rows that do not affect its result.
    stream = np.random.default_rng(seed)
    steps = [draw_step(stream) for _ in range(count)]
    given, outputs = np.array([7, 3, 1]), np.array([9, 2])
    table = np.zeros((12, 4), "i8")
    table[given] = rows = draw_integers(seed, (3, 4), "i8")
    row_program.execute_operation_batches(steps, table)
    program = RowOperationProgram(steps, 12, given, outputs)
    assert (run_program(program, rows, 2) == table[outputs]).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 999), st.integers(1, 12))
def test_transposed_steps_are_the_transpose(seed: int, count: int) -> None:
    stream = np.random.default_rng(seed)
    steps = [draw_step(stream) for _ in range(count)]
    forth, back = np.eye(12, dtype="i8"), np.eye(12, dtype="i8")
    row_program.execute_operation_batches(steps, forth)
    row_program.execute_adjoint_operation_batches(steps, back)
    assert (back == forth.T).all()


def draw_step(stream: np.random.Generator) -> RowOperationBatch:
    """Draw two row operations. The first operand of each is another row or the target itself."""
    rows = stream.permutation(12)
    first = rows[:2] if stream.random() < 0.3 else rows[2:4]
    factors = [0, 1, -1, stream.integers(-(2**63), 2**63 - 1, 2)]
    return RowOperationBatch(rows[:2], first, rows[4:6], factors[stream.integers(4)])


@pytest.mark.parametrize(("n", "k", "levels"), [(48, 36, 4), (64, 48, 3), (40, 30, 5)])
def test_parallel_butterflies_compute_the_parity(n: int, k: int, levels: int) -> None:
    code = PolarCode(n, k, "arikan", levels=levels)
    data = draw_integers(0, (k, WIDTH), "i8")
    assert (
        code.encode_parity(data)[:, -40:] == multiply_exactly(code.encoding_matrix, data[:, -40:], "i8")
    ).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.sampled_from(["i1", "i2", "i4", "i8"]), st.integers(1, 600))
def test_compiled_operations_match_numpy(seed: int, dtype: str, width: int) -> None:
    stream = np.random.default_rng(seed)
    operations = stream.integers(0, 6, (30, 4))
    operations[:, 3] = stream.choice([1, -1, 0, 2, -3, 2**62 + 5, -(2**63)], 30)
    table = draw_integers(seed, (6, width), dtype)
    compiled, expected = table.copy(), table.astype(object)
    row_program.execute_row_operations(table, operations)
    transforms_numba.execute_row_operations(compiled, operations)
    for target, first, second, factor in operations.tolist():
        expected[target] = expected[first] + factor * expected[second]
    assert (table == compiled).all()
    assert (table == multiply_exactly(np.eye(6, dtype=int), expected, dtype)).all()


def test_interpreted_operations_match_compiled_ones() -> None:
    table = draw_integers(0, (4, 300), "i8")
    operations = np.array([[0, 0, 1, 1], [2, 1, 0, -1], [3, 0, 0, 0], [3, 3, 2, 7]])
    compiled = table.copy()
    transforms_numba.execute_row_operations(compiled, operations)
    with np.errstate(over="ignore"):  # The overflow is intended.
        transforms_numba.execute_row_operations.py_func(table, operations)
    assert (table == compiled).all()


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("is_compiled", [False, True])
def test_wide_integers_are_encoded_and_decoded_exactly(
    dtype: str, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_program, "MIN_COMPILED_BYTES", 0 if is_compiled else 1 << 60)
    code = PolarCode(40, 30, "arikan")
    data = draw_integers(1, (30, WIDTH), dtype)
    parity = code.encode_parity(list(data))
    assert (parity[:, :30] == multiply_exactly(code.encoding_matrix, data[:, :30], parity.dtype)).all()
    mixed = {index: data[index] if index < 30 else parity[index - 30] for index in range(40)}
    kept = {index: row for index, row in mixed.items() if index not in (0, 7, 22)}
    assert (code.decode(kept) == data).all()


def test_numba_is_loaded_once_enough_bytes_have_been_read(monkeypatch: pytest.MonkeyPatch) -> None:
    code, data = PolarCode(12, 8, "arikan"), draw_integers(2, (8, WIDTH), "i8")
    expected = multiply_exactly(code.encoding_matrix, data, "i8")
    monkeypatch.setattr(RowOperationProgram, "_n_bytes_read", 0)
    monkeypatch.setattr(row_program, "MIN_COMPILED_BYTES", 3 * data.nbytes)
    load = Mock(wraps=row_program.block_matmul.import_compiled_transforms)
    monkeypatch.setattr(row_program.block_matmul, "import_compiled_transforms", load)
    for n_loads in (0, 0, 1, 2):
        assert (code.encode_parity(data) == expected).all()
        assert load.call_count == n_loads


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 999), st.integers(6, 40), st.sampled_from(INTEGERS))
def test_wide_integers_are_decoded_like_narrow_ones(seed: int, n: int, dtype: str) -> None:
    stream = np.random.default_rng(seed)
    code = PolarCode(n, n * 2 // 3, "arikan")
    arrived = stream.random(n) > 0.2
    assume(code.is_decodable(arrived))
    data = draw_integers(seed, (code.k, WIDTH), dtype)
    coded = code.encode(data)
    recovery = code.make_decoder(arrived, modular=True)
    for rows in (coded, np.repeat(coded, 2, axis=1)[:, ::2]):
        received = {int(index): rows[index] for index in np.flatnonzero(arrived)}
        decoded = recovery.decode(received, data.dtype)
        assert decoded.dtype == dtype
        assert (decoded == data[recovery.missing_indices]).all()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c16"])
def test_wide_floats_are_summed_like_narrow_ones(dtype: str) -> None:
    code = PolarCode(40, 30, "arikan")
    data = np.random.default_rng(0).standard_normal((30, WIDTH)).astype(dtype)
    data[3, :2], data[7, 1] = np.inf, -np.inf
    parts = [code.encode_parity(np.ascontiguousarray(part)) for part in np.array_split(data, 3, axis=1)]
    np.testing.assert_array_equal(code.encode_parity(data), np.concatenate(parts, axis=1))


def test_tiles_cover_wide_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "TILE_BYTES", 1 << 12)
    monkeypatch.setattr(tiling, "count_available_cores", lambda: 3)
    code = PolarCode(24, 16, "arikan")
    data = draw_integers(2, (16, 20_000), "i8")
    parity = code.encode_parity(data)
    assert (parity == code.encoding_matrix @ data).all()
