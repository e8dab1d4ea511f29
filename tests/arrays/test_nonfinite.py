"""What encode says of NaN and inf."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from array_data import MIB, encode_with_warnings, objects, random_array, spoilt

import polarmap
from polarmap import Fault, FaultyExecutor, RawObjects


def saved(folder, A):
    np.save(folder / "A.npy", A)
    return folder / "A.npy"


def raw(store, A):
    for row in range(len(A)):
        store.put(f"mine/{row}", A[row].tobytes())
    return RawObjects([f"mine/{row}" for row in range(len(A))], A.shape, A.dtype, 1)


@pytest.mark.parametrize("how", ["here", "file", "raw"])
@pytest.mark.parametrize("dtype", ["f4", "c16"])
def test_encode_says_how_many_and_where(store, tmp_path, how, dtype):
    A = spoilt((24, 9_000), dtype, [5 * 9_000 + 8_500, 17 * 9_000, 17 * 9_000 + 1, 9_000 * 23], [0, 1, 2, 0])
    source = {"here": lambda: A, "file": lambda: saved(tmp_path, A), "raw": lambda: raw(store, A)}[how]()
    options = {"blocks": 6, "workers": 8, "storage": store, "memory": MIB}
    with ThreadPoolExecutor(2) as pool:
        coded, said = encode_with_warnings(source, executor=None if how == "here" else pool, **options)
    assert said == [
        "4 entries are NaN or inf, the first at [5, 8500]: a lost part cannot be decoded where it, or "
        "another block in the same place, holds such an entry"
    ]
    np.testing.assert_array_equal(coded[:], A)
    coded.delete()
    assert objects(store) == {}


def test_the_warning_points_at_the_caller(store):
    with pytest.warns(RuntimeWarning, match="1 entry is NaN or inf") as caught:
        polarmap.encode(np.array([1.0, np.inf, 2.0, 3.0]), name="a", storage=store)
    assert caught[0].filename == __file__


def test_an_interrupted_encode_tells_of_what_it_had_stored_too(store, tmp_path):
    A = random_array((40_000, 10))
    A[3], A[9_999, 9] = np.nan, np.inf  # in the first and in the last stripe of block 0
    path, options = saved(tmp_path, A), {"blocks": 4, "workers": 6, "storage": store, "memory": MIB}
    with ThreadPoolExecutor(2) as pool:
        broken = FaultyExecutor(pool, {2: Fault("raise", attempts=99)})
        with pytest.raises(RuntimeError, match="injected fault"):
            encode_with_warnings(path, executor=broken, **options)
        coded, said = encode_with_warnings(path, executor=pool, **options)
    assert len({part.key.split("/")[3] for part in coded.stored(5)}) == 2
    assert len(said) == 1
    assert said[0].startswith("11 entries are NaN or inf, the first at [3, 0]")


@pytest.mark.parametrize("dtype", ["f8", "i4", "u8"])
def test_finite_data_are_no_reason_to_warn(store, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        polarmap.encode(random_array((24, 5), dtype), blocks=4, name="a", storage=store)
