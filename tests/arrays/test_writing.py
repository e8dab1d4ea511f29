"""What becomes an array that can be opened."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from array_data import DOCUMENTS, MIB, random_array
from counting_store import Counting

import polarmap
from polarmap import PolarCode
from polarmap.arrays.stores import PartStore
from polarmap.arrays.stripes import plan_stripes
from polarmap.arrays.writing import write_array
from polarmap.errors import StorageError
from polarmap.worker.parts import Part

pytestmark = pytest.mark.every_store


def test_what_could_not_be_opened_is_not_published(store):
    """Whoever wrote the parts: a manifest that does not fit them would occupy the name."""
    plan = plan_stripes(PolarCode(6, 4), (8, 3), np.dtype("f8"), MIB)

    def write(generation, earlier):
        parts = [Part(generation.part_key(block, 0), 48 - 8 * (block == 5), 0) for block in range(6)]
        return [parts]

    with pytest.raises(StorageError, match=r"'a' is not published: .* block 5 is not cut as block 0 is"):
        write_array(PartStore(store), "a", plan, False, write)
    assert polarmap.list_coded(store) == []
    polarmap.encode(np.ones((8, 3)), name="a", storage=store)


OPTIONS = {"blocks": 4, "workers": 6, "name": "a", "memory": MIB}


SHAPE = (20, 7_000)  # five stripes, one row of each block, at 1 MiB


def test_the_first_to_finish_wins_and_the_other_says_so(store):
    A, B = random_array(SHAPE), random_array(SHAPE, seed=1)
    won = []

    def overtake():
        won.append(polarmap.encode(B, storage=store, **OPTIONS))

    with pytest.raises(StorageError, match="was written or deleted by another process meanwhile"):
        polarmap.encode(A, storage=Counting(store, 25, overtake), **OPTIONS)
    np.testing.assert_array_equal(polarmap.open_coded("a", store)[:], B)
    assert won[0].check().ok
    assert len(store.keys("polarmap/")) == DOCUMENTS + 6 * 5


def test_an_array_deleted_meanwhile_is_not_brought_back(store):
    A = random_array(SHAPE)
    before = polarmap.encode(A[:8], storage=store, **OPTIONS)
    with pytest.raises(StorageError, match="by another process meanwhile"):
        polarmap.encode(A, storage=Counting(store, 25, before.delete), overwrite=True, **OPTIONS)
    assert store.keys("polarmap/") == []


def test_many_at_once_leave_one_whole_array(store):
    arrays = [random_array((16, 500), seed=seed) for seed in range(6)]
    start = threading.Barrier(len(arrays))
    outcomes = []

    def run(A):
        start.wait(30)
        try:
            outcomes.append(polarmap.encode(A, blocks=4, workers=6, name="a", storage=store, overwrite=True))
        except StorageError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run, args=(A,)) for A in arrays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == len(arrays)
    assert any(isinstance(one, polarmap.CodedArray) for one in outcomes)
    coded = polarmap.open_coded("a", store)
    assert any(np.array_equal(coded[:], A) for A in arrays)
    assert coded.check().ok
    polarmap.encode(arrays[0], blocks=4, workers=6, name="a", storage=store, overwrite=True)
    assert len(store.keys("polarmap/")) == DOCUMENTS + 6
