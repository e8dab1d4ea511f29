"""encode(executor=): workers encode what they read themselves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import polarmap
from polarmap import Fault, FaultyExecutor
from polarmap.errors import CodeError, NotDecodableError

MIB = 1 << 20


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def saved(folder, A) -> Path:
    path = folder / "A.npy"
    np.save(path, A)
    return path


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.mark.parametrize("dtype", ["f8", "u1"])
def test_workers_store_what_the_driver_would(tmp_path, store, executor, dtype):
    rng = np.random.default_rng(0)
    A = (100 * rng.random((4003, 70))).astype(dtype)
    options = {"blocks": 12, "workers": 16, "memory": MIB}
    here = polarmap.encode(A, name="here", storage=store, **options)
    faulty = FaultyExecutor(executor, {0: Fault("sleep", 60), 1: Fault("raise")})
    there = polarmap.encode(saved(tmp_path, A), name="there", storage=store, executor=faulty, **options)
    np.testing.assert_array_equal(there[:], A)
    assert there.check().ok
    for index in range(16):
        one, two = (coded.coded_blocks().piece(index)[0] for coded in (here, there))
        assert one.dtype == two.dtype
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-12 if dtype == "f8" else 0)
    there.delete()
    here.delete()
    assert files(store) == set()


@pytest.mark.parametrize("dtype", ["f2", "f4", "c8", "i4", "u8"])
def test_dtypes_and_a_view_of_a_memory_map(tmp_path, store, dtype):
    A = np.arange(41 * 6 * 5).reshape(41, 6, 5).astype(dtype)
    view = np.load(saved(tmp_path, A), mmap_mode="r")[3:40]
    with ThreadPoolExecutor(2) as pool:
        coded = polarmap.encode(view, blocks=4, workers=6, name="A", storage=store, executor=pool)
    for block in (1, 3):
        for part in coded.stored(block):
            (store / part.key).unlink()
    np.testing.assert_allclose(coded[:], A[3:40], rtol=1e-2 if dtype == "f2" else 1e-5)


def test_an_interrupted_encode_goes_on_and_sees_data_that_changed(tmp_path, store):
    A = np.random.default_rng(0).standard_normal((40_000, 10))
    path = saved(tmp_path, A)
    options = {"blocks": 4, "workers": 6, "name": "A", "storage": store, "memory": MIB}
    with ThreadPoolExecutor(4) as pool:
        broken = FaultyExecutor(pool, {2: Fault("raise", attempts=99)})
        with pytest.raises(NotDecodableError, match="injected fault"):
            polarmap.encode(path, executor=broken, **options)
        assert polarmap.list_coded(store) == []
        A[1] = 7  # in the first stripe of block 0
        np.save(path, A)
        coded = polarmap.encode(path, executor=pool, **options)
    np.testing.assert_array_equal(coded[:], A)
    assert coded.check().ok
    generations = [part.key.split("/")[3] for part in coded.stored(5)]
    assert len(set(generations)) == 2
    assert generations[0] == generations[2] != generations[1]


def test_data_that_only_the_driver_can_read_is_refused(store):
    with ThreadPoolExecutor(2) as pool, pytest.raises(CodeError, match="leave executor out"):
        polarmap.encode(np.ones((8, 2)), name="A", storage=store, executor=pool)
    assert files(store) == set()
