"""The Zarr array of a coded array that is repaired, here and by workers."""

from __future__ import annotations

import numpy as np
import pytest
from array_data import damage, objects, random_array, zarr_data

import polarmap
from polarmap import Fault, FaultyExecutor, ReplayExecutor, Stored
from polarmap.arrays import repairing
from polarmap.arrays.stores import open_store
from polarmap.errors import NotDecodableError
from polarmap.storage.folder import FolderStore

OPTIONS = {"blocks": 4, "workers": 6, "name": "a"}


def test_rebuilt_parts_lie_twice_and_both_are_checked(tmp_path):
    coded = polarmap.encode(random_array((20, 3)), storage=tmp_path, **OPTIONS)
    chunk = coded.stored(2)[0]
    damage(coded.store, chunk, "missing")
    coded.repair()
    assert coded.stored(2)[0].key != chunk.key
    assert coded.store.get(chunk.key) == coded.store.get(coded.stored(2)[0].key)
    coded.store.put(chunk.key, b"of a writer that comes late")
    assert coded.check().damaged == ()
    assert coded.check().zarr == ((chunk.key, "truncated"),)
    coded.repair()
    assert coded.check().ok
    np.testing.assert_array_equal(zarr_data(coded)[:], coded[:])


def test_results_on_a_store_that_cannot_join_are_one_after_repair(tmp_path):
    """Through the driver: nothing does that while a map runs."""
    A, folder = random_array((20, 3)), FolderStore(tmp_path)
    options = {"blocks": 4, "workers": 6, "executor": ReplayExecutor()}
    folder.join = lambda keys, key: False
    y = polarmap.coded_map(np.negative, A, out=Stored("y", folder), **options)
    assert y.array.check().blocks == [5]  # parity, which nobody waited for
    assert y.array.zarr is None
    y.array.repair()
    np.testing.assert_array_equal(zarr_data(y.array)[:], -A)
    assert y.array.check().ok


@pytest.mark.parametrize("kind", ["missing", "truncated", "corrupt"])
def test_what_is_damaged_while_it_is_copied_is_an_error_of_ours(tmp_path, monkeypatch, kind):
    A, folder = random_array((20, 3)), FolderStore(tmp_path)
    folder.join = lambda keys, key: False
    options = {"blocks": 4, "workers": 6, "executor": ReplayExecutor()}
    array = polarmap.coded_map(np.negative, A, out=Stored("y", folder), **options).array
    part, repair_zarr = array.stored(2)[0], repairing.repair_zarr

    def damage_and_repair(*arguments):
        damage(folder, part, kind)
        return repair_zarr(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(repairing, "repair_zarr", damage_and_repair)
        with pytest.raises(NotDecodableError, match=f"{part.key} (is|has) .*, since it was looked at"):
            array.repair()
    assert array.repair().blocks == [2, 5]  # and the next call rebuilds it
    np.testing.assert_allclose(zarr_data(array)[:], -A, rtol=1e-12, atol=1e-12)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """2 A, in three parts each, of which two results had not arrived; and A."""
    monkeypatch.setattr("polarmap.arrays.stored_result.STRIPE_BYTES", 8 * 6 * 120)
    A, late = random_array((48, 30)), ReplayExecutor({1: 5.0, 4: 5.0})
    out = Stored("y", tmp_path / "results")
    y = polarmap.coded_map(lambda block: 2 * block, A, blocks=4, workers=6, out=out, executor=late)
    assert len(y.array.stored(1)) == 3
    assert y.array.zarr is None
    return y.array, A


def check_repaired(coded, A, audit):
    assert audit.blocks == [1, 4]
    assert coded.check().ok
    assert coded.zarr is not None
    np.testing.assert_allclose(coded[:], 2 * A, rtol=1e-10, atol=1e-10)


def test_results_that_stayed_become_whole_where_they_lie(results, threads):
    """Each is a chunk of the Zarr array: a worker joins its parts."""
    coded, A = results
    check_repaired(coded, A, coded.repair(executor=threads))
    assert len({part.key for part in coded.stored(1)}) == 1
    damage(coded.store, coded.stored(2)[1], "corrupt")  # its object has good parts, too, which move
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
    assert "/data/c/" in coded.stored(1)[0].key
    coded.delete()
    assert store.keys("polarmap/") == []
