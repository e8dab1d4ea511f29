"""Blocks of stored arrays: workers read and verify them, and damaged blocks count as erasures."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
from counting_store import Least

import polarmap
from polarmap import Pool
from polarmap.errors import ExecutorError, NotDecodableError, StorageError
from polarmap.storage.folder import FolderStore


@pytest.fixture
def A():
    return np.random.default_rng(0).standard_normal((60, 7))


@pytest.fixture
def stored(tmp_path, A):
    return polarmap.encode(A, blocks=6, tasks=8, name="rows", storage=tmp_path)


def file_of(coded, index):
    """Return the path of the file of a block."""
    return coded.store.root / coded.block_segments(index)[0].key


ONES = np.ones(7)


def row_sums_by_value(ones):
    """Return a function that is pickled by value, so that workers need not import this module and pytest."""
    return lambda block: block @ ones


row_sums = row_sums_by_value(ONES)


def test_workers_read_their_blocks_and_damaged_ones_are_erasures(A, tmp_path, executor):
    # The last block is padded with zero rows, which are not stored.
    A = A[:-3]
    polarmap.encode(A, blocks=6, tasks=8, name="rows", storage=tmp_path, memory=1 << 20)
    stored = polarmap.open_coded("rows", storage=tmp_path)
    file_of(stored, 1).unlink()
    with open(file_of(stored, 4), "r+b") as file:
        file.seek(100)
        file.write(b"garbage")
    y = polarmap.coded_map(row_sums, stored, executor=executor, retries=0)
    np.testing.assert_allclose(y.concatenate(), A @ np.ones(7), rtol=1e-9, atol=1e-9)
    assert set(y.report.recovered) >= {1, 4}
    for index, what in ((1, "missing"), (4, "corrupt")):
        assert f"{stored.block_segments(index)[0].key} is {what}" in y.report.tasks[index].failures[0]


def test_error_for_too_much_damage_names_the_blocks(stored):
    for index in range(3):
        file_of(stored, index).unlink()
    with ThreadPoolExecutor(4) as pool, pytest.raises(NotDecodableError, match=r"/c/\d/0 is missing"):
        polarmap.coded_map(np.sum, stored, executor=pool, timeout=60)


@pytest.mark.parametrize("make_pool", [nullcontext, partial(ThreadPoolExecutor, 4), partial(Pool, workers=2)])
@pytest.mark.parametrize("key", [None, bytes(range(32))])
def test_store_that_only_the_driver_can_use_works_with_threads_and_pools(A, tmp_path, make_pool, key):
    store = Least(FolderStore(tmp_path / "store"))
    coded = polarmap.encode(A, blocks=6, tasks=8, name="rows", storage=store, key=key)
    lost = [part.key for index in (0, 7) for part in coded.block_segments(index)]
    store.delete(lost)
    with make_pool() as pool:
        # With verify=True the map waits a moment for every task, so the report is complete.
        y = polarmap.coded_map(np.sum, coded, executor=pool, timeout=60, verify=True)
    assert sum(y) == pytest.approx(A.sum())
    assert y.report.recovered == (0,)
    assert f"{lost[0]} is missing" in y.report.tasks[0].failures[0]


def test_lithops_functions_cannot_read_blocks_through_the_driver(A, tmp_path):
    coded = polarmap.encode(A, blocks=6, tasks=8, name="rows", storage=Least(FolderStore(tmp_path / "store")))
    with pytest.raises(ExecutorError, match="which workers cannot reach: leave executor out"):
        polarmap.coded_map(np.sum, coded, executor="localhost")


class SlowStore(Least):
    """A store that hangs in reads of the objects in `slow_keys`."""

    def __init__(self, store):
        super().__init__(store)
        self.slow_keys, self._get = set(), store.get
        self.get = self._get_unless_slow

    def _get_unless_slow(self, key, *byte_range):
        if key in self.slow_keys:
            threading.Event().wait()
        return self._get(key, *byte_range)


@pytest.mark.parametrize("slow_blocks", [(2,), (0, 1, 2)])
def test_error_for_a_slow_read_names_block_and_store(A, tmp_path, slow_blocks):
    store = SlowStore(FolderStore(tmp_path / "store"))
    coded = polarmap.encode(A, blocks=6, tasks=8, name="rows", storage=store)
    store.slow_keys |= {part.key for block in slow_blocks for part in coded.block_segments(block)}
    with Pool(workers=4, fetch_timeout=0.2) as pool:
        if len(slow_blocks) > 2:
            message = rf"block \d was not read within 0\.2 s, as {re.escape(store.name)} has not returned"
            with pytest.raises(NotDecodableError, match=message):
                polarmap.coded_map(row_sums, coded, executor=pool, retries=0)
        else:
            y = polarmap.coded_map(row_sums, coded, executor=pool, retries=0, verify=False)
            np.testing.assert_allclose(y.concatenate(), A @ ONES, rtol=1e-9, atol=1e-9)
            store.slow_keys.clear()
            for _ in range(2):  # the workers that timed out are usable again
                y = polarmap.coded_map(row_sums, coded, executor=pool)
                np.testing.assert_allclose(y.concatenate(), A @ ONES, rtol=1e-9, atol=1e-9)


def test_error_of_a_store_is_raised_unchanged(A, tmp_path):
    store = Least(FolderStore(tmp_path / "store"))
    coded = polarmap.encode(A, blocks=6, tasks=8, name="rows", storage=store)

    def refuse(*arguments):
        raise StorageError("no access to these rows")

    store.get = refuse
    with pytest.raises(StorageError, match="no access to these rows"):
        polarmap.coded_map(np.sum, coded)


@pytest.mark.parametrize("verify", ["auto", True])
def test_unreadable_parity_is_no_failure_of_f(stored, A, verify):
    # All data tasks report, and f has not been checked yet. Missing parity in storage is no failure of f.
    for index in (6, 7):
        file_of(stored, index).unlink()
    warns = pytest.warns(RuntimeWarning, match="a parity block could not be read here: DamagedError")
    with ThreadPoolExecutor(4) as pool, warns if verify is True else nullcontext():
        result = polarmap.coded_map(row_sums, stored, executor=pool, verify=verify)
    np.testing.assert_array_equal(result.concatenate(), A @ np.ones(7))
    assert result.report.tasks_in_state("failed") == [6, 7]
