"""Cache blocks in a worker, so that they are read or mapped once for all jobs that use them.

Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import numpy as np

from polarmap.worker.locations import Location
from polarmap.worker.pytree import Layout, Structure, flatten, unflatten, unpack_leaves
from polarmap.worker.segments import Segment
from polarmap.worker.task_records import BlockRef

CACHE_BYTES = 8 << 30  # bytes that a worker caches, mostly mapped files that workers of a machine share
CACHE_POLL_INTERVAL = 1.0  # seconds between checks whether files of cached blocks have been removed

Function = Callable[[Any], Any]
ReadSegment = Callable[[Location, Segment], Any]  # raises DamagedError for damaged bytes
CacheKey = tuple[tuple[Any, ...], tuple[Segment, ...]]  # fields of a location, and its segments


class CacheEntry(NamedTuple):
    """Read-only bytes in the cache.

    Attributes
    ----------
    buffer : memoryview
        The bytes.
    file_signatures : dict of str to tuple
        The signature of each file when the bytes were read, by path.
    block_set_id : int or None
        The set of blocks that has used the bytes last, and with which they are evicted. None: they are
        evicted only when room is needed.
    """

    buffer: memoryview
    file_signatures: dict[str, tuple[int, ...]]
    block_set_id: int | None


class BlockCache:
    """A least-recently-used cache of the bytes of segments.

    A file that has changed is read again. Objects of a storage are identified by their checksums; objects
    without checksums are not cached. Segments of a driver never change.

    Parameters
    ----------
    max_bytes : int
        Maximum number of bytes in the cache.

    Attributes
    ----------
    n_reads : int
        The number of segments that were mapped or read, for tests.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._entries: dict[CacheKey, CacheEntry] = {}
        self._lock = threading.Lock()  # guards entries: several threads may load blocks
        self.n_reads = 0

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def extend_byte_budget(self, n_bytes: int) -> Iterator[None]:
        """Cache up to `n_bytes` more within this context."""
        with self._lock:
            self._max_bytes += n_bytes
        try:
            yield
        finally:
            with self._lock:
                self._max_bytes -= n_bytes
                self._evict_over_budget()

    def load_block(
        self,
        block_ref: BlockRef,
        structure: Structure,
        read_segment: ReadSegment,
        writable: bool = False,
        block_set_id: int | None = None,
    ) -> Any:
        """Return a block, from the cache or read now.

        Raises DamagedError if stored bytes are missing, truncated or corrupt.

        Parameters
        ----------
        block_ref : BlockRef
            The block to load.
        structure : tuple
            The structure of the block.
        read_segment : callable
            Called with a location and a segment; returns the bytes of the segment.
        writable : bool
            Return arrays that f may write to. Otherwise, they are read-only views of the cache.
        block_set_id : int or None
            Evict the bytes when this set of blocks is removed. None: the bytes do not belong to one set.
        """
        read_cached_segments = partial(self._get_or_read_bytes, read_segment, block_set_id)
        return assemble_block(block_ref, structure, read_cached_segments, writable)

    def evict_removed_blocks(self, live_block_set_ids: Collection[int] = ()) -> None:
        """Evict bytes whose files or whose sets of blocks have been removed.

        Parameters
        ----------
        live_block_set_ids : collection of int
            The ids of the sets that still exist, and the next id that will be assigned: sets from that id on
            are newer than the list. If empty, only files are checked.
        """
        file_exists = partial(os.access, mode=os.F_OK)  # os.path.exists takes twice as long
        newest_id = max(live_block_set_ids, default=-1)

        def is_removed(entry: CacheEntry) -> bool:
            # For a removed set of blocks, there is no need to check every file.
            if live_block_set_ids and entry.block_set_id is not None:
                return entry.block_set_id < newest_id and entry.block_set_id not in live_block_set_ids
            return not all(map(file_exists, entry.file_signatures))

        with self._lock:
            for key in [key for key, entry in self._entries.items() if is_removed(entry)]:
                del self._entries[key]

    def _get_or_read_bytes(
        self,
        read_segment: ReadSegment,
        block_set_id: int | None,
        location: Location,
        segments: tuple[Segment, ...],
    ) -> Any:
        """Return the concatenated bytes of segments, from the cache if possible."""
        key = location.fields, segments
        entry = self._entries.get(key)
        if entry is None or entry.file_signatures != {
            path: get_file_signature(path) for path in entry.file_signatures
        }:
            return self._read_and_cache(read_segment, block_set_id, location, segments)
        with self._lock:
            self._entries.pop(key, None)
            # Entries are in order of use: move this one to the end.
            self._entries[key] = entry._replace(block_set_id=block_set_id)
        return entry.buffer

    def _read_and_cache(
        self,
        read_segment: ReadSegment,
        block_set_id: int | None,
        location: Location,
        segments: tuple[Segment, ...],
    ) -> Any:
        """Read the concatenated bytes of segments, and cache them if a later change would be noticed."""
        # Segments without a key are zeros that are not stored.
        stored_segments = [segment for segment in segments if segment.key]
        has_checksums = all(segment.crc32 is not None for segment in stored_segments)
        if not stored_segments or (location.needs_checksums and not has_checksums):
            return self._read_segments(read_segment, location, segments)
        paths = [path for segment in stored_segments if (path := location.get_path(segment.key))]
        # A folder of the driver may be on another machine: its files have no signatures here.
        file_signatures = {path: signature for path in paths if (signature := get_file_signature(path))}
        data = memoryview(self._read_segments(read_segment, location, segments)).toreadonly()
        key, entry = (location.fields, segments), CacheEntry(data, file_signatures, block_set_id)
        with self._lock:
            self._entries.pop(key, None)
            if len(entry.buffer) <= self._max_bytes:
                self._entries[key] = entry
            self._evict_over_budget()
        return entry.buffer

    def _evict_over_budget(self) -> None:
        """Evict the least recently used entries until the rest fits the budget. The caller holds `_lock`."""
        while sum(len(entry.buffer) for entry in self._entries.values()) > self._max_bytes:
            del self._entries[next(iter(self._entries))]

    def _read_segments(
        self, read_segment: ReadSegment, location: Location, segments: tuple[Segment, ...]
    ) -> Any:
        """Read the concatenated bytes of segments, and count the segments."""
        self.n_reads += len(segments)
        return read_segments(read_segment, location, segments)


def assemble_block(
    block_ref: BlockRef,
    structure: Structure,
    read_bytes: Callable[[Location, tuple[Segment, ...]], Any],
    writable: bool = True,
) -> Any:
    """Read the bytes of a block and return the block.

    Parameters
    ----------
    block_ref : BlockRef
        The block.
    structure : tuple
        The structure of the block.
    read_bytes : callable
        Called with a location and a tuple of segments; returns the concatenated bytes of the segments.
    writable : bool
        Copy arrays in read-only bytes, so that f may write to them.
    """
    if block_ref.data is not None:
        leaves = unpack_leaves(block_ref.layout, block_ref.data)
    else:
        leaves = []
        nonempty = tuple([segment for segment in block_ref.segments if segment.size])
        for segments, layout in group_segments_by_array(nonempty, block_ref.layout):
            leaves += unpack_leaves(layout, read_bytes(block_ref.location, segments), writable)
    return unflatten(structure, leaves)


def read_segments(read_segment: ReadSegment, location: Location, segments: tuple[Segment, ...]) -> Any:
    """Return the concatenated bytes of segments. The bytes of a single segment are not copied."""
    if len(segments) == 1:
        return read_segment(location, segments[0])
    # Allocated by numpy, which uses huge pages for large arrays.
    buffer = np.empty(sum(segment.size for segment in segments), np.uint8).data
    start = 0
    for segment in segments:
        buffer[start : start + segment.size] = read_segment(location, segment)
        start += segment.size
    return buffer


def get_file_signature(path: str) -> tuple[int, ...]:
    """Return the stat fields that change whenever a file is written or replaced, or () without a file.

    They include ctime, which programs cannot set, unlike mtime.
    """
    try:
        stat_result = os.stat(path)
    except OSError:
        return ()
    return (
        stat_result.st_dev,
        stat_result.st_ino,
        stat_result.st_size,
        stat_result.st_mtime_ns,
        stat_result.st_ctime_ns,
    )


class CopyOnWriteFunction:
    """A wrapper of f for read-only blocks. Once f has tried to write to a block, it receives copies."""

    def __init__(self, f: Function) -> None:
        self._f, self._modifies_blocks = f, False

    def __call__(self, block: Any) -> Any:
        if not self._modifies_blocks:
            try:
                return self._f(block)
            except ValueError as error:
                if "read-only" not in str(error):
                    raise
            self._modifies_blocks = True
        leaves, structure = flatten(block)
        return self._f(unflatten(structure, [leaf.copy() for leaf in leaves]))


def group_segments_by_array(
    segments: tuple[Segment, ...], layout: Layout
) -> list[tuple[tuple[Segment, ...], Layout]]:
    """Divide segments into the smallest groups that contain whole arrays, each with the layout of these."""
    if len(segments) < 2:
        return [(segments, layout)]
    array_ends = list(accumulate(np.dtype(dtype).itemsize * prod(shape) for dtype, shape in layout))
    groups, segment_start, array_start, n_bytes = [], 0, 0, 0
    for segment_stop, segment in enumerate(segments, 1):
        n_bytes += segment.size
        if n_bytes in array_ends or segment_stop == len(segments):
            is_last = segment_stop >= len(segments)
            array_stop = len(array_ends) if is_last else bisect_right(array_ends, n_bytes)
            groups.append((segments[segment_start:segment_stop], layout[array_start:array_stop]))
            segment_start, array_start = segment_stop, array_stop
    return groups
