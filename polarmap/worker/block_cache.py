"""Blocks as a worker that stays gets them: mapped or fetched once, and kept from map to map.

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

CACHE_BYTES = 8 << 30  # at most, of what is mostly memory that all workers of a machine share
CACHE_POLL_INTERVAL = 1.0  # between looks whether files of what is kept are gone

Function = Callable[[Any], Any]
ReadSegment = Callable[[Location, Segment], Any]  # DamagedError if the bytes are not what was stored


class CacheEntry(NamedTuple):
    """Bytes in memory, read-only.

    file_signatures : the status of those that they are of, by path, as it was then.
    block_set_id : of the latest blocks whose bytes they are, until these are gone; None: as long as there is
        room.
    """

    buffer: memoryview
    file_signatures: dict[str, tuple[int, ...]]
    block_set_id: int | None


class BlockCache:
    """What workers keep of blocks, by name: the least recently used goes beyond the budget.

    Files are looked at each time: those that were changed are read anew. Objects are known by their
    checksums, without which they are fetched for each task. What a driver has never changes under its name.

    max_bytes : bytes that may be kept.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._entries: dict[tuple[Location, tuple[Segment, ...]], CacheEntry] = {}
        self._lock = threading.Lock()  # of what is kept: threads may load at the same time
        self.n_reads = 0  # parts that were mapped or read, for tests

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def extend_byte_budget(self, n_bytes: int) -> Iterator[None]:
        """Keep so many bytes more, within."""
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
        """A block, read-only where it is kept; DamagedError if it is not as it was stored.

        read_segment : the bytes of a part.
        writable : one that may be written into.
        block_set_id : of the blocks of which it is one; None if it does not go with them.
        """
        read_cached_segments = partial(self._get_or_read_bytes, read_segment, block_set_id)
        return assemble_block(block_ref, structure, read_cached_segments, writable)

    def evict_removed_blocks(self, live_block_set_ids: Collection[int] = ()) -> None:
        """Let go of bytes whose files have been removed, or whose blocks have gone.

        live_block_set_ids : those of blocks that have not, and a last one, from which on others are newer
            than what is told here.
        """
        file_exists = partial(os.access, mode=os.F_OK)  # os.path.exists takes twice as long
        newest_id = max(live_block_set_ids, default=-1)

        def is_removed(entry: CacheEntry) -> bool:
            # which is known without a look at every file
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
        """The bytes of parts in a row."""
        entry = self._entries.get((location, segments))
        if entry is None or entry.file_signatures != {
            path: get_file_signature(path) for path in entry.file_signatures
        }:
            return self._read_and_cache(read_segment, block_set_id, location, segments)
        with self._lock:
            self._entries.pop((location, segments), None)
            # behind those that were used before
            self._entries[location, segments] = entry._replace(block_set_id=block_set_id)
        return entry.buffer

    def _read_and_cache(
        self,
        read_segment: ReadSegment,
        block_set_id: int | None,
        location: Location,
        segments: tuple[Segment, ...],
    ) -> Any:
        """Read the bytes of segments in a row, and cache them if a later change would be noticed."""
        # Segments without a key are zeros that are not stored.
        stored_segments = [segment for segment in segments if segment.key]
        has_checksums = all(segment.crc32 is not None for segment in stored_segments)
        if not stored_segments or (location.needs_checksums and not has_checksums):
            return self._read_segments(read_segment, location, segments)
        paths = [path for segment in stored_segments if (path := location.get_path(segment.key))]
        # A folder of the driver may be on another machine: its files have no signatures here.
        file_signatures = {path: signature for path in paths if (signature := get_file_signature(path))}
        data = memoryview(self._read_segments(read_segment, location, segments)).toreadonly()
        entry = CacheEntry(data, file_signatures, block_set_id)
        with self._lock:
            self._entries.pop((location, segments), None)
            if len(entry.buffer) <= self._max_bytes:
                self._entries[location, segments] = entry
            self._evict_over_budget()
        return entry.buffer

    def _evict_over_budget(self) -> None:
        """Let go of what was used least recently, until the rest is within the budget; `_lock` is held."""
        while sum(len(entry.buffer) for entry in self._entries.values()) > self._max_bytes:
            del self._entries[next(iter(self._entries))]

    def _read_segments(
        self, read_segment: ReadSegment, location: Location, segments: tuple[Segment, ...]
    ) -> Any:
        """The bytes of parts in a row."""
        self.n_reads += len(segments)
        return read_segments(read_segment, location, segments)


def assemble_block(
    block_ref: BlockRef,
    structure: Structure,
    read_bytes: Callable[[Location, tuple[Segment, ...]], Any],
    writable: bool = True,
) -> Any:
    """A block, which may be written into if it is private; `read_bytes`: the bytes of parts in a row."""
    if block_ref.data is not None:
        leaves = unpack_leaves(block_ref.layout, block_ref.data)
    else:
        leaves = []
        nonempty = tuple([segment for segment in block_ref.segments if segment.size])
        for segments, layout in group_segments_by_array(nonempty, block_ref.layout):
            leaves += unpack_leaves(layout, read_bytes(block_ref.location, segments), writable)
    return unflatten(structure, leaves)


def read_segments(read_segment: ReadSegment, location: Location, segments: tuple[Segment, ...]) -> Any:
    """The bytes of parts in a row: a copy of several, one as it is read."""
    if len(segments) == 1:
        return read_segment(location, segments[0])
    # numpy places large arrays in large pages.
    buffer = np.empty(sum(segment.size for segment in segments), np.uint8).data
    start = 0
    for segment in segments:
        buffer[start : start + segment.size] = read_segment(location, segment)
        start += segment.size
    return buffer


def get_file_signature(path: str) -> tuple[int, ...]:
    """What changes when a file is written or replaced; empty if there is none.

    The time of the last change (ctime) among it, which, unlike that of the data, nobody can set.
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
    """f on blocks that it must not change; one that does gets copies, from the first time it tries."""

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
    """Return parts in groups, as small as can be, that no array of a block crosses, each with its arrays."""
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
