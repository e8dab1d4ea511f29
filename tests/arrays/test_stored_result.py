"""Tests of coded_map(out=Stored(...)): results are left in storage, and can be the data of other maps."""

from __future__ import annotations

import numpy as np
import pytest
from array_data import files
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import arriving, assert_same, cut

import polarmap
from polarmap.arrays import Stored
from polarmap.blocks.equal import compute_max_nonempty_blocks
from polarmap.errors import CodeError, NotLinearError, StorageError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor


@pytest.fixture
def A():
    return np.random.default_rng(0).standard_normal((59, 7))


def test_chained_maps_leave_all_data_in_storage(A, tmp_path, executor):
    B = np.random.default_rng(1).standard_normal((7, 5))
    faulty = FaultyExecutor(executor, {1: Fault("sleep", 60)})
    first = polarmap.coded_map(
        lambda block: block @ B, A, blocks=6, tasks=8, out=Stored("AB", tmp_path), executor=faulty
    )
    assert first.array.shape == (59, 5)
    np.testing.assert_allclose(first.concatenate(), A @ B, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(first[1], (A @ B)[10:20], rtol=1e-9, atol=1e-9)
    second = polarmap.coded_map(lambda block: block @ B.T, first, out=Stored("ABB"), executor=faulty)
    np.testing.assert_allclose(second.concatenate(), A @ B @ B.T, rtol=1e-9, atol=1e-9)
    assert polarmap.arrays.list_coded(tmp_path) == ["AB", "ABB"]
    for result in (first, second):
        assert "missing" in {damage.kind for damage in result.array.check().damaged}
        result.array.repair()
        assert not result.array.check().damaged
        result.array.delete()
    assert files(tmp_path) == set()


@pytest.mark.filterwarnings("ignore:.*rows do not divide")
@settings(max_examples=40)
@given(
    rows=st.integers(1, 40), k=st.integers(1, 6), extra=st.integers(1, 3), columns=st.integers(0, 3),
    dtype=st.sampled_from(["f8", "f4", "c16", "i4", "u1", "i8"]), data=st.data(),
)  # fmt: skip
def test_results_of_any_shape_are_restored(tmp_path_factory, rows, k, extra, columns, dtype, data):
    folder = tmp_path_factory.mktemp("store")
    k = compute_max_nonempty_blocks(rows, min(k, rows))
    n = k + extra
    A = np.arange(rows * columns).reshape(rows, columns).astype(dtype)
    seconds = {index: data.draw(st.floats(0.1, 2)) for index in range(n)}
    f = data.draw(st.sampled_from([lambda block: block + block, lambda block: block.sum()]))
    y = polarmap.coded_map(
        f, A, blocks=k, tasks=n, out=Stored("y", folder), executor=ReplayExecutor(seconds), verify=False
    )
    expected = polarmap.coded_map(f, A, blocks=k, tasks=n, executor=ReplayExecutor(), verify=False)
    np.testing.assert_allclose(y.concatenate(), expected.concatenate(), rtol=1e-4, atol=1e-3)
    y.array.repair()
    np.testing.assert_allclose(
        polarmap.open_coded("y", folder)[:], expected.concatenate(), rtol=1e-4, atol=1e-3
    )


SCALARS = {
    "numpy": np.sum,
    "python": lambda block: float(block.sum()),
    "array": lambda block: np.array(block.sum()),
    "integer": lambda block: block.sum(dtype=np.int64),
}


@pytest.mark.filterwarnings("ignore:.*rows do not divide")
@pytest.mark.parametrize("name", SCALARS)
def test_stored_scalars_equal_those_of_a_map_without_storage(A, tmp_path, name):
    # The numbers are compared when decoded, received and repaired, and after the array was opened again.
    data = (100 * A).astype("i2") if name == "integer" else A
    f = SCALARS[name]
    options = {"blocks": 6, "tasks": 9, "verify": False}
    lost = arriving([1, 2, 3, 4, 5, 6, 7, 8], 9)
    y = polarmap.coded_map(f, data, out=Stored("y", tmp_path), executor=lost, **options)
    expected = polarmap.coded_map(f, data, executor=ReplayExecutor(), **options)
    assert_same(y, expected, 1e-9)
    assert_same([y[0], y[-1], *y[2:4]], [expected[0], expected[-1], *expected[2:4]], 1e-9)
    assert_same([y.concatenate(), y.concatenate(1)], [expected.concatenate(), expected.concatenate(1)], 1e-9)
    y.array.repair()
    again = polarmap.open_coded("y", tmp_path)
    assert_same([again[:]], [expected.concatenate()], 1e-9)
    twice = polarmap.coded_map(lambda number: 2 * number, y, executor=ReplayExecutor())
    assert_same(twice, [2 * number for number in map(np.asarray(expected).dtype.type, expected)], 1e-9)
    for data in (y, again):
        chained = polarmap.coded_map(lambda number: -number, data, executor=ReplayExecutor(), verify=True)
        np.testing.assert_allclose(chained.concatenate(), -expected.concatenate(), rtol=1e-9)


@pytest.mark.filterwarnings("ignore:.*rows do not divide")
@pytest.mark.parametrize("executor", ["threads", "processes"], indirect=True)
def test_stored_scalars_are_mapped_by_all_kinds_of_workers(A, tmp_path, executor):
    y = polarmap.coded_map(
        np.sum, A, blocks=6, tasks=8, out=Stored("y", tmp_path), executor=executor, timeout=60
    )
    assert all(type(total) is np.float64 for total in y)
    z = polarmap.coded_map(lambda total: 2 * total, y, out=Stored("z"), executor=executor, timeout=60)
    expected = [2 * block.sum() for block in cut(A, 6)]
    assert_same(z, expected, 1e-9)


def test_an_array_in_a_container_is_refused(A, tmp_path):
    options = {"blocks": 6, "tasks": 8, "executor": ReplayExecutor()}
    with pytest.raises(TypeError, match="f returned it in a list"):
        polarmap.coded_map(lambda block: [block], A, out=Stored("y", tmp_path), **options)
    assert files(tmp_path) == set()


@pytest.mark.filterwarnings("ignore:.*rows do not divide")
def test_results_that_cannot_be_stored_are_refused(A, tmp_path):
    options = {"blocks": 6, "tasks": 8, "executor": ReplayExecutor()}
    with pytest.raises(TypeError, match="one array; f returned 2"):
        polarmap.coded_map(lambda block: (block, block), A, out=Stored("y", tmp_path), **options)
    with pytest.raises(StorageError, match="cannot name a coded array"):
        polarmap.coded_map(np.sum, A, out=Stored("../y", tmp_path), **options)
    with pytest.raises(CodeError, match="needs a linear f and a PolarCode"):
        polarmap.coded_map(np.square, A, degree=2, out=Stored("y", tmp_path), **(options | {"blocks": 3}))
    polarmap.coded_map(np.sum, A, out=Stored("y", tmp_path), **options)
    with pytest.raises(StorageError, match=r"the coded array 'y' already exists in .*: choose another name"):
        polarmap.coded_map(np.sum, A, out=Stored("y", tmp_path), **(options | {"executor": ReplayExecutor()}))


# --- a map stores a complete array or nothing ----------------------------------------


def test_a_map_that_fails_leaves_nothing(A, tmp_path):
    faulty = FaultyExecutor(ReplayExecutor(), {index: Fault("raise", attempts=9) for index in range(4)})
    for f, executor, error, message in [
        (np.sin, arriving(range(1, 8), 8), NotLinearError, "linear"),
        (np.sum, faulty, RuntimeError, "injected fault"),
    ]:
        with pytest.raises(error, match=message):
            polarmap.coded_map(f, A, blocks=6, tasks=8, out=Stored("y", tmp_path), executor=executor)
        assert files(tmp_path) == set()
        assert polarmap.arrays.list_coded(tmp_path) == []
