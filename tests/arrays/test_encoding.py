"""Tests of encoding: stored objects, values that are read back, default options and refused arguments."""

from __future__ import annotations

import numpy as np
import pytest
from array_data import DOCUMENTS, DTYPES, MIB, objects, random_array

import polarmap
from polarmap.arrays.manifest import get_manifest_key
from polarmap.codes import PolarCode
from polarmap.errors import CodeError, StorageError


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_encoded_array_is_read_back_unchanged(store, dtype):
    A = random_array((23, 5), dtype)
    polarmap.encode(A, blocks=4, tasks=7, name="a", storage=store)
    coded = polarmap.open_coded("a", store)
    assert (coded.shape, coded.dtype, coded.n, coded.k) == (A.shape, A.dtype.newbyteorder("="), 7, 4)
    np.testing.assert_array_equal(np.asarray(coded), A)
    assert coded.check().ok


@pytest.mark.every_store
def test_stored_parity_matches_the_code(store):
    A = random_array((24, 5))
    coded = polarmap.encode(A, blocks=4, tasks=7, name="a", storage=store)
    expected = PolarCode(7, 4).encode(A.reshape(4, 6, 5))
    for index in range(7):
        raw = b"".join(store.get(part.key) for part in coded.block_segments(index))
        block = np.frombuffer(raw).reshape(6, 5)
        np.testing.assert_allclose(block, expected[index], rtol=1e-12, atol=1e-12)


def test_defaults_and_names(store):
    coded = polarmap.encode(random_array((240, 3)), name="x.1_y-2", storage=store)
    assert (coded.k, coded.n) == (24, 32)
    polarmap.encode(random_array((96, 3)), tasks=8, name="B", storage=store)
    assert polarmap.arrays.list_coded(store) == ["B", "x.1_y-2"]
    assert polarmap.open_coded("B", store).k == 6
    assert repr(coded).startswith(
        "<CodedArray 'x.1_y-2': 240 x 3 float64, 24 of 32 blocks are data, 0.0 MiB in "
    )


def test_integers_choose_the_exact_code(store):
    assert polarmap.encode(np.arange(8), name="a", storage=store).code.kernel == "arikan"
    with pytest.raises(CodeError, match="rotation kernel does not support int64"):
        polarmap.encode(np.arange(8), name="b", storage=store, code="rotation")


@pytest.mark.every_store
def test_overwrite_removes_all_objects_of_the_old_array(store):
    polarmap.encode(np.zeros((8, 2)), blocks=4, name="a", storage=store)
    with pytest.raises(StorageError, match="already"):
        polarmap.encode(np.ones((8, 2)), blocks=4, name="a", storage=store)
    coded = polarmap.encode(np.ones((6, 2)), blocks=3, name="a", storage=store, overwrite=True)
    np.testing.assert_array_equal(coded[:], 1)
    assert len(store.keys("polarmap/")) == DOCUMENTS + coded.n
    coded.delete()
    assert store.keys("polarmap/") == []
    assert polarmap.arrays.list_coded(store) == []


@pytest.mark.every_store
def test_only_data_and_parity_are_stored(store):
    coded = polarmap.encode(random_array((240, 100)), blocks=6, tasks=8, name="a", storage=store, memory=MIB)
    assert coded.stored_bytes == coded.nbytes * 8 // 6
    documents = [key for key in objects(store) if key.endswith("zarr.json") or key == get_manifest_key("a")]
    assert len(documents) == DOCUMENTS
    parts = {key: data for key, data in objects(store).items() if key not in documents}
    assert sum(map(len, parts.values())) == coded.stored_bytes
    assert parts.keys() == {part.key for index in range(8) for part in coded.block_segments(index)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array(["a"]), "dtype"),
        (np.array([None]), "dtype"),
        (np.zeros(4, bool), "dtype bool"),
        (np.float64(3), "no rows"),
        (np.zeros((0, 3)), "no rows"),
        ([np.zeros(3), np.zeros(3)], "numpy.concatenate"),
        (np.ma.zeros(4), "masked"),
        ("nothing.npy", "this file does not exist"),
        (None, "must be an array"),
    ],
)
def test_invalid_data_is_refused(store, data, message):
    with pytest.raises(CodeError, match=message):
        polarmap.encode(data, name="a", storage=store)
    assert store.keys("polarmap/") == []


def test_invalid_sizes_are_refused(store):
    for options, message in [
        ({"blocks": 9}, "more than the 8 rows"),
        ({"blocks": 4, "tasks": 4}, "no parity"),
        ({"memory": 100}, "at least 1048576"),
        ({"memory": 1.5}, "positive integer"),
        ({"code": "mds"}, "code must be"),
    ]:
        with pytest.raises(CodeError, match=message):
            polarmap.encode(np.arange(8.0), name="a", storage=store, **options)
    with pytest.raises(StorageError, match="storage must be None"):
        polarmap.encode(np.arange(8.0), name="a", storage=3)
    assert store.keys("polarmap/") == []
