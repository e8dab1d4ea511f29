"""Data that lies in the store already: only parity is added, and it is left alone."""

from __future__ import annotations

import numpy as np
import pytest
from array_data import MIB, copied, objects, random_array

import polarmap
from polarmap import RawObjects
from polarmap.errors import CodeError, MissingObjectError, StorageError

OPTIONS = {"blocks": 4, "workers": 6, "name": "a", "memory": MIB}


def put_rows(store, A, rows, head=b""):
    keys = [f"mine/{number}.raw" for number in range(-(-len(A) // rows))]
    for number, key in enumerate(keys):
        store.put(key, head + A[number * rows : (number + 1) * rows].tobytes())
    return RawObjects(keys, A.shape, A.dtype, rows, len(head))


@pytest.mark.parametrize("dtype", ["f8", "f4", "c8", "i2"])
@pytest.mark.parametrize("rows", [1, 2, 6, 12, 24])
def test_only_parity_is_stored(store, rows, dtype):
    A = random_array((24, 50), dtype)
    source = put_rows(store, A, rows, b"head")
    before = objects_below(store, "mine/")
    coded = polarmap.encode(source, storage=store, **OPTIONS)
    assert copied(coded) == []
    assert coded.stored_bytes == 2 * 6 * 50 * coded.code.parity_dtype(dtype).itemsize
    np.testing.assert_array_equal(coded[:], A)
    np.testing.assert_array_equal(coded[5:17], A[5:17])
    assert coded.check().ok
    direct = polarmap.encode(A, storage=store, **{**OPTIONS, "name": "b"})
    np.testing.assert_array_equal(coded.coded_blocks().piece(5)[0], direct.coded_blocks().piece(5)[0])

    part = coded.stored(1)[0]
    data = bytearray(store.get(part.key))
    data[part.offset + 3] ^= 1
    store.put(part.key, data)
    before_repair = objects_below(store, "mine/")
    if coded.check().lost == ():
        coded.repair()
        np.testing.assert_allclose(coded[:], A, rtol=1e-5, atol=1e-5)
        assert len(copied(coded)) >= 1
        assert coded.check().ok
    assert objects_below(store, "mine/") == before_repair
    coded.delete()
    direct.delete()
    assert objects_below(store, "mine/").keys() == before.keys()
    assert store.keys("polarmap/") == []


def objects_below(store, prefix):
    return {key: store.get(key) for key in store.keys(prefix)}


@pytest.mark.parametrize(("total", "rows"), [(23, 6), (22, 5), (24, 7), (21, 4)])
def test_what_does_not_fit_is_copied(store, total, rows):
    A = random_array((total, 2_000))  # stripes of three rows
    coded = polarmap.encode(put_rows(store, A, rows), storage=store, **OPTIONS)
    assert 0 < len(copied(coded)) < sum(len(coded.stored(index)) for index in range(4))
    np.testing.assert_array_equal(coded[:], A)
    assert coded.check().ok


def test_rows_in_pieces(store):
    A = random_array((4, 3, 20_000), "f4")
    coded = polarmap.encode(put_rows(store, A, 2), storage=store, **OPTIONS)
    assert len(coded.stored(0)) > 2
    assert copied(coded) == []
    np.testing.assert_array_equal(coded[:], A)


def test_the_other_byte_order_is_copied(store):
    A = random_array((24, 50), ">f8")
    coded = polarmap.encode(put_rows(store, A, 6), storage=store, **OPTIONS)
    assert len(copied(coded)) == 4
    np.testing.assert_array_equal(coded[:], A)


def test_descriptions_that_do_not_fit(store):
    A = random_array((24, 50))
    source = put_rows(store, A, 6)
    with pytest.raises(CodeError, match="4 objects of 6 rows do not hold shape"):
        polarmap.encode(RawObjects(source.keys, (36, 50), "f8", 6), storage=store, **OPTIONS)
    with pytest.raises(StorageError, match="shorter than its shape and dtype say"):
        polarmap.encode(RawObjects(source.keys, (24, 60), "f8", 6), storage=store, **OPTIONS)
    with pytest.raises(MissingObjectError, match="no object 'nothing'"):
        polarmap.encode(RawObjects(["nothing"], (24, 50), "f8", 24), storage=store, **OPTIONS)
    with pytest.raises(StorageError, match="no key of an object"):
        polarmap.encode(RawObjects(["../nothing"], (24, 50), "f8", 24), storage=store, **OPTIONS)
    assert polarmap.list_coded(store) == []


def test_changed_objects_count_as_damaged(store):
    A = random_array((24, 50))
    coded = polarmap.encode(put_rows(store, A, 6), storage=store, **OPTIONS)
    store.put("mine/2.raw", (A[12:18] + 1).tobytes())
    assert [(one.block, one.kind) for one in coded.check().damaged] == [(2, "corrupt")]
    np.testing.assert_allclose(coded[:], A, rtol=1e-10, atol=1e-10)
    assert set(objects(store)) >= {"polarmap/manifests/a.json"}


@pytest.mark.parametrize(
    "change",
    [{"rows": 0.5}, {"rows": -1}, {"shape": "24"}, {"shape": (24, None)}, {"keys": "mine"}, {"offset": -8}],
)
def test_sizes_of_raw_objects_are_counts(store, change):
    fields = {"keys": ["mine/0"], "shape": (24, 50), "dtype": "f8", "rows": 24}
    with pytest.raises(CodeError, match=r"must be (a tuple|a sequence|an integer)"):
        polarmap.encode(RawObjects(**(fields | change)), storage=store, **OPTIONS)


def test_numbers_of_numpy_are_counts_too(store):
    A = random_array((24, 50))
    raw = put_rows(store, A, 6)
    raw = RawObjects(raw.keys, tuple(np.int64([24, 50])), raw.dtype, np.int32(6), np.int8(0))
    coded = polarmap.encode(raw, storage=store, **OPTIONS)
    np.testing.assert_array_equal(coded[:], A)
