"""Blocks as a worker that stays gets them: mapped or fetched once, and kept from map to map.

Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np

from polarmap.worker.encryption import read_decrypted
from polarmap.worker.messages import StoredBlock
from polarmap.worker.parts import DamagedError, Part, Place, read_part, verified
from polarmap.worker.pytree import Array, Layout, Packed, flatten, unflatten

MAPPED_BYTES = 1 << 18  # smaller parts of files are read for each task
KEPT_BYTES = 8 << 30  # at most, of what is mostly memory that all workers of a machine share

Function = Callable[[Any], Any]


def read_here(place: Place, part: Part) -> Any:
    """The bytes of a part that lies in a file."""
    return read_part(place, part) if place.encryption is None else read_decrypted(place, part, read_part)


class Kept(NamedTuple):
    """Bytes in memory, read-only, and the files that they are of, as these were then."""

    buffer: memoryview
    paths: tuple[str, ...]
    status: tuple[Any, ...]


class BlockCache:
    """What workers keep of blocks, by name: the least recently used goes beyond the budget.

    Files are looked at each time: those that were changed are read anew. Objects are known by their
    checksums, or are encrypted, as nothing else is under its key; others are fetched for each task.

    read : the bytes of a part, as `read_here`.
    budget : bytes that may be kept.
    """

    def __init__(self, read: Callable[[Place, Part], Any] = read_here, budget: int = KEPT_BYTES) -> None:
        self._read, self._budget = read, budget
        self._kept: OrderedDict[tuple[Place, tuple[Part, ...]], Kept] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()  # of what is kept: threads may load at the same time
        self.reads = 0  # parts that were mapped or read, for tests

    def __len__(self) -> int:
        return len(self._kept)

    def load(self, block: StoredBlock, is_private: bool = False) -> Any:
        """A block, read-only where it is kept; `is_private`: one that may be written into.

        DamagedError if it is not as it was stored.
        """
        if block.source.kind == "message":
            buffers: list[Any] = [bytearray(block.data)]
        else:
            parts = tuple(part for part in block.parts if part.size)
            buffers = [self._buffer(block.source, one) for one in runs(parts, block.layout)]
            if is_private:
                buffers = [one if isinstance(one, bytearray) else bytearray(one) for one in buffers]
        return unflatten(block.structure, leaves_of(buffers, block.layout))

    def forget_removed(self) -> None:
        """Let go of memory whose files have been removed."""
        with self._lock:
            for key in [key for key, one in self._kept.items() if not all(map(os.path.exists, one.paths))]:
                self._drop(key)

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _buffer(self, place: Place, parts: tuple[Part, ...]) -> Any:
        """The bytes of parts in a row."""
        stored = [part for part in parts if part.key]  # others are zeros, and lie nowhere
        size, is_file = sum(part.size for part in parts), place.kind == "folder"
        is_known = is_file or place.encryption or all(part.crc32 is not None for part in stored)
        if not stored or not is_known or (is_file and size < MAPPED_BYTES):
            return self._joined(place, parts)
        paths = tuple(os.path.join(place.place, part.key) for part in stored) if is_file else ()
        status = tuple(map(status_of, paths))
        kept = self._kept.get((place, parts))
        if kept is None or kept.status != status:
            is_mapped = is_file and len(parts) == 1 and place.encryption is None
            buffer = self._mapped(paths[0], parts[0]) if is_mapped else self._joined(place, parts)
            kept = Kept(memoryview(buffer).toreadonly(), paths, status)
        if size <= self._budget:
            self._keep((place, parts), kept)
        return kept.buffer

    def _keep(self, key: tuple[Place, tuple[Part, ...]], kept: Kept) -> None:
        with self._lock:
            if key in self._kept:
                self._drop(key)
            self._kept[key] = kept
            self._bytes += len(kept.buffer)
            while self._bytes > self._budget:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: tuple[Place, tuple[Part, ...]]) -> None:
        self._bytes -= len(self._kept.pop(key).buffer)

    def _joined(self, place: Place, parts: tuple[Part, ...]) -> Any:
        """A copy of parts in a row."""
        self.reads += len(parts)
        if len(parts) == 1:
            return verified(parts[0], self._read(place, parts[0]))
        whole, start = np.empty(sum(part.size for part in parts), np.uint8).data, 0  # which is in large pages
        for part in parts:
            whole[start : start + part.size] = verified(part, self._read(place, part))
            start += part.size
        return whole

    def _mapped(self, path: str, part: Part) -> memoryview:
        """A part as a mapping of its file."""
        self.reads += 1
        try:
            with open(path, "rb") as file:
                there = max(0, os.fstat(file.fileno()).st_size - part.offset)
                if there < part.size:
                    raise DamagedError(f"{part.key} has {there} of {part.size} bytes from {part.offset} on")
                begin = part.offset - part.offset % mmap.ALLOCATIONGRANULARITY
                flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # entered one by one is slow
                length = part.offset - begin + part.size
                mapped = mmap.mmap(file.fileno(), length, flags, mmap.PROT_READ, offset=begin)
        except FileNotFoundError:
            raise DamagedError(f"{part.key} is missing") from None
        return memoryview(verified(part, memoryview(mapped)[part.offset - begin :]))


def status_of(path: str) -> tuple[int, ...]:
    """What changes when a file is written or replaced; empty if there is none.

    The time of the last change (ctime) among it, which, unlike that of the data, nobody can set.
    """
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class OnReadOnlyBlocks:
    """f on blocks that it must not change; one that does gets copies, from the first time it tries."""

    def __init__(self, f: Function) -> None:
        self._f, self._writes = f, False

    def __call__(self, block: Any) -> Any:
        if not self._writes:
            try:
                return self._f(block)
            except ValueError as error:
                if "read-only" not in str(error):
                    raise
            self._writes = True
        leaves, structure = flatten(block, data=True)
        return self._f(unflatten(structure, [leaf.copy() for leaf in leaves]))


def runs(parts: tuple[Part, ...], layout: Layout) -> list[tuple[Part, ...]]:
    """Parts in groups, as small as can be, that no array of a block crosses.

    >>> a, b, c = Part("a", 8), Part("b", 8), Part("c", 4)
    >>> runs((a, b, c), (("<f8", (2,)), ("<f4", ()))) == [(a, b), (c,)]
    True
    """
    end, ends = 0, {0}
    for dtype, shape in layout:
        end += np.dtype(dtype).itemsize * prod(shape)
        ends.add(end)
    found, first, size = [], 0, 0
    for number, part in enumerate(parts, 1):
        size += part.size
        if size in ends or number == len(parts):
            found.append(parts[first:number])
            first = number
    return found


def leaves_of(buffers: list[Any], layout: Layout) -> list[Array]:
    """The leaves whose bytes are those of the buffers in a row; where they lie, if in one of them.

    >>> [leaf.tolist() for leaf in leaves_of([b"abc", b"d"], (("S1", (2,)), ("S1", (2,))))]
    [[b'a', b'b'], [b'c', b'd']]
    """
    leaves: list[Array] = []
    start = 0
    for dtype, shape in layout:
        size = np.dtype(dtype).itemsize * prod(shape)
        leaves += Packed((), ((dtype, shape),), _run(buffers, start, size)).views()
        start += size
    return leaves


def _run(buffers: list[Any], start: int, size: int) -> Any:
    """A run of the bytes of all buffers in a row: a view if it lies in one of them, else a copy."""
    before = 0
    for buffer in buffers:
        if before <= start and start + size <= before + len(buffer):
            return memoryview(buffer)[start - before : start - before + size]
        before += len(buffer)
    return bytearray().join(buffers)[start : start + size]
