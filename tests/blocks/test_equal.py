"""Tests of equal blocks of all kinds of arrays and of sequences of all structures."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import assert_same, cut, plain_map, printed

from polarmap import coded_map
from polarmap.blocks.equal import check_no_empty_blocks, choose_default_n_blocks
from polarmap.codes import PolarCode
from polarmap.errors import CodeError
from polarmap.testing import FaultyExecutor, ReplayExecutor
from polarmap.types import CodedResult

MATRIX = np.random.default_rng(0).standard_normal((26, 5))


@pytest.fixture(autouse=True, scope="module")
def _local_f_ends_within_one_poll() -> Iterator[None]:
    """Make f on the driver end within one poll, since the virtual clocks ignore a busy machine."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("polarmap.driver.local_evaluation.EVALUATION_POLL_SECONDS", 60.0)
        yield


class SliceableData:
    """An array with the minimal interface: shape, dtype, and slices of the first axis, which it records."""

    def __init__(self, data: np.ndarray) -> None:
        self._data, self.shape, self.dtype = data, data.shape, data.dtype
        self.read: list[slice] = []

    def __getitem__(self, rows: slice) -> np.ndarray:
        assert isinstance(rows, slice)
        self.read.append(rows)
        return self._data[rows]


def same(block: Any) -> Any:
    return block


def run_halving_map(data: Any, k: int | None = None, lost: int = 1, **options: Any) -> CodedResult:
    """Return the result of a map of block * 0.5 whose first `lost` tasks never return."""
    never = ReplayExecutor(dict.fromkeys(range(lost), math.inf))
    return coded_map(lambda block: block * 0.5, data, blocks=k, executor=never, timeout=100, **options)


@pytest.mark.parametrize(
    "data",
    [
        np.asfortranarray(MATRIX),
        MATRIX[::-1],
        MATRIX[::2],
        MATRIX[:, ::2],
        np.broadcast_to(MATRIX[0], (26, 5)),
        MATRIX[:, 0],
        MATRIX.reshape(26, 5, 1)[:, :, :0],
        MATRIX.astype(">f8"),
        MATRIX.astype(">f4"),
        (100 * MATRIX).astype(">i2"),
        MATRIX.astype(">c16"),
    ],
    ids=[
        *("fortran", "reversed", "strided", "columns", "broadcast"),
        *("1-d", "empty", ">f8", ">f4", ">i2", ">c16"),
    ],
)
def test_any_layout_and_byte_order(data: np.ndarray) -> None:
    result = coded_map(same, data, blocks=5, executor=ReplayExecutor({2: math.inf}), timeout=100)
    assert result.report.recovered == (2,)
    joined = result.concatenate()
    assert joined.dtype == data.dtype.newbyteorder("=")
    np.testing.assert_allclose(joined, data, rtol=1e-4, atol=1e-5)


def test_memmap_is_read_from_its_file(tmp_path: Path) -> None:
    stored = np.memmap(tmp_path / "matrix", np.float64, "w+", shape=MATRIX.shape)
    stored[:] = MATRIX
    stored.flush()
    data = np.memmap(tmp_path / "matrix", np.float64, "r", shape=MATRIX.shape)
    result = run_halving_map(data, 6)
    assert type(result[3]) is np.ndarray
    np.testing.assert_allclose(result.concatenate(), MATRIX * 0.5)


def test_any_object_with_shape_dtype_and_slices_is_accepted() -> None:
    data = SliceableData(MATRIX)
    result = run_halving_map(data, 6)
    np.testing.assert_allclose(result.concatenate(), MATRIX * 0.5)
    assert {(rows.start, rows.stop) for rows in data.read} == {(5 * i, 5 * i + 5) for i in range(6)}
    assert len(data.read) == 6  # Each block is read once.


def test_arrays_in_hdf5_files(tmp_path: Path) -> None:
    import h5py
    import zarr

    stored = zarr.create_array(tmp_path / "matrix.zarr", shape=MATRIX.shape, dtype="f8", chunks=(4, 5))
    stored[:] = MATRIX
    with h5py.File(tmp_path / "matrix.h5", "w") as file:
        for data in (stored, file.create_dataset("matrix", data=MATRIX)):
            np.testing.assert_allclose(run_halving_map(data, 6).concatenate(), MATRIX * 0.5)


def test_data_is_neither_changed_nor_shared() -> None:
    data = MATRIX.copy()
    result = coded_map(same, data, blocks=2, executor=ReplayExecutor())
    result[0][:] = 7
    np.testing.assert_array_equal(data, MATRIX)


class Pair(NamedTuple):
    left: Any
    right: Any


SEQUENCES: dict[str, list[Any]] = {
    "numbers": [1.5, 2.5, -3.0, 4.0],
    "integers": [1, -2, 3],
    "numpy scalars": [np.float32(2), np.float32(3)],
    "complex": [1j, 2 + 1j, 3.0 + 0j],
    "one block": [np.arange(3.0)],
    "arrays": list(MATRIX.reshape(13, 2, 5)),
    "arrays without dimensions": [np.array(1.0), np.array(2.0), np.array(5.0)],
    "fortran arrays": [np.asfortranarray(block) for block in MATRIX.reshape(13, 2, 5)],
    "big-endian": [block.astype(">f4") for block in MATRIX.reshape(13, 2, 5)],
    "strided arrays": [block[:, ::-2] for block in MATRIX.reshape(13, 2, 5)],
    "slices of one array": [MATRIX[i : i + 3] for i in range(10)],
    "empty arrays": [np.empty((0, 3)) for _ in range(4)],
    "tuples": [(row, row[:2]) for row in MATRIX],
    "named tuples": [Pair(row, float(row[0])) for row in MATRIX],
    "lists": [[row, [row[:1]]] for row in MATRIX],
    "dicts": [{"x": row, 2: {"y": row[1:]}} for row in MATRIX],
    "mixed dtypes": [(row, row.astype("f4"), np.int8(i), i, 2.0 * i) for i, row in enumerate(MATRIX)],
    "no leaves": [(), (), ()],
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_f_receives_blocks_of_a_sequence_unchanged(name: str) -> None:
    data = SEQUENCES[name]
    native = data if name != "big-endian" else [block.astype("=f4") for block in data]
    result = coded_map(same, data, executor=ReplayExecutor({0: math.inf}), timeout=100)
    assert_same(result, native, 1e-4)
    assert result.report.recovered == (0,)
    assert result.report.padding == 0


@pytest.mark.parametrize("make", [tuple, deque])
def test_any_sequence_is_accepted(make: Any) -> None:
    result = coded_map(same, make(MATRIX), executor=ReplayExecutor())
    assert_same(result, list(MATRIX))
    np.testing.assert_array_equal(result.concatenate().reshape(26, 5), MATRIX)


def test_f_may_return_another_structure() -> None:
    data = [{"x": row, "y": (float(row[0]), i)} for i, row in enumerate(MATRIX)]

    def f(block: dict[str, Any]) -> Pair:
        return Pair([block["x"].sum(), block["y"][1] * 2], {"first": block["y"][0] + 1})

    lost = FaultyExecutor(ReplayExecutor({3: math.inf, 8: math.inf}))
    assert_same(coded_map(f, data, executor=lost, timeout=100), plain_map(f, data, 26), 1e-9)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "empty sequence"),
        ((), "empty sequence"),
        ({"a": np.ones(3)}, "not dict"),
        ("abc", "this file does not exist"),
        (b"abc", "not bytes"),
        (5, "not int"),
        (None, "not NoneType"),
        ({1.0, 2.0}, "not set"),
        (iter([1.0]), "not list_iterator"),
        ([np.ones(3), np.ones(4)], r"block 1 differs from block 0.*float64\[4\] against float64\[3\]"),
        ([np.ones(3), np.ones(3, "f4")], r"block 1 differs.*float32\[3\] against float64\[3\]"),
        ([1, 2.0], r"block 1 differs.*float64\[\] against int64\[\]"),
        ([[1, 2], [3]], "block 1 differs from block 0 in structure"),
        ([(1.0,), [1.0]], "block 1 differs from block 0 in structure"),
        ([{"a": 1.0}, {"b": 1.0}], "block 1 differs from block 0 in structure"),
        ([1.0, 1.0, np.ones(1)], "block 2 differs"),
        (["a", "b"], "a block has dtype <U1"),
        ([None, None], "a block cannot be encoded: it holds None: use arrays"),
        ([True, False], "a block has dtype bool"),
        ([2**70, 3], r"it holds an integer of 71 bits, numpy's have 64: use float\("),
        ([np.array([1, None])], "a block has dtype object"),
        ([scipy.sparse.csr_array(MATRIX)] * 2, r"csr_array: use its .toarray\(\)"),
        ([np.ma.masked_less(MATRIX, 0)] * 2, "a block cannot be encoded: .*masked"),
    ],
    ids=printed,
)
def test_invalid_sequences_are_refused(data: Any, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        coded_map(same, data, executor=ReplayExecutor())


def test_blocks_must_be_the_length_of_a_sequence() -> None:
    assert len(coded_map(same, [1.0, 2.0], blocks=2, executor=ReplayExecutor())) == 2
    with pytest.raises(CodeError, match="blocks=3, but the sequence has 2 blocks: leave blocks out"):
        coded_map(same, [1.0, 2.0], blocks=3, executor=ReplayExecutor())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((0, 3)), r"shape \(0, 3\) has no rows"),
        (np.float64(3), r"shape \(\) has no rows"),
        (np.array(["a", "b"]), "the data has dtype <U1"),
        (np.array([1, None]), "the data has dtype object"),
        (np.ones(3, bool), "the data has dtype bool"),
        (np.zeros(3, "M8[s]"), r"the data has dtype datetime64\[s\]"),
        (np.zeros(3, [("x", "f8")]), "the data has dtype "),
        (np.ma.masked_less(MATRIX, 0), "masked array"),
    ],
)
def test_invalid_arrays_are_refused(data: Any, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        run_halving_map(data)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant == 52, reason="long double is float64 here")
def test_long_double_is_refused_by_name() -> None:
    with pytest.raises(CodeError, match=r"dtype float\d+: linear codes carry"):
        run_halving_map(MATRIX.astype(np.longdouble))


@settings(derandomize=True, max_examples=60)
@given(
    rows=st.integers(1, 40),
    k=st.integers(1, 12),
    tail=st.sampled_from([(), (1,), (3,), (2, 3), (0,)]),
    dtype=st.sampled_from(["f8", "f4", "c16", "i4", "u1"]),
)
def test_any_number_of_rows_concatenates_to_f_of_the_whole(
    rows: int, k: int, tail: tuple[int, ...], dtype: str
) -> None:
    k = min(k, rows)
    k = -(-rows // -(-rows // k))  # With this k, no block is empty.
    data = np.random.default_rng(rows).integers(0, 99, (rows, *tail)).astype(dtype)
    result = run_halving_map(data, k, tasks=2 * k + 1)
    assert len(result) == k
    assert result.report.padding == -(-rows // k) * k - rows
    np.testing.assert_allclose(result.concatenate(), data * 0.5, rtol=1e-3, atol=1e-3)
    assert_same(result, plain_map(lambda block: block * 0.5, data, k), 1e-3)


def test_no_block_is_empty() -> None:
    for total in range(1, 201):
        for target in (2, 3, 7, 24, 32):
            for max_blocks in (None, target):
                k = choose_default_n_blocks(total, target, max_blocks)
                assert -(-total // -(-total // k)) == k
                assert k <= (max_blocks or max(total, 2 * target))
        for k in range(1, total + 1):
            if -(-total // -(-total // k)) == k:
                check_no_empty_blocks(total, k)
                continue
            with pytest.raises(CodeError, match=f"blocks={k} does not fit {total} rows") as caught:
                check_no_empty_blocks(total, k)
            below, above = map(int, re.findall(r"(?<=[er] blocks=)\d+", str(caught.value)))
            assert below < k < above <= total
            assert not any(-(-total // -(-total // k)) == k for k in range(below + 1, above))
            check_no_empty_blocks(total, below)
            check_no_empty_blocks(total, above)


@pytest.mark.parametrize(("total", "k"), [(25, 24), (10, 6), (4, 3)])
def test_a_number_of_blocks_that_leaves_empty_blocks_is_refused(total: int, k: int) -> None:
    code = PolarCode(k + 2, k)
    for options in ({"blocks": k}, {"blocks": k, "tasks": 2 * k}, {"code": code}):
        with pytest.raises(CodeError, match=f"blocks={k} does not fit {total} rows.* Use blocks="):
            coded_map(same, MATRIX[:total], executor=ReplayExecutor(), **options)


def test_small_arrays_have_no_empty_blocks_by_default() -> None:
    for total in range(1, 27):
        result = coded_map(same, MATRIX[:total], executor=ReplayExecutor())
        assert all(len(block) for block in result)
        np.testing.assert_array_equal(result.concatenate(), MATRIX[:total])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenate_joins_along_any_axis(axis: int) -> None:
    expected = np.concatenate([block * 0.5 for block in cut(MATRIX, 13)], axis=axis)
    np.testing.assert_allclose(run_halving_map(MATRIX, 13).concatenate(axis), expected)


def test_concatenate_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(CodeError, match=r"shapes \(7, 5\) and \(5, 5\) cannot be joined along axis 1"):
        run_halving_map(MATRIX, 4).concatenate(1)
    with pytest.raises(CodeError, match="cannot be joined along axis 9"):
        run_halving_map(MATRIX, 4).concatenate(9)


@pytest.mark.parametrize("scalar", [np.float64, float, np.asarray])
def test_concatenate_stacks_scalars(scalar: Any) -> None:
    result = coded_map(lambda block: scalar(block.sum()), MATRIX, blocks=13, executor=ReplayExecutor())
    assert result.concatenate().shape == (13,)
    np.testing.assert_allclose(result.concatenate(), MATRIX.reshape(13, -1).sum(axis=1))


@pytest.mark.parametrize("f", [lambda block: (block, block), lambda block: {"a": block}])
def test_concatenate_refuses_containers(f: Any) -> None:
    result = coded_map(f, MATRIX, blocks=2, executor=ReplayExecutor())
    with pytest.raises(CodeError, match=r"join results that are arrays.*use list\(result\)"):
        result.concatenate()


def test_a_sequence_without_padding_is_never_cut() -> None:
    data = [np.ones((3, 2))] * 4
    assert coded_map(same, data, executor=ReplayExecutor()).concatenate().shape == (12, 2)
