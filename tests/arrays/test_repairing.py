"""Damage of every kind: found, decoded on the way, repaired or refused."""

from __future__ import annotations

import numpy as np
import pytest
from array_data import DOCUMENTS, MIB, damage, losses, objects, random_array
from counting_store import BrokenError, Counting, fail

import polarmap
from polarmap.arrays.keys import manifest_key
from polarmap.errors import MissingObjectError, NotDecodableError, StorageError

pytestmark = pytest.mark.every_store


@pytest.mark.parametrize("dtype", ["f4", "f8", "c16", "u1", "i8"])
def test_damaged_parts_are_named_decoded_and_repaired(store, dtype):
    A = random_array((72, 600), dtype)
    coded = polarmap.encode(A, blocks=6, workers=9, name="a", storage=store, memory=MIB)
    tolerance = 0 if np.dtype(dtype).kind in "iu" else 1e-4 if dtype == "f4" else 1e-10
    kinds = ("missing", "corrupt", "truncated")
    hurt = {(block, 0): kind for block, kind in zip(losses(coded.code, 3), kinds)}
    if len(coded.stored(0)) > 1:
        hurt |= {(1, 1): "corrupt", (7, 1): "missing"}
    for (block, stripe), kind in hurt.items():
        damage(store, coded.stored(block)[stripe], kind)
    before = objects(store)

    found = coded.check()
    assert {(one.block, one.stripe): one.kind for one in found.damaged} == hurt
    assert not found.ok
    assert found.lost == ()
    assert "1 truncated" in repr(found)
    assert all(f"block {block}, part {part}: {kind}" in repr(found) for (block, part), kind in hurt.items())
    np.testing.assert_allclose(coded[:], A, rtol=tolerance, atol=tolerance)
    assert objects(store) == before

    assert coded.repair() == found
    assert coded.check().ok
    again = polarmap.open_coded("a", store)
    assert again.check().ok
    np.testing.assert_allclose(again[:], A, rtol=tolerance, atol=tolerance)
    wrong = {damage.key for damage in found.damaged}
    good = before.keys() - wrong - {manifest_key("a")}
    assert all(objects(store)[key] == before[key] for key in good)
    assert len(good) == 9 * len(coded.stored(0)) - len(hurt) + DOCUMENTS - 1
    copies = sum(block < 6 for block, _ in hurt)  # rebuilt parts of data lie in the Zarr array too
    assert len(store.keys("polarmap/")) == 9 * len(coded.stored(0)) + DOCUMENTS + copies


def test_what_was_deleted_cannot_be_repaired(store):
    coded = polarmap.encode(np.arange(24.0), blocks=4, name="a", storage=store)
    coded.delete()
    coded.delete()
    with pytest.raises(MissingObjectError, match="no coded array 'a'"):
        coded.repair()
    assert len(coded.check().damaged) == coded.n
    with pytest.raises(NotDecodableError):
        coded[:]


def test_repair_of_what_is_whole_changes_nothing(store):
    coded = polarmap.encode(np.arange(24.0), blocks=4, name="a", storage=store)
    before = objects(store)
    assert coded.repair().ok
    assert objects(store) == before


def test_repaired_integers_are_the_bytes_that_were_stored(store):
    coded = polarmap.encode(random_array((12, 7), "i2"), blocks=4, workers=7, name="a", storage=store)
    before = [store.get(coded.stored(index)[0].key) for index in range(7)]
    for index in losses(coded.code, 3):
        damage(store, coded.stored(index)[0], "missing")
    coded.repair()
    assert [store.get(coded.stored(index)[0].key) for index in range(7)] == before


def test_each_stripe_bears_its_own_losses(store):
    A = random_array((8, 50_000))
    coded = polarmap.encode(A, blocks=4, workers=6, name="a", storage=store, memory=MIB)
    assert len(coded.stored(0)) > 3
    for stripe, lost in enumerate([(0, 1), (2, 3), (4, 5), (1, 4)]):
        for block in lost:
            damage(store, coded.stored(block)[stripe], "missing")
    np.testing.assert_allclose(coded[:], A, rtol=1e-10, atol=1e-10)
    assert len(coded.repair().damaged) == 8
    assert coded.check().ok


def test_too_much_damage_is_one_clear_error_and_changes_nothing(store):
    coded = polarmap.encode(random_array((12, 7)), blocks=4, workers=6, name="a", storage=store)
    for index in (0, 1, 5):
        damage(store, coded.stored(index)[0], "corrupt")
    before = objects(store)
    assert coded.check().lost == (0,)
    assert "stripes [0] are lost" in repr(coded.check())
    with pytest.raises(
        NotDecodableError, match=r"(?s)3 corrupt, in blocks \[0, 1, 5\]; stripes \[0\] are lost"
    ):
        coded.repair()
    with pytest.raises(NotDecodableError, match="stripe 0 of the coded array 'a' is lost"):
        coded[:]
    np.testing.assert_array_equal(coded[6:9].shape, (3, 7))  # block 2 is good
    assert objects(store) == before


OPTIONS = {"blocks": 4, "workers": 6, "name": "a", "memory": MIB}


SHAPE = (20, 7_000)  # five stripes, one row of each block, at 1 MiB


def test_repair_does_not_bring_back_what_was_replaced(store):
    A = random_array(SHAPE)
    coded = polarmap.encode(A, storage=store, **OPTIONS)
    store.delete([coded.stored(1)[2].key])
    other = polarmap.encode(A[:8], storage=store, overwrite=True, **OPTIONS)
    assert coded.repair().ok  # it looks at what is there now
    np.testing.assert_array_equal(coded[:], A[:8])
    store.delete([other.stored(1)[0].key])

    def overtake():
        polarmap.encode(A[:4], storage=store, overwrite=True, **OPTIONS)

    late = polarmap.open_coded("a", Counting(store, 2, overtake))
    with pytest.raises(StorageError, match="by another process meanwhile"):
        late.repair()
    np.testing.assert_array_equal(polarmap.open_coded("a", store)[:], A[:4])
    assert polarmap.open_coded("a", store).check().ok


def test_a_repair_cut_short_changes_nothing(store):
    A = random_array(SHAPE)
    coded = polarmap.encode(A, storage=store, **OPTIONS)
    for stripe in range(3):
        store.delete([coded.stored(1)[stripe].key])
    before = objects(store)
    late = polarmap.open_coded("a", Counting(store, 3, fail))
    with pytest.raises(BrokenError):
        late.repair()
    now = objects(store)
    assert {key: now[key] for key in before} == before
    assert manifest_key("a") in now
    coded.repair()
    assert coded.check().ok
    assert len(store.keys("polarmap/")) == DOCUMENTS + 6 * 5 + 3  # rebuilt data lies in the Zarr array too
