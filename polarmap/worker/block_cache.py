"""Cache data blocks in a worker, so that a block is read only once for all jobs that use it.

This module runs on workers, so it imports at most numpy.
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

# Default maximum size of a worker's cache, in bytes. Most cached bytes belong to memory-mapped files, whose
# memory is shared by all workers on a machine.
CACHE_BYTES = 8 << 30
CACHE_POLL_INTERVAL = 1.0  # seconds between checks whether the files of cached blocks still exist

Function = Callable[[Any], Any]
# A function that reads a segment (a byte range of a stored object), or raises DamagedError if it is damaged.
ReadSegment = Callable[[Location, Segment], Any]
# The key of a cache entry says where the cached bytes are stored: the location (such as a folder or a bucket)
# as a plain tuple, and the segments.
CacheKey = tuple[tuple[Any, ...], tuple[Segment, ...]]


class CacheEntry(NamedTuple):
    """An entry of a `BlockCache`: the bytes of one or more arrays of a data block.

    Attributes
    ----------
    buffer : memoryview
        The cached bytes, which are read-only.
    file_signatures : dict of str to tuple
        For each file that the bytes were read from, its signature at that time, as `get_file_signature`
        returns it. If the signature has changed since, the file must be read again.
    block_set_id : int or None
        The id of the set of blocks (the blocks of one data set on the driver) that has used the bytes last.
        The entry is evicted when that set no longer exists. None: the entry is evicted only to make room.
    """

    buffer: memoryview
    file_signatures: dict[str, tuple[int, ...]]
    block_set_id: int | None


class BlockCache:
    """A least recently used (LRU) cache of the data blocks that a worker has read.

    The cache never returns stale data. A file that has changed is read again. Objects in a bucket or in the
    user's own store are cached by checksum, or not at all if they have none. All other data is immutable.

    Parameters
    ----------
    max_bytes : int
        Maximum number of bytes in the cache.

    Attributes
    ----------
    n_reads : int
        The number of segments (byte ranges of stored objects) read so far. Used by tests.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._entries: dict[CacheKey, CacheEntry] = {}
        self._lock = threading.Lock()  # protects `_entries`, because several threads may load blocks
        self.n_reads = 0

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def extend_byte_budget(self, n_bytes: int) -> Iterator[None]:
        """Increase the maximum size of the cache by `n_bytes` for the duration of a `with` block."""
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
        """Return a data block from the cache, or read it from storage and add it to the cache.

        Raises DamagedError if stored bytes are missing, truncated or corrupt.

        Parameters
        ----------
        block_ref : BlockRef
            The reference that says where the block is stored.
        structure : tuple
            How the arrays of the block are nested, as `flatten` returns it.
        read_segment : callable
            Called with a location and a segment; returns the bytes of the segment.
        writable : bool
            Return copies that the user's function may write to, instead of read-only views of the cache.
        block_set_id : int or None
            The id of the set of blocks that the block belongs to, or None. The bytes are evicted when that
            set no longer exists.
        """
        read_cached_segments = partial(self._get_or_read_bytes, read_segment, block_set_id)
        return assemble_block(block_ref, structure, read_cached_segments, writable)

    def evict_removed_blocks(self, live_block_set_ids: Collection[int] = ()) -> None:
        """Evict the blocks of data sets that no longer exist.

        All blocks of one data set belong to a set with an id. A block is evicted if the driver has dropped
        its set, or if one of the files that contain the block has been deleted.

        Parameters
        ----------
        live_block_set_ids : collection of int
            The ids of the sets of blocks that still exist, and the next id that the driver will assign. Sets
            with that id or a higher one are newer than the list, and are kept. If the collection is empty,
            only files are checked.
        """
        file_exists = partial(os.access, mode=os.F_OK)  # twice as fast as os.path.exists
        newest_id = max(live_block_set_ids, default=-1)

        def is_removed(entry: CacheEntry) -> bool:
            # If the block belongs to a set, check only whether the set still exists. This saves a system call
            # per file.
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
        """Return the concatenated bytes of segments (byte ranges of stored objects).

        The bytes are taken from the cache, or read and added to the cache.
        """
        key = location.fields, segments
        entry = self._entries.get(key)
        if entry is None or entry.file_signatures != {
            path: get_file_signature(path) for path in entry.file_signatures
        }:
            return self._read_and_cache(read_segment, block_set_id, location, segments)
        with self._lock:
            self._entries.pop(key, None)
            # Entries are ordered by last use. Move this one to the end of the dict.
            self._entries[key] = entry._replace(block_set_id=block_set_id)
        return entry.buffer

    def _read_and_cache(
        self,
        read_segment: ReadSegment,
        block_set_id: int | None,
        location: Location,
        segments: tuple[Segment, ...],
    ) -> Any:
        """Read segments (byte ranges of stored objects), and return their concatenated bytes.

        The bytes are also added to the cache, but only if later changes to the stored data can be detected.
        """
        # A segment without a key consists of zeros, which are not stored.
        stored_segments = [segment for segment in segments if segment.key]
        has_checksums = all(segment.crc32 is not None for segment in stored_segments)
        if not stored_segments or (location.needs_checksums and not has_checksums):
            return self._read_segments(read_segment, location, segments)
        paths = [path for segment in stored_segments if (path := location.get_path(segment.key))]
        # Compute no signature for files that do not exist here. They are files of the driver on another
        # machine, so changes to them cannot be detected on this one.
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
        """Evict the least recently used entries until the cache is within its maximum size.

        The caller must hold the lock.
        """
        while sum(len(entry.buffer) for entry in self._entries.values()) > self._max_bytes:
            del self._entries[next(iter(self._entries))]

    def _read_segments(
        self, read_segment: ReadSegment, location: Location, segments: tuple[Segment, ...]
    ) -> Any:
        """Read the concatenated bytes of segments, and update `n_reads`."""
        self.n_reads += len(segments)
        return read_segments(read_segment, location, segments)


def assemble_block(
    block_ref: BlockRef,
    structure: Structure,
    read_bytes: Callable[[Location, tuple[Segment, ...]], Any],
    writable: bool = True,
) -> Any:
    """Read the bytes of a block, and return the block: arrays, nested in tuples, lists and dicts.

    Parameters
    ----------
    block_ref : BlockRef
        The reference that says where the block is stored, or that contains its bytes.
    structure : tuple
        How the arrays of the block are nested, as `flatten` returns it.
    read_bytes : callable
        Called with a location and a tuple of segments; returns the concatenated bytes of the segments.
    writable : bool
        Whether to copy read-only arrays, so that the user's function may write to them.
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
    """Read segments (byte ranges of stored objects) and return their concatenated bytes.

    The bytes of a single segment are returned without a copy.
    """
    if len(segments) == 1:
        return read_segment(location, segments[0])
    # Let numpy allocate the memory: unlike bytearray, it uses huge pages for large arrays.
    buffer = np.empty(sum(segment.size for segment in segments), np.uint8).data
    start = 0
    for segment in segments:
        buffer[start : start + segment.size] = read_segment(location, segment)
        start += segment.size
    return buffer


def get_file_signature(path: str) -> tuple[int, ...]:
    """Return a tuple of `os.stat` fields that changes whenever a file is written or replaced.

    The tuple is empty if the file does not exist. It includes ctime, because programs can forge mtime, but
    not ctime.
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
    """A wrapper that lets the user's function `f` modify its block, although cached blocks are read-only.

    `f` is first called with the read-only block. If this fails because `f` writes to the block, `f` is called
    again with a copy of the block. All later calls receive copies, too.
    """

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
    """Group the segments of a block, so that each group contains complete arrays and can be cached alone.

    A block consists of several arrays, which are stored in segments (byte ranges of stored objects). A
    segment may contain several arrays, or a part of one. Groups are as small as possible. Return a pair
    (segments, layout) for each group, where the layout lists the dtype and shape of each of its arrays.
    """
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
