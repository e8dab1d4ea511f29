"""Tests of CodedArray objects: indexing, pickling, and opening arrays that earlier versions have stored."""

from __future__ import annotations

import itertools
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from array_data import damage, random_array
from hypothesis import given, settings
from hypothesis import strategies as st

import polarmap
from polarmap.blocks.equal import compute_max_nonempty_blocks
from polarmap.errors import CodeError, MissingObjectError
from polarmap.storage.folder import FolderStore
from polarmap.testing import ReplayExecutor


@given(
    rows=st.integers(1, 40),
    inner=st.lists(st.integers(0, 5), max_size=2),
    data=st.data(),
)
@settings(max_examples=40)
def test_slices_match_numpy(tmp_path_factory, rows, inner, data):
    A = random_array((rows, *inner))
    k = compute_max_nonempty_blocks(rows, data.draw(st.integers(1, rows)))
    store = FolderStore(tmp_path_factory.mktemp("store"))
    coded = polarmap.encode(A, blocks=k, tasks=k + 2, name="a", storage=store)
    bound = st.none() | st.integers(-rows - 2, rows + 2)
    start, stop = data.draw(bound), data.draw(bound)
    step = data.draw(st.none() | st.integers(1, 4))
    np.testing.assert_array_equal(coded[start:stop:step], A[start:stop:step])
    number = data.draw(st.integers(-rows, rows - 1))
    np.testing.assert_array_equal(coded[number], A[number])
    if inner:
        np.testing.assert_array_equal(coded[start:stop, ..., :2], A[start:stop, ..., :2])


def test_rows_are_read_only_by_integers_and_slices(store):
    coded = polarmap.encode(np.arange(8.0), name="a", storage=store)
    wrong = [
        *([1, 2], None, "a", slice(None, None, -1), slice(None, None, 0), slice(1.5), True, np.True_, 1.0),
        *(np.array(True), np.array([3]), np.ones(8, bool), {}, [[1], [1, 2]], (None, 0), ([],), ((),)),
    ]
    for index in wrong:
        with pytest.raises(CodeError, match="coded array must be"):
            coded[index]
    for index in (8, -9, 2**70, -(2**70), np.int64(8)):
        with pytest.raises(IndexError, match=f"row {index} is out of range: the coded array has 8 rows"):
            coded[index]
    assert [float(row) for row in coded] == list(range(8))


def test_the_pickle_of_an_array_depends_on_neither_its_origin_nor_its_use(store):
    # The fingerprint of an f that refers to the array must not change, and no caches may be pickled.
    A = random_array((12, 3))
    before = pickle.dumps(polarmap.encode(A, blocks=3, tasks=4, name="a", storage=store))
    coded = polarmap.open_coded("a", store)
    assert pickle.dumps(coded) == before
    assert coded.check().ok
    np.testing.assert_array_equal(coded[5], A[5])
    polarmap.coded_map(np.sum, coded, executor=ReplayExecutor())
    assert coded.stored_bytes
    assert pickle.dumps(coded) == before
    assert pickle.dumps(coded.coded_blocks()) == pickle.dumps(polarmap.open_coded("a", store).coded_blocks())
    np.testing.assert_array_equal(pickle.loads(before), A)


@pytest.mark.parametrize("shape", [(42,), (36, 3), (27, 2, 0), (90, 1_500), (8, 40_000)])
def test_iteration_reads_each_part_at_most_twice(store, shape, monkeypatch):
    A, reads, get = random_array(shape), [], type(store).get
    coded = polarmap.encode(A, name="a", storage=store, blocks=4, memory=1 << 20)
    parts = sum(len(coded.block_segments(block)) for block in range(4))
    monkeypatch.setattr(type(store), "get", lambda *arguments: reads.append(arguments) or get(*arguments))
    rows = list(coded)
    assert all(type(row) is np.ndarray for row in rows)
    np.testing.assert_array_equal(rows, A)
    assert len(reads) <= 2 * parts


@pytest.mark.parametrize("shape", [(8,), (8, 3), (8, 3, 2)])
def test_an_index_matches_numpy_or_raises_a_clear_error(store, shape):
    # An index that starts with all rows, an integer or a slice means the same as in NumPy.
    A = random_array(shape)
    coded = polarmap.encode(A, name="a", storage=store)
    heads = [(...,), (slice(2, 7, 2),), (slice(-(2**70), 2**70),), (3,), (np.array(-2),), (np.uint8(1),)]
    tails = [(), (...,), (0,), (None,), ([0, 1],), (True,), (..., None), (slice(0, 2), -1), ("a",), (1.5,)]
    tails += [(0, 0, 0), (5,), (..., ...)]
    np.testing.assert_array_equal(coded[()], A)
    for head, tail in itertools.product(heads, tails):
        try:
            expected = A[head + tail]
        except IndexError:
            with pytest.raises((IndexError, CodeError)):
                coded[head + tail]
        else:
            np.testing.assert_array_equal(coded[head + tail], expected)
    with pytest.raises(
        (CodeError, IndexError), match=r"not a valid index of an array of shape|too many indices"
    ):
        coded[0, slice("a", None)]


# --- opening arrays by name, including those of earlier versions ------------------------------------


@pytest.mark.every_store
def test_the_error_for_an_unknown_name_lists_the_existing_arrays(store, tmp_path):
    with pytest.raises(
        MissingObjectError, match=r"the coded array 'b' does not exist in .*; existing arrays: none"
    ):
        polarmap.open_coded("b", store)
    polarmap.encode(np.arange(8.0), name="a", storage=store)
    with pytest.raises(
        MissingObjectError, match=r"'b' does not exist in folder '.*nothing', which does not exist"
    ):
        polarmap.open_coded("b", tmp_path / "nothing")
    with pytest.raises(MissingObjectError, match="existing arrays: 'a'"):
        polarmap.open_coded("b", store)


A, B = np.arange(55).reshape(11, 5), np.arange(60).reshape(12, 5) / 7
FLOATS_INTEGERS_RESULTS = {"floats": A / 7, "integers": (A % 13).astype("i2"), "results": -A / 7}
# The arrays in each archive of a folder. Block 1 of "results" had not arrived, nor had block 5 of the
# encrypted "results". All other blocks are complete.
STORED = {
    "before_zarr": FLOATS_INTEGERS_RESULTS,
    # This archive contains stripes that are chunks, joined stripes, stripes written by workers, and rebuilt
    # ones.
    "plain": {
        **FLOATS_INTEGERS_RESULTS,
        "joined": np.arange(52 * 3).reshape(52, 3) / 7,
        "by-workers": A / 7,
        "repaired": A / 7,
    },
    "encrypted": {**FLOATS_INTEGERS_RESULTS, "by-workers": A / 7},
    # These arrays were encoded from RawObjects, once with parts that span two objects, and from ZarrObjects.
    "objects": {"raw": B, "copied-in-part": B, "zarr": B},
}
KEY = "POLARMAP_STORED_KEY"


@pytest.mark.parametrize("executor", [None, ReplayExecutor()], ids=["here", "workers"])
@pytest.mark.parametrize("archive", STORED)
def test_arrays_of_earlier_versions_open_and_are_repaired(tmp_path, monkeypatch, archive, executor):
    monkeypatch.setenv(KEY, bytes(range(32)).hex())
    key = f"env:{KEY}" if archive == "encrypted" else None
    folder = Path(__file__).parent / "stored_by_earlier_versions"
    with zipfile.ZipFile(folder / f"{archive}.zip") as zipped:
        zipped.extractall(tmp_path)
    user_keys = [key for key in FolderStore(tmp_path).keys("") if key.startswith("mine/")]
    assert polarmap.arrays.list_coded(tmp_path) == sorted(STORED[archive])
    for name, values in STORED[archive].items():
        coded = polarmap.open_coded(name, tmp_path, key=key)
        missing = [] if name != "results" else [1, 5] if archive == "encrypted" else [1]
        assert coded.check(executor=executor).damaged_blocks == missing
        np.testing.assert_allclose(coded[:], values, rtol=1e-12, atol=1e-12)
        assert coded.zarr_path is None or archive != "before_zarr"
        kinds = set()
        if 5 not in missing:
            damage(coded.store, coded.block_segments(coded.n - 1)[-1], "corrupt")
            kinds.add("corrupt")
        if not coded.block_segments(2)[-1].key.startswith("mine/"):
            damage(coded.store, coded.block_segments(2)[-1], "appended")
            kinds.add("appended")
        damaged = coded.check(executor=executor).damaged
        assert {part.kind for part in damaged} >= kinds
        assert len(damaged) > len(missing)
        np.testing.assert_allclose(coded[:], values, rtol=1e-12, atol=1e-12)
        coded.repair(executor=executor)
        again = polarmap.open_coded(name, tmp_path, key=key)
        assert again.check(executor=executor).ok
        np.testing.assert_allclose(again[:], values, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(
            again.coded_blocks().component_leaves(again.n - 1)[0], parity(again, values)[-1]
        )
        coded.delete()
    assert FolderStore(tmp_path).keys("") == user_keys


def parity(coded, values):
    """Return the parity blocks of an array, computed by its code alone."""
    whole = np.zeros((coded.k * coded.rows_per_block, *values.shape[1:]), values.dtype)
    whole[: len(values)] = values
    return coded.code.encode_parity(whole.reshape(coded.k, -1)).reshape(
        coded.n - coded.k, coded.rows_per_block, -1
    )
