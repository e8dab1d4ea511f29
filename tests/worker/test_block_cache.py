"""Tests that cached blocks are read once, are never changed by f, and are evicted with their files."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_storage import DictStorage

from polarmap.worker.block_cache import BlockCache, CopyOnWriteFunction, group_segments_by_array
from polarmap.worker.encryption import Encryption, encrypt_if_location_requires
from polarmap.worker.locations import INLINE, BucketLocation, FolderLocation, Location
from polarmap.worker.pytree import get_layout
from polarmap.worker.segments import (
    MIN_MAPPED_BYTES,
    DamagedError,
    Segment,
)
from polarmap.worker.task_execution import TaskIO
from polarmap.worker.task_records import BlockRef

ROWS = MIN_MAPPED_BYTES // 8
BYTES = ROWS * 16


class Blocks:
    """A folder or bucket of blocks, and a cache that reads from it."""

    def __init__(self, place: Location, budget: int = 1 << 40) -> None:
        self.place, self.storage = place, DictStorage()
        self.read = TaskIO(self.storage).read_segment
        self.cache = BlockCache(budget)

    def write(self, key: str, data: bytes) -> None:
        self.place.write(key, data, TaskIO(self.storage))

    def block(
        self, *arrays: np.ndarray, check: bool = True, of: Sequence[np.ndarray] = (), name: str = "x"
    ) -> BlockRef:
        """Store `arrays` as segments and return a reference to a block of them, or of the arrays `of`."""
        parts = []
        for number, array in enumerate(arrays):
            part = Segment(f"{name}{number}", array.nbytes, None, 5)
            [data] = encrypt_if_location_requires(self.place, part, array.tobytes())
            if check:
                part = part._replace(crc32=zlib.crc32(data))
            self.write(part.key, b"12345" + data + b"appended")
            parts.append(part)
        leaves = of or [np.concatenate(arrays)]
        return BlockRef(self.place, tuple(parts), get_layout(leaves))


def load(blocks: Blocks, block: BlockRef, is_private: bool = False, cache: BlockCache | None = None) -> Any:
    """Return a block (an array or tuple of arrays), loaded by `cache` or by the cache of `blocks`."""
    count = len(block.layout)
    structure = ("array",) if count == 1 else (tuple, (), (("array",),) * count)
    own = blocks.cache if cache is None else cache
    return own.load_block(block, structure, blocks.read, is_private)


def place(kind: str, folder: Path) -> Location:
    key = tuple(Encryption.create(bytes(range(32)))) if "encrypted" in kind else None
    return (
        FolderLocation(str(folder), encryption=key)
        if "folder" in kind
        else BucketLocation("b", encryption=key)
    )


@pytest.fixture(params=["folder", "encrypted folder", "bucket", "encrypted bucket"])
def blocks(request: pytest.FixtureRequest, tmp_path: Path) -> Blocks:
    return Blocks(place(request.param, tmp_path))


@pytest.fixture
def files(tmp_path: Path) -> Blocks:
    return Blocks(place("folder", tmp_path))


def numbers(seed: int = 0, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 2))


@pytest.mark.parametrize("rows", [ROWS, 10])  # Large files are mapped, small files are read.
@pytest.mark.parametrize("count", [1, 3])
def test_a_block_is_read_once_and_only_private_copies_are_writable(
    blocks: Blocks, count: int, rows: int
) -> None:
    arrays = [numbers(seed, rows) for seed in range(count)]
    block, whole = blocks.block(*arrays), np.concatenate(arrays)
    first = load(blocks, block)
    assert not first.flags.writeable
    for _ in range(2):
        own = load(blocks, block, is_private=True)
        np.testing.assert_array_equal(own, whole)
        own[...] = 0
        actual = load(blocks, block)
        np.testing.assert_array_equal(actual, whole)
        assert np.shares_memory(first, actual)
    assert (blocks.cache.n_reads, len(blocks.cache)) == (count, 1)


def test_blocks_share_cached_segments(blocks: Blocks) -> None:
    rows, columns = [numbers(1), numbers(2)], [numbers(3), numbers(4)]
    parts = {
        name: blocks.block(array, name=name).segments[0]
        for name, array in zip(("r0", "r1", "c0", "c1"), [*rows, *columns], strict=True)
    }
    for row in range(2):
        for column in range(2):
            pair = blocks.block(of=[rows[row], columns[column]])
            actual = load(blocks, pair._replace(segments=(parts[f"r{row}"], parts[f"c{column}"])))
            np.testing.assert_array_equal(actual, (rows[row], columns[column]))
    assert blocks.cache.n_reads == len(blocks.cache) == 4


def test_the_least_recently_used_block_is_evicted_beyond_the_budget(tmp_path: Path) -> None:
    for kind in ("folder", "bucket"):
        blocks = Blocks(place(kind, tmp_path), 2 * BYTES)
        stored = {name: blocks.block(numbers(seed), name=name) for seed, name in enumerate("abc")}
        for name in "abacab":
            load(blocks, stored[name])
        # The cache loads a and b, uses a, replaces b by c, uses a, and replaces c by b.
        assert (blocks.cache.n_reads, len(blocks.cache)) == (4, 2)
        large = blocks.block(numbers(rows=3 * ROWS), name="large")  # too large to be cached
        assert load(blocks, large).shape == (3 * ROWS, 2)
        for name in "ab":
            load(blocks, stored[name])
        assert blocks.cache.n_reads == 5


def test_a_reduced_byte_budget_evicts_blocks_immediately(tmp_path: Path) -> None:
    blocks = Blocks(place("bucket", tmp_path), BYTES)
    with blocks.cache.extend_byte_budget(BYTES):
        for seed, name in enumerate("ab"):
            load(blocks, blocks.block(numbers(seed), name=name))
        assert len(blocks.cache) == 2
    assert len(blocks.cache) == 1


def test_removed_block_sets_are_evicted_by_their_ids(tmp_path: Path) -> None:
    blocks = Blocks(place("bucket", tmp_path))
    stored = {number: blocks.block(numbers(), name=f"block {number}") for number in (None, 1, 2, 3, 5)}
    for number, block in stored.items():
        blocks.cache.load_block(block, ("array",), blocks.read, block_set_id=number)
    # Set 4 has the same bytes as set 2.
    blocks.cache.load_block(stored[2], ("array",), blocks.read, block_set_id=4)
    for numbers_of_all, left in (((), 5), ((4, 3), 4), ((3, 4), 4), ((6,), 1)):
        blocks.cache.evict_removed_blocks(numbers_of_all)
        assert len(blocks.cache) == left  # Set 5 is newer than the lists.
    assert blocks.cache.n_reads == 5


def test_objects_without_a_checksum_are_fetched_each_time(tmp_path: Path) -> None:
    blocks = Blocks(place("bucket", tmp_path))
    for value in (1.0, 2.0):
        data = np.full(100, value)
        np.testing.assert_array_equal(load(blocks, blocks.block(data, check=False)), data)
        np.testing.assert_array_equal(load(blocks, blocks.block(data, name="known")), data)
    assert len(blocks.cache) == 2  # Two versions of "known" have different bytes.


def test_an_inline_block_is_not_cached(files: Blocks) -> None:
    block = BlockRef(INLINE, (), (("<f8", (3,)),), np.arange(3.0).tobytes())
    for _ in range(2):
        actual = load(files, block)
        assert actual.tolist() == [0.0, 1.0, 2.0]
        actual[...] = 7.0


def test_zeros_without_a_location_are_part_of_a_block(blocks: Blocks) -> None:
    data = numbers()
    block = blocks.block(data)
    zeros = (*block.segments, Segment("", BYTES))
    actual = load(blocks, block._replace(segments=zeros, layout=(("<f8", (2 * ROWS, 2)),)))
    np.testing.assert_array_equal(actual, np.concatenate([data, np.zeros_like(data)]))


@pytest.mark.parametrize("rows", [10, ROWS])
@pytest.mark.parametrize("count", [1, 3])
def test_damage_is_detected_before_and_after_loading(blocks: Blocks, rows: int, count: int) -> None:
    arrays = [numbers(seed, rows) for seed in range(count)]
    block, whole, key = blocks.block(*arrays), np.concatenate(arrays), f"x{count - 1}"
    stored = bytes(blocks.place.read(Segment(key, 2 * whole.nbytes), TaskIO(blocks.storage)))
    changed = bytearray(stored)
    changed[30] ^= 1
    is_file = blocks.place.is_memory_mapped  # Only mapped files can change after they were loaded.
    for data, message in ((changed, "corrupt|not what was encrypted"), (stored[:40], r"35 of \d+ bytes")):
        for is_loaded in {False, is_file}:
            cache = BlockCache()
            if is_loaded:
                load(blocks, block, cache=cache)
            blocks.write(key, bytes(data))
            with pytest.raises(DamagedError, match=f"{key} (is|has) ({message})"):
                load(blocks, block, cache=cache)
            blocks.write(key, stored)
            np.testing.assert_array_equal(load(blocks, block, cache=cache), whole)
    blocks.place.delete([block.segments[-1].key], TaskIO(blocks.storage))
    with pytest.raises(DamagedError, match=f"{key} is missing"):
        load(blocks, block, cache=cache if is_file else BlockCache())


@pytest.mark.parametrize("at", [5, 5 + BYTES // 2, 5 + BYTES - 1])
def test_a_changed_byte_is_detected_although_the_modification_time_is_restored(
    files: Blocks, at: int
) -> None:
    block, path = files.block(numbers()), Path(files.place.root) / "x0"
    load(files, block)
    before, data = path.stat(), bytearray(path.read_bytes())
    data[at] ^= 1
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # File systems have coarse clocks.
        with path.open("r+b") as file:
            file.write(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(DamagedError, match="corrupt"):
        load(files, block)


def test_f_that_writes_to_its_block_gets_private_copies() -> None:
    seen: list[bool] = []

    def f(block: Any) -> Any:
        seen.append(block["a"].flags.writeable)
        block["a"] *= 2
        return block["a"].sum()

    data = {"a": np.arange(4.0)}
    data["a"].flags.writeable = False
    call = CopyOnWriteFunction(f)
    assert [call(data), call(data)] == [12.0, 12.0]
    assert seen == [False, True, True]
    assert data["a"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_other_errors_of_f_are_raised_unchanged() -> None:
    calls = []

    def f(block: Any) -> Any:
        calls.append(1)
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        CopyOnWriteFunction(f)(np.ones(2))
    assert len(calls) == 1


def test_empty_arrays_need_no_segments(files: Blocks) -> None:
    block = BlockRef(files.place, (), (("<f8", (0, 2)),))
    assert load(files, block).shape == (0, 2)
    parts, layout = (
        (Segment("a", 8), Segment("b", 8)),
        (("<f8", (0,)), ("<f8", ()), ("<f8", (0,)), ("<f8", ())),
    )
    assert group_segments_by_array(parts, layout) == [(parts[:1], layout[:3]), (parts[1:], layout[3:])]
    (a, b, c), arrays = (Segment("a", 8), Segment("b", 8), Segment("c", 4)), (("<f8", (2,)), ("<f4", ()))
    assert group_segments_by_array((a, b, c), arrays) == [((a, b), arrays[:1]), ((c,), arrays[1:])]
