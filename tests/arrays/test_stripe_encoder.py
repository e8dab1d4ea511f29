"""Tests of encoding on workers that read the data themselves, and of the warnings about NaN and inf."""

from __future__ import annotations

import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from array_data import MIB, encode_with_warnings, objects, put_rows, random_array, spoilt
from hypothesis import given, settings
from hypothesis import strategies as st

import polarmap
from polarmap.arrays.stripe_encoder import make_stripe_encode_function
from polarmap.errors import CodeError
from polarmap.storage.folder import FolderStore
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor


def saved(folder, A):
    np.save(folder / "A.npy", A)
    return folder / "A.npy"


def test_workers_store_the_same_parity_as_the_driver(tmp_path, store, executor):
    check_workers(tmp_path, store, executor, "f8")


def test_workers_store_the_same_integers_as_the_driver(tmp_path, store, threads):
    check_workers(tmp_path, store, threads, "u1")


def check_workers(tmp_path, store, executor, dtype):
    rng = np.random.default_rng(0)
    A = (100 * rng.random((4003, 70))).astype(dtype)
    options = {"blocks": 12, "tasks": 16, "memory": MIB}
    here = polarmap.encode(A, name="here", storage=store, **options)
    faulty = FaultyExecutor(executor, {0: Fault("sleep", 60), 1: Fault("raise")})
    there = polarmap.encode(saved(tmp_path, A), name="there", storage=store, executor=faulty, **options)
    np.testing.assert_array_equal(there[:], A)
    assert there.check().ok
    for index in range(16):
        local, remote = (coded.coded_blocks().component_leaves(index)[0] for coded in (here, there))
        assert local.dtype == remote.dtype
        np.testing.assert_allclose(local, remote, rtol=0, atol=1e-12 if dtype == "f8" else 0)
    there.delete()
    here.delete()
    assert objects(store) == {}


@pytest.mark.parametrize("dtype", ["f2", "f4", "c8", "i4", "u8"])
def test_workers_encode_all_dtypes_and_views_of_memory_maps(tmp_path, store, dtype):
    A = np.arange(41 * 6 * 5).reshape(41, 6, 5).astype(dtype)
    view = np.load(saved(tmp_path, A), mmap_mode="r")[3:40]
    with ThreadPoolExecutor(2) as pool:
        coded = polarmap.encode(view, blocks=4, tasks=6, name="A", storage=store, executor=pool)
    for block in (1, 3):
        for part in coded.block_segments(block):
            store.delete([part.key])
    np.testing.assert_allclose(coded[:], A[3:40], rtol=1e-2 if dtype == "f2" else 1e-5)


def test_an_interrupted_encode_is_resumed_and_detects_changed_data(tmp_path, store):
    # The warning also covers NaN and inf in the stripes that the interrupted run had stored.
    A = np.random.default_rng(0).standard_normal((40_000, 10))
    A[5_000], A[9_999, 9] = np.nan, np.inf  # These are in the second and in the last stripe of block 0.
    path = saved(tmp_path, A)
    options = {"blocks": 4, "tasks": 6, "storage": store, "memory": MIB}
    with ThreadPoolExecutor(4) as pool:
        broken = FaultyExecutor(pool, {2: Fault("raise", attempts=99)})
        with pytest.raises(RuntimeError, match="injected fault"):
            encode_with_warnings(path, executor=broken, **options)
        assert polarmap.arrays.list_coded(store) == []
        A[1] = 7  # This row is in the first stripe of block 0.
        np.save(path, A)
        coded, messages = encode_with_warnings(path, executor=pool, **options)
    np.testing.assert_array_equal(coded[:], A)
    assert coded.check().ok
    generations = [part.key.split("/")[3] for part in coded.block_segments(5)]
    assert len(set(generations)) == 2
    assert generations[0] == generations[2] != generations[1]
    assert len(messages) == 1
    assert messages[0].startswith("11 entries are NaN or inf, the first at index [5000, 0]")


def test_data_that_only_the_driver_can_read_is_refused(store):
    with ThreadPoolExecutor(2) as pool, pytest.raises(CodeError, match="leave executor out"):
        polarmap.encode(np.ones((8, 2)), name="A", storage=store, executor=pool)
    assert objects(store) == {}


@settings(max_examples=60)
@given(
    rows=st.integers(1, 3), k=st.integers(1, 24), extra=st.integers(1, 6), columns=st.integers(0, 9),
    in_object=st.integers(1, 3), dtype=st.sampled_from(["f2", "f4", "f8", "c8", "u1", "i4", "i8"]),
)  # fmt: skip
def test_raw_objects_of_any_shape_are_encoded_as_without_workers(
    tmp_path_factory, rows, k, extra, columns, in_object, dtype
):
    # The examples include stripes that have fewer numbers than there are data blocks.
    store = FolderStore(tmp_path_factory.mktemp("store"))
    A = (np.arange(rows * k * columns).reshape(rows * k, columns) % 97).astype(dtype)
    in_object = max(number for number in range(1, in_object + 1) if rows % number == 0)
    raw = put_rows(store, A, in_object)
    options = {"blocks": k, "tasks": k + extra, "storage": store}
    here = polarmap.encode(A, name="here", **options)
    there = polarmap.encode(raw, name="there", executor=ReplayExecutor(), **options)
    again = polarmap.open_coded("there", store)
    assert again.check().ok
    np.testing.assert_array_equal(again[:], A)
    assert {part.key.split("/")[0] for block in range(k) for part in there.block_segments(block)} <= {"mine"}
    tolerance = 0 if np.dtype(dtype).kind in "iu" else 4 * np.finfo(dtype).eps
    for block in range(k, k + extra):
        local, remote = (coded.coded_blocks().component_leaves(block)[0] for coded in (here, there))
        np.testing.assert_allclose(local, remote, rtol=tolerance, atol=tolerance * 97)


# --- NaN and inf -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["here", "file", "raw"])
@pytest.mark.parametrize("dtype", ["f4", "c16"])
def test_the_warning_counts_nan_and_inf_and_gives_the_first_index(store, tmp_path, how, dtype):
    A = spoilt((24, 9_000), dtype, [5 * 9_000 + 8_500, 17 * 9_000, 17 * 9_000 + 1, 9_000 * 23], [0, 1, 2, 0])
    source = {"here": lambda: A, "file": lambda: saved(tmp_path, A), "raw": lambda: put_rows(store, A)}[how]()
    options = {"blocks": 6, "tasks": 8, "storage": store, "memory": MIB}
    with ThreadPoolExecutor(2) as pool:
        coded, messages = encode_with_warnings(source, executor=None if how == "here" else pool, **options)
    assert messages == [
        "4 entries are NaN or inf, the first at index [5, 8500]: if a block is lost, its entries at these "
        "positions cannot be decoded"
    ]
    np.testing.assert_array_equal(coded[:], A)
    coded.delete()
    assert objects(store) == {}


def test_the_warning_points_at_the_caller(store):
    with pytest.warns(RuntimeWarning, match="1 entry is NaN or inf") as caught:
        polarmap.encode(np.array([1.0, np.inf, 2.0, 3.0]), name="a", storage=store)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("dtype", ["f8", "i4", "u8"])
def test_finite_data_do_not_cause_a_warning(store, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        polarmap.encode(random_array((24, 5), dtype), blocks=4, name="a", storage=store)


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_searching_for_nan_takes_little_memory(dtype):
    # The size of stripes, which memory= determines, does not include this memory.
    stripe = np.ones((24, 50_000), dtype)
    stripe[3, 5] = np.nan
    parity = np.full((8, 50_000), np.inf, dtype)
    for encode in (
        make_stripe_encode_function(None, include_data=False),
        make_stripe_encode_function(lambda _: parity, include_data=True),
    ):
        tracemalloc.start()
        note = encode(stripe)[-1]
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert note[:2].tolist() == [1, 3 * 50_000 + 5]
        assert peak_bytes < 6 * stripe.shape[1]  # The masks are of single rows.
