"""Blocks that lie in storage already: read by the workers, verified, and erasures where damaged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
from counting_store import Least

import polarmap
from polarmap.errors import ExecutorError, NotDecodableError
from polarmap.storage.folder import FolderStore


@pytest.fixture
def A():
    return np.random.default_rng(0).standard_normal((60, 7))


@pytest.fixture
def stored(tmp_path, A):
    return polarmap.encode(A, blocks=6, tasks=8, name="rows", storage=tmp_path)


def file_of(coded, index):
    """Where a block lies."""
    return coded.store.root / coded.block_segments(index)[0].key


ONES = np.ones(7)


def row_sums_by_value(ones):
    """Workers need not import this module, and pytest with it, for every task."""
    return lambda block: block @ ones


row_sums = row_sums_by_value(ONES)


def test_workers_read_their_blocks_and_damaged_ones_are_erasures(A, tmp_path, executor):
    """Also those that are filled up with zeros, which lie nowhere."""
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


def test_too_much_damage_is_said_by_name(stored):
    for index in range(3):
        file_of(stored, index).unlink()
    with ThreadPoolExecutor(4) as pool, pytest.raises(NotDecodableError, match=r"/c/\d/0 is missing"):
        polarmap.coded_map(np.sum, stored, executor=pool, timeout=60)


def test_a_store_that_only_the_driver_knows_serves_threads_and_driver(A, tmp_path):
    store = Least(FolderStore(tmp_path / "store"))
    coded = polarmap.encode(A, blocks=6, tasks=8, name="rows", storage=store)
    lost = [part.key for index in (0, 7) for part in coded.block_segments(index)]
    store.delete(lost)
    with ThreadPoolExecutor(4) as pool:
        # What is verified is not handed out before every task has had a moment to report.
        y = polarmap.coded_map(np.sum, coded, executor=pool, timeout=60, verify=True)
    assert sum(y) == pytest.approx(A.sum())
    assert y.report.recovered == (0,)
    assert f"{lost[0]} is missing" in y.report.tasks[0].failures[0]
    with pytest.raises(ExecutorError, match="which workers cannot reach: use a thread pool"):
        polarmap.coded_map(np.sum, coded, executor="localhost")


@pytest.mark.parametrize("verify", ["auto", True])
def test_parity_that_cannot_be_read_says_nothing_of_f(stored, A, verify):
    """Data tasks reported, and f is not known yet: what is missing in storage is no fault of f."""
    for index in (6, 7):
        file_of(stored, index).unlink()
    warns = pytest.warns(RuntimeWarning, match="a parity block could not be read here: DamagedError")
    with ThreadPoolExecutor(4) as pool, warns if verify is True else nullcontext():
        result = polarmap.coded_map(row_sums, stored, executor=pool, verify=verify)
    np.testing.assert_array_equal(result.concatenate(), A @ np.ones(7))
    assert result.report.tasks_in_state("failed") == [6, 7]
