"""Tests of reading: damaged parts are decoded, except for entries that NaN and inf make undecodable."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
from array_data import MIB, damage, encode_with_warnings, objects, random_array, spoilt
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import cut, process_pool

import polarmap
from polarmap.arrays import Stored
from polarmap.arrays.manifest import Manifest
from polarmap.codes import PolarCode
from polarmap.errors import NotDecodableError
from polarmap.storage.folder import FolderStore
from polarmap.testing import ReplayExecutor
from polarmap.worker.locations import FolderLocation
from polarmap.worker.segments import DamagedError

TOLERANCE = {"f2": 0.2, "f4": 1e-3, "f8": 1e-9, "c8": 1e-3, "c16": 1e-9}


def find_undetermined_entries(A, k, lost):
    """Return a mask of the entries of lost data blocks at positions where some data block is not finite."""
    blocks = np.stack(cut(A, k))
    columns = ~np.isfinite(blocks).all(axis=0)
    mask = np.zeros(blocks.shape, bool)
    mask[[block for block in lost if block < k]] = columns
    return mask.reshape(-1, *A.shape[1:])[: len(A)]


@settings(max_examples=60)
@given(
    rows=st.integers(1, 12), k=st.integers(1, 5), extra=st.integers(1, 4), columns=st.integers(1, 5),
    dtype=st.sampled_from(sorted(TOLERANCE)), data=st.data(),
)  # fmt: skip
def test_finite_entries_are_decoded_and_an_error_names_undecodable_entries(
    tmp_path_factory, rows, k, extra, columns, dtype, data
):
    store = FolderStore(tmp_path_factory.mktemp("store"))
    total = max(k, k * rows - data.draw(st.integers(0, rows - 1), "padding"))
    places = data.draw(st.lists(st.integers(0, total * columns - 1), max_size=4, unique=True), "places")
    A = spoilt((total, columns), dtype, places, np.arange(len(places)) % 3)
    coded, messages = encode_with_warnings(A, blocks=k, tasks=k + extra, storage=store)
    assert len(messages) == bool(places)
    lost = data.draw(st.lists(st.integers(0, k + extra - 1), min_size=1, max_size=extra, unique=True), "lost")
    for block in lost:
        damage(store, coded.block_segments(block)[0], "missing")
    before, unknown = objects(store), find_undetermined_entries(A, k, lost)

    for row in range(total):
        if unknown[row].any():
            with pytest.raises(NotDecodableError, match=f"^{entries(unknown[row])} of blocks"):
                coded[row]
        else:
            np.testing.assert_allclose(coded[row], A[row], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    if unknown.any():
        first = re.escape(str(np.argwhere(unknown)[0].tolist()))
        with pytest.raises(NotDecodableError, match=f"the first at index {first}"):
            coded[:]
        with pytest.raises(
            NotDecodableError, match=f"^{entries(unknown)} of blocks .* the first at index {first}"
        ):
            coded.repair()
        assert objects(store) == before
    else:
        coded.repair()
        again = polarmap.open_coded("a", store)
        assert again.check().ok
        np.testing.assert_allclose(again[:], A, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def entries(unknown):
    return "1 entry" if unknown.sum() == 1 else f"{unknown.sum()} entries"


@settings(max_examples=60)
@given(data=st.data())
def test_sparse_parity_never_gives_wrong_numbers(tmp_path_factory, data):
    # With the Arikan kernel, more floats can be decoded than with dense parity, but never wrongly.
    store = FolderStore(tmp_path_factory.mktemp("store"))
    decoder = data.draw(st.sampled_from(["optimal", "sequential"]))
    places = data.draw(st.lists(st.integers(0, 59), max_size=4, unique=True))
    A = spoilt((20, 3), "f8", places, np.arange(len(places)) % 3)
    coded, _ = encode_with_warnings(A, code=PolarCode(9, 5, "arikan", decoder), storage=store)
    for block in data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=2, unique=True)):
        damage(store, coded.block_segments(block)[0], "corrupt")
    before = objects(store)
    try:
        coded.repair()
    except NotDecodableError:
        assert objects(store) == before
    else:
        np.testing.assert_allclose(coded[:], A, rtol=1e-9, atol=1e-9)


def test_repaired_parity_contains_its_nan(store):
    A = spoilt((24, 50), "f8", [7, 300], [0, 1])
    coded, _ = encode_with_warnings(A, blocks=4, tasks=6, storage=store)
    stored = [coded.coded_blocks().component_leaves(block)[0] for block in range(6)]
    assert np.isnan(stored[4].reshape(-1)[7])
    assert np.isfinite(stored[4].reshape(-1)[[8, 9, 299]]).all()
    for block in (4, 5):
        damage(store, coded.block_segments(block)[0], "truncated")
    assert coded.repair().damaged_blocks == [4, 5]
    for block in range(6):
        np.testing.assert_array_equal(coded.coded_blocks().component_leaves(block)[0], stored[block])


def test_padding_does_not_count_as_lost(store):
    # The NaN is at the position of a padding row, so all rows of the array can be decoded.
    A = random_array((11, 3))
    A[2, 1] = np.nan  # Row 11 of the four blocks of 3 rows is padding.
    coded, _ = encode_with_warnings(A, blocks=4, tasks=6, storage=store)
    damage(store, coded.block_segments(3)[0], "missing")
    coded.repair()
    np.testing.assert_allclose(coded[:], A, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(coded.coded_blocks().component_leaves(3)[0][2], 0, atol=1e-9)


def make_overflowing_data(dtype="f4"):
    """Return data for a (6, 4) code whose first parity block overflows in column 0, and the parity."""
    P = PolarCode(6, 4).encoding_matrix
    A = np.ones((4, 3), dtype)
    A[:, 0] = 0.6 * np.finfo(dtype).max * np.sign(P[0])
    with np.errstate(over="ignore"):
        parity = (P @ A.astype("f8")).astype(dtype)
    assert np.isinf(parity[0, 0]) and np.isfinite(parity).sum() == 5
    return A, parity


def test_overflowing_parity_counts_as_erased_at_its_position(store):
    A, _ = make_overflowing_data()
    coded, messages = encode_with_warnings(A, blocks=4, tasks=6, storage=store)
    assert messages == [
        "the parity overflows float32 at 1 position of a block: if a block is lost, its entries at these "
        "positions cannot be decoded"
    ]
    damage(store, coded.block_segments(2)[0], "missing")
    np.testing.assert_allclose(coded[:], A, rtol=1e-4)  # Reading uses the other parity block.
    damage(store, coded.block_segments(3)[0], "missing")
    with pytest.raises(
        NotDecodableError, match=r"2 entries of blocks \[2, 3\] .* the first at index \[2, 0\]"
    ):
        coded.repair()
    np.testing.assert_allclose(coded[:2], A[:2])


def test_stripes_and_partial_reads_are_decoded_separately(store):
    A = random_array((8, 50_000))
    A[1, 40_000] = np.nan
    coded, messages = encode_with_warnings(A, blocks=4, tasks=6, storage=store, memory=MIB)
    assert len(coded.block_segments(0)) > 3
    assert len(messages) == 1
    assert messages[0].startswith("1 entry is NaN or inf, the first at index [1, 40000]:")
    for part in coded.block_segments(2):
        damage(store, part, "missing")
    np.testing.assert_allclose(coded[4], A[4], rtol=1e-9, atol=1e-9)
    with pytest.raises(
        NotDecodableError, match=r"1 entry of blocks \[2\] .* the first at index \[5, 40000\]"
    ):
        coded[:]
    before = objects(store)
    with pytest.raises(NotDecodableError, match=r"the first at index \[5, 40000\]"):
        coded.repair()
    assert objects(store) == before


@pytest.mark.parametrize(("shape", "block"), [((11, 3), (3, 3)), ((4,), (1,)), ((7, 0, 2), (2, 0, 2))])
def test_metadata_of_blocks_is_known_without_reading(store, monkeypatch, shape, block):
    coded = polarmap.encode(random_array(shape), blocks=4, tasks=6, name="a", storage=store)
    monkeypatch.delattr(type(store), "get")
    blocks = coded.coded_blocks()
    data = blocks.data_blocks
    assert (
        [blocks.block_layout(index) for index in (0, 5)] == [(("<f8", block),)] * 2 == [data.block_layout] * 2
    )
    assert (data.k, data.rows_per_block, data.n_padding_rows) == (4, block[0], 4 * block[0] - shape[0])
    assert (data.dtypes, blocks.structure, type(blocks.location)) == (
        [np.dtype(float)],
        ("array",),
        FolderLocation,
    )
    assert [blocks.block_segments(index) for index in range(6)] == [
        coded.block_segments(index) for index in range(6)
    ]


def test_blocks_of_single_numbers_are_scalars(store):
    A, out = np.arange(8.0), polarmap.arrays.Stored("sums", store)
    y = polarmap.coded_map(np.sum, A, blocks=4, out=out, executor=ReplayExecutor())
    blocks = y.array.coded_blocks()
    assert (blocks.structure, blocks.data_blocks.rows_per_block, blocks.block_layout(0)) == (
        ("numpy",),
        None,
        (("<f8", ()),),
    )
    assert blocks.block_leaves(1)[0].shape == ()
    np.testing.assert_array_equal(blocks.data_blocks.block_leaves(1)[0], 5)


def test_a_worker_receives_a_block_as_stored_or_an_error(store):
    A = random_array((8, 50_000))
    coded, _ = encode_with_warnings(A, blocks=4, tasks=6, storage=store, memory=MIB)
    blocks = coded.coded_blocks()
    assert len(coded.block_segments(1)) > 3
    damage(store, coded.block_segments(1)[2], "truncated")
    with pytest.raises(DamagedError, match=f"{coded.block_segments(1)[2].key} has .* bytes"):
        blocks.component_leaves(1)
    np.testing.assert_allclose(blocks.block_leaves(1)[0], A[2:4], rtol=1e-9, atol=1e-9)
    [block] = blocks.component_leaves(2)
    np.testing.assert_array_equal(block, A[4:6])
    assert block.flags.writeable


def test_a_map_of_an_array_with_an_undecodable_block_raises(store):
    A = random_array((12, 3))
    A[1, 1] = np.nan
    coded, _ = encode_with_warnings(A, blocks=4, tasks=6, storage=store)
    y = polarmap.coded_map(lambda block: 2 * block, coded, executor=ReplayExecutor())
    np.testing.assert_array_equal(y.concatenate(), 2 * A)
    damage(store, coded.block_segments(1)[0], "missing")
    with ThreadPoolExecutor(4) as pool, pytest.raises(NotDecodableError, match="NaN or inf"):
        polarmap.coded_map(lambda block: 2 * block, coded, executor=pool, timeout=60, verify=False)


@pytest.mark.parametrize("store", ["s3", "redis"], indirect=True)
@pytest.mark.parametrize("part", [3, 60_000], ids=["whole", "in stripes"])
def test_parts_in_a_bucket_are_read_concurrently(store, monkeypatch, part):
    # At most one part of each block is read at a time, because the parts are held in memory.
    coded = polarmap.encode(random_array((8, part)), blocks=4, tasks=5, name="a", storage=store, memory=MIB)
    get, together, reading, n_reading = type(store).get, threading.Barrier(2), [], []

    def slow(*arguments):
        reading.append(arguments)
        n_reading.append(len(reading))
        try:
            together.wait(60)
            return get(*arguments)
        finally:
            reading.remove(arguments)

    monkeypatch.setattr(type(store), "get", slow)
    np.testing.assert_array_equal(coded[:], random_array((8, part)))
    assert 2 <= max(n_reading) <= 5


# --- while another process repairs the array, or encodes a new one of this name ----------------


@pytest.fixture
def results(tmp_path):
    """Return 2 A as an array, the same array opened a second time, and A."""
    A, late = random_array((48, 30)), ReplayExecutor({1: 5.0, 4: 5.0})
    options = {"blocks": 4, "tasks": 6, "executor": late}
    y = polarmap.coded_map(lambda block: 2 * block, A, out=Stored("y", tmp_path), **options)
    return y.array, polarmap.open_coded("y", tmp_path), A


def test_an_array_opened_before_a_repair_can_still_be_read(results):
    # The repair turns results into a Zarr array, which moves all parts, including intact ones.
    opened, repaired, A = results
    before = [opened.block_segments(block) for block in range(4)]
    repaired.repair()
    np.testing.assert_allclose(opened[3:40, 7], 2 * A[3:40, 7], rtol=1e-10, atol=1e-10)
    assert [opened.block_segments(block) for block in range(4)] == [
        repaired.block_segments(block) for block in range(4)
    ]
    assert not {part.key for parts in before for part in parts} & set(repaired.store.keys(""))


def test_all_threads_can_read_an_array_while_it_is_repaired(results, monkeypatch):
    # This includes a thread that finds parts missing after another thread has found their new location.
    opened, repaired, A = results
    repaired.repair()
    blocks, all_failed, last = opened.coded_blocks(), threading.Barrier(3), threading.Event()
    refresh_manifest = blocks.refresh_manifest

    def refresh_in_turn(known):
        is_last = all_failed.wait(60) == 0
        is_refreshed = last.wait(60) and refresh_manifest(known) if is_last else refresh_manifest(known)
        last.set()
        return is_refreshed

    monkeypatch.setattr(blocks, "refresh_manifest", refresh_in_turn)
    with ThreadPoolExecutor(3) as pool:
        for rows in pool.map(lambda _: opened[:], range(3)):
            np.testing.assert_allclose(rows, 2 * A, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("key", [None, bytes(range(32))], ids=["plain", "encrypted"])
def test_an_open_array_can_be_read_after_all_its_parts_have_moved(store, key):
    # No part keeps its checksum, either.
    A, options = random_array((24, 5)), {"storage": store, "key": key}
    opened = polarmap.encode(A, blocks=4, tasks=6, name="a", **options)
    repaired = polarmap.open_coded("a", **options)
    for block in range(6):
        damage(store, repaired.block_segments(block)[0], "missing")
        repaired.repair()
    np.testing.assert_allclose(opened[:], A, rtol=1e-9, atol=1e-9)
    y = polarmap.coded_map(np.negative, opened, executor=ReplayExecutor())
    np.testing.assert_allclose(y.concatenate(), -A, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "read",
    [
        lambda array: array[6:12],
        lambda array: array.coded_blocks().component_leaves(1)[0],
        lambda array: array.check().ok,
    ],
    ids=["rows", "block", "check"],
)
def test_an_array_that_is_repaired_again_during_a_refresh_can_be_read(store, monkeypatch, read):
    A, options = random_array((24, 5)), {"storage": store, "name": "a"}
    opened = polarmap.encode(A, blocks=4, tasks=6, **options)
    repaired, blocks = polarmap.open_coded(**options), opened.coded_blocks()
    refresh_manifest, repairs = blocks.refresh_manifest, [None] * 2

    def move_all_parts():
        for block in range(6):
            damage(store, repaired.block_segments(block)[0], "missing")
            repaired.repair()

    def refresh_late(known):
        is_refreshed = refresh_manifest(known)
        while repairs:
            repairs.pop()
            move_all_parts()
        return is_refreshed

    move_all_parts()
    monkeypatch.setattr(blocks, "refresh_manifest", refresh_late)
    result = read(opened)
    assert result is True or np.allclose(result, A[6:12], rtol=1e-9, atol=1e-9)


def test_an_unchanged_manifest_is_refreshed_only_once(store, monkeypatch):
    # Otherwise every map of an array with a damaged part would read its manifest.
    coded = polarmap.encode(random_array((8, 3)), blocks=4, tasks=6, name="a", storage=store)
    damage(store, coded.block_segments(2)[0], "corrupt")
    read, parse = [], Manifest.from_bytes
    monkeypatch.setattr(Manifest, "from_bytes", lambda *given: read.append(given) or parse(*given))
    for _ in range(3):
        polarmap.coded_map(np.negative, coded, executor=ReplayExecutor())
    assert len(read) == 1


@pytest.mark.parametrize("kind", ["replay", "localhost", "threads", "processes", "here"])
def test_a_map_continues_while_its_array_is_repaired(results, kind):
    opened, repaired, A = results
    open_executor = {
        "replay": lambda: nullcontext(ReplayExecutor()),
        "localhost": lambda: nullcontext("localhost"),
        "threads": lambda: ThreadPoolExecutor(2),
        "processes": lambda: process_pool(2),
        "here": nullcontext,
    }[kind]
    repaired.repair()
    with open_executor() as executor:
        y = polarmap.coded_map(np.negative, opened, executor=executor, timeout=60)
    np.testing.assert_allclose(y.concatenate(), -2 * A, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("change", [{}, {"tasks": 7}, {"blocks": 3}], ids=["numbers", "code", "cut"])
def test_no_part_of_another_array_with_the_same_name_is_read(store, change):
    # The parts of the other array would not match the parts that were read before.
    A, options = random_array((24, 5)), {"blocks": 4, "tasks": 6, "name": "a", "storage": store}
    opened = polarmap.encode(A, **options)
    polarmap.encode(A if change else 2 * A, overwrite=True, **(options | change))
    with pytest.raises(NotDecodableError, match="stripe 0 of the coded array 'a' cannot be decoded"):
        opened[:]
    with pytest.raises(NotDecodableError, match="is missing"):
        polarmap.coded_map(np.negative, opened, executor=ReplayExecutor())
