"""Tests that coded arrays are Zarr arrays, which can be read without polarmap, checked and repaired."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
from array_data import DTYPES, MIB, damage, objects, put_rows, random_array, zarr_data
from counting_store import BrokenError, Counting, Least, fail
from hypothesis import given, settings
from hypothesis import strategies as st

import polarmap
from polarmap.arrays import Stored, repairing
from polarmap.arrays.stores import open_store
from polarmap.blocks.equal import compute_max_nonempty_blocks
from polarmap.errors import NotDecodableError
from polarmap.storage.folder import FolderStore
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

OPTIONS = {"blocks": 4, "tasks": 6, "name": "a"}

READERS = """
import sys
import numpy as np
import cubed, dask.array, xarray, zarr

group, A = sys.argv[1], np.load(sys.argv[2])
for x in (
    zarr.open(group)["data"][:],
    zarr.open_array(f"{group}/data")[:],
    xarray.open_zarr(group)["data"].values,
    xarray.open_dataset(group)["data"].values,
    dask.array.from_zarr(group, component="data").compute(),
    cubed.from_zarr(group, path="data", spec=cubed.Spec(work_dir=sys.argv[3], allowed_mem=10**9)).compute(),
):
    np.testing.assert_array_equal(x, A, strict=True)
assert dask.array.from_zarr(group, component="data").chunksize == (11, 5)
assert "polarmap" not in sys.modules
"""


def small_memory(monkeypatch):
    monkeypatch.setattr(importlib.import_module("polarmap.arrays.encoding"), "MIN_MEMORY_BYTES", 1)


def test_zarr_opens_an_array_without_polarmap(tmp_path):
    A = random_array((43, 5))
    coded = polarmap.encode(A, storage=tmp_path, **OPTIONS)
    np.save(tmp_path / "A.npy", A)
    command = [sys.executable, "-W", "error", "-c", READERS, coded.zarr_path, tmp_path / "A.npy", tmp_path]
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert run.returncode == 0, run.stderr


@settings(max_examples=25)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), k=st.integers(1, 5),
    memory=st.integers(400, 8_000), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_cut_in_any_way_is_read_by_zarr(tmp_path_factory, shape, k, memory, dtype, seed):
    shape[0] += k
    k = compute_max_nonempty_blocks(shape[0], k)
    A = random_array(shape, dtype, seed)
    with pytest.MonkeyPatch.context() as patch:
        small_memory(patch)
        folder = tmp_path_factory.mktemp("store")
        coded = polarmap.encode(A, blocks=k, tasks=k + 2, name="a", storage=folder, memory=memory)
    np.testing.assert_array_equal(zarr_data(coded)[:], A)
    assert zarr_data(coded).dtype == A.dtype.newbyteorder("=")
    np.testing.assert_array_equal(coded[:], A)
    assert coded.check().ok
    protected_blocks = np.flatnonzero((coded.code.encoding_matrix % 2).any(axis=0))
    lost_block = int(protected_blocks[0]) if A.dtype.kind in "iu" else 0
    FolderStore(folder).delete([coded.block_segments(lost_block)[0].key])
    assert not coded.check().ok
    coded.repair()
    assert coded.check().ok
    np.testing.assert_allclose(zarr_data(coded)[:], A, rtol=1e-2, atol=1e-2)
    coded.delete()
    assert FolderStore(folder).keys("") == []


def test_zarr_does_not_read_numbers_from_a_missing_chunk(tmp_path):
    coded = polarmap.encode(np.ones((8, 2)), storage=tmp_path, **OPTIONS)
    damage(coded.store, coded.block_segments(1)[0], "missing")
    assert np.isnan(zarr_data(coded)[2:4]).all()


def test_data_appended_by_zarr_is_detected(tmp_path):
    import zarr

    A = random_array((20, 3))
    coded = polarmap.encode(A, storage=tmp_path, **OPTIONS)
    zarr.open_array(f"{coded.zarr_path}/data").append(np.ones((5, 3)))
    assert {key.rpartition("array.zarr/")[2]: kind for key, kind in coded.check().zarr_damages} == {
        "data/zarr.json": "corrupt",
        "data/c/4/0": "foreign",
    }
    coded.repair()
    assert coded.check().ok
    np.testing.assert_array_equal(zarr_data(coded)[:], A)
    zarr.open_array(f"{coded.zarr_path}/data")[7, 1] += 1
    assert coded.check().damaged_blocks == [1]


def test_blocks_of_unequal_stripes_are_joined(tmp_path, monkeypatch):
    small_memory(monkeypatch)
    A = random_array((4 * 13, 3))
    coded = polarmap.encode(A, memory=3 * 6 * 8 * 3 * 8, storage=tmp_path, **OPTIONS)
    assert [part.offset for part in coded.block_segments(0)] == [0, 8 * 24]
    assert zarr_data(coded).chunks == (13, 3)
    np.testing.assert_array_equal(zarr_data(coded)[:], A)
    damage(coded.store, coded.block_segments(1)[1], "corrupt")
    damage(coded.store, coded.block_segments(3)[0], "appended")
    assert [(part.block, part.stripe) for part in coded.check().damaged] == [(1, 1), (3, 1)]
    coded.repair()
    assert coded.check().ok
    np.testing.assert_allclose(zarr_data(coded)[:], A, rtol=1e-10)


def test_blocks_that_a_store_cannot_join_do_not_become_a_zarr_array(tmp_path, monkeypatch):
    small_memory(monkeypatch)
    A = random_array((4 * 13, 3))
    store = Least(FolderStore(tmp_path))
    coded = polarmap.encode(A, memory=3 * 6 * 8 * 3 * 8, storage=store, **OPTIONS)
    assert coded.zarr_path is None
    assert coded.repair().ok
    assert not [key for key in store.keys("") if "zarr" in key]
    np.testing.assert_array_equal(coded[:], A)


@pytest.mark.parametrize("joins", [True, False])
def test_stripes_of_an_earlier_run_are_part_of_the_zarr_array(tmp_path, joins):
    A, folder = random_array((20, 7_000)), FolderStore(tmp_path)
    with pytest.raises(BrokenError):
        polarmap.encode(A, storage=Counting(folder, 25, fail), memory=MIB, **OPTIONS)
    if joins:
        coded = polarmap.encode(A, storage=folder, memory=MIB, **OPTIONS)
        generations = {key.split("/")[3] for key in folder.keys("polarmap/coded/a/")}
        assert len(generations) == 2  # Parity is not moved.
    else:
        polarmap.encode(A, storage=Least(folder), memory=MIB, **OPTIONS)
        coded = polarmap.open_coded("a", folder)
        assert coded.zarr_path is None  # No part is sent twice.
        assert coded.check().ok
        assert coded.repair().ok
    np.testing.assert_array_equal(zarr_data(coded)[:], A)
    assert coded.check().ok


@pytest.mark.parametrize("joins", [True, False])
def test_pieces_that_were_padded_to_chunks_are_stored_again(tmp_path, joins):
    # Each row consists of three pieces, and the last piece is shorter. When an earlier run has padded it, the
    # piece is longer than the manifest allows for parts outside the Zarr array.
    A, folder = random_array((8, 16_003)), FolderStore(tmp_path)
    with pytest.raises(BrokenError):
        polarmap.encode(A, storage=Counting(folder, 40, fail), memory=MIB, **OPTIONS)
    coded = polarmap.encode(A, storage=folder if joins else Least(folder), memory=MIB, **OPTIONS)
    first, *_, last = (coded.block_segments(0)[stripe].key.split("/")[3] for stripe in (0, 1, 2))
    assert (first == last) == joins
    assert len({part.size for part in coded.block_segments(0)}) == 2
    assert coded.check().ok
    assert (coded.zarr_path is not None) == joins
    np.testing.assert_array_equal(coded[:], A)


def test_an_array_encoded_by_workers_is_a_zarr_array(tmp_path):
    A = random_array((43, 3_000))
    np.save(tmp_path / "A.npy", A)
    options = {"storage": tmp_path / "store", "memory": MIB, "executor": ReplayExecutor(), **OPTIONS}
    coded = polarmap.encode(tmp_path / "A.npy", **options)
    np.testing.assert_array_equal(zarr_data(coded)[:], A)
    assert coded.check().ok


@pytest.mark.parametrize("shape", [(20,), (20, 3), (20, 3, 2)])
def test_results_are_a_zarr_array_as_soon_as_none_is_missing(tmp_path, shape):
    A, options = random_array(shape), {"blocks": 4, "tasks": 6, "executor": ReplayExecutor()}
    y = polarmap.coded_map(np.negative, A, out=Stored("y", tmp_path), **options)
    np.testing.assert_array_equal(zarr_data(y.array)[:], -A)
    late = {**options, "executor": ReplayExecutor({1: 9.0})}
    y = polarmap.coded_map(np.negative, A, out=Stored("late", tmp_path), **late)
    assert y.array.zarr_path is None
    y.array.repair()
    np.testing.assert_allclose(zarr_data(y.array)[:], -A, rtol=1e-10)
    assert y.array.check().ok
    y.array.delete()
    assert polarmap.arrays.list_coded(tmp_path) == ["y"]


def test_stored_scalars_are_a_zarr_vector(tmp_path):
    options = {"blocks": 4, "tasks": 6, "executor": ReplayExecutor()}
    y = polarmap.coded_map(np.sum, random_array((20, 3)), out=Stored("y", tmp_path), **options)
    np.testing.assert_array_equal(zarr_data(y.array)[:], y.array[:])


def test_data_that_was_not_copied_does_not_become_a_zarr_array(tmp_path):
    store, A = FolderStore(tmp_path), random_array((8, 3))
    coded = polarmap.encode(put_rows(store, A, 2), storage=store, **OPTIONS)
    damage(store, coded.block_segments(5)[0], "missing")
    coded.repair()
    assert coded.zarr_path is None
    assert not [key for key in store.keys("") if "zarr" in key]


def test_metadata_follows_the_specification(tmp_path):
    coded = polarmap.encode(random_array((20, 3), "c8"), storage=tmp_path, **OPTIONS)
    group, array = (
        json.loads(coded.store.get(f"{coded.coded_blocks().manifest.zarr_view.path}/{name}"))
        for name in ("zarr.json", "data/zarr.json")
    )
    assert group["attributes"]["polarmap"] == {"manifest": "polarmap/manifests/a.json"}
    assert group["consolidated_metadata"]["metadata"]["data"] == array
    assert (array["zarr_format"], array["node_type"], array["data_type"]) == (3, "array", "complex64")
    assert array["fill_value"] == ["NaN", "NaN"]
    assert array["codecs"] == [{"name": "bytes", "configuration": {"endian": sys.byteorder}}]


# --- repair, in this process and on workers ---------------------------------------------------------------


def test_rebuilt_parts_are_stored_twice_and_both_copies_are_checked(tmp_path):
    coded = polarmap.encode(random_array((20, 3)), storage=tmp_path, **OPTIONS)
    chunk = coded.block_segments(2)[0]
    damage(coded.store, chunk, "missing")
    coded.repair()
    assert coded.block_segments(2)[0].key != chunk.key
    assert coded.store.get(chunk.key) == coded.store.get(coded.block_segments(2)[0].key)
    coded.store.put(chunk.key, b"of a writer that comes late")
    assert coded.check().damaged == ()
    assert coded.check().zarr_damages == ((chunk.key, "truncated"),)
    coded.repair()
    assert coded.check().ok
    np.testing.assert_array_equal(zarr_data(coded)[:], coded[:])


@pytest.fixture
def unjoined_results(tmp_path):
    """Return results -A with one missing block, in a store that cannot join objects, and A."""
    A, folder = random_array((20, 3)), FolderStore(tmp_path)
    folder.concatenate = lambda keys, key: False
    options = {"blocks": 4, "tasks": 6, "executor": ReplayExecutor()}
    return polarmap.coded_map(np.negative, A, out=Stored("y", folder), **options).array, A


def test_results_on_a_store_that_cannot_join_become_a_zarr_array_after_repair(unjoined_results):
    # The repair copies the objects through the driver, which a map never does.
    array, A = unjoined_results
    assert array.check().damaged_blocks == [5]  # The map did not wait for this parity block.
    assert array.zarr_path is None
    array.repair()
    np.testing.assert_array_equal(zarr_data(array)[:], -A)
    assert array.check().ok


@pytest.mark.parametrize("kind", ["missing", "truncated", "corrupt"])
def test_damage_during_a_copy_raises_a_polarmap_error(unjoined_results, monkeypatch, kind):
    array, A = unjoined_results
    part, repair_zarr = array.block_segments(2)[0], repairing.repair_zarr_array

    def damage_and_repair(*arguments):
        damage(array.store, part, kind)
        return repair_zarr(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(repairing, "repair_zarr_array", damage_and_repair)
        with pytest.raises(NotDecodableError, match=f"{part.key} (is|has) .*. It was intact when"):
            array.repair()
    assert array.repair().damaged_blocks == [2, 5]  # The next repair rebuilds both.
    np.testing.assert_allclose(zarr_data(array)[:], -A, rtol=1e-12, atol=1e-12)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Return results 2 A in three parts each, with two missing blocks, and A."""
    monkeypatch.setattr("polarmap.arrays.stored_result.MAX_STRIPE_BYTES", 8 * 6 * 120)
    A, late = random_array((48, 30)), ReplayExecutor({1: 5.0, 4: 5.0})
    out = Stored("y", tmp_path / "results")
    y = polarmap.coded_map(lambda block: 2 * block, A, blocks=4, tasks=6, out=out, executor=late)
    assert len(y.array.block_segments(1)) == 3
    assert y.array.zarr_path is None
    return y.array, A


def check_repaired(coded, A, audit):
    assert audit.damaged_blocks == [1, 4]
    assert coded.check().ok
    assert coded.zarr_path is not None
    np.testing.assert_allclose(coded[:], 2 * A, rtol=1e-10, atol=1e-10)


def test_stored_results_are_repaired_in_place_by_workers(results, threads):
    # Each result is a chunk of the Zarr array, because a worker joins its parts.
    coded, A = results
    check_repaired(coded, A, coded.repair(executor=threads))
    assert len({part.key for part in coded.block_segments(1)}) == 1
    damage(coded.store, coded.block_segments(2)[1], "corrupt")  # The intact parts of this object move.
    assert len(coded.repair(executor=threads).damaged) == 1
    assert coded.check().ok
    np.testing.assert_allclose(coded[:], 2 * A, rtol=1e-10, atol=1e-10)
    coded.delete()
    assert coded.store.keys("polarmap/") == []


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_workers_of_lithops_repair_results_in_the_bucket(results, config):
    there, A = results
    store = open_store(config)
    for key, data in objects(there.store).items():
        store.put(key, data)
    coded = polarmap.open_coded("y", store)
    check_repaired(coded, A, coded.repair(executor=FaultyExecutor(config, {1: Fault("raise")})))
    assert "/data/c/" in coded.block_segments(1)[0].key
    coded.delete()
    assert store.keys("polarmap/") == []
