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

from polarmap.worker.messages import StoredBlock
from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import Layout, Structure, flatten, unflatten, unpacked

KEPT_BYTES = 8 << 30  # at most, of what is mostly memory that all workers of a machine share
LOOK_SECONDS = 1.0  # between looks whether files of what is kept are gone

Function = Callable[[Any], Any]
ReadPart = Callable[[Place, Part], Any]  # DamagedError if the bytes are not what was stored


class Kept(NamedTuple):
    """Bytes in memory, read-only.

    files : the status of those that they are of, by path, as it was then.
    number : of the latest blocks whose bytes they are, until these are gone; None: as long as there is room.
    """

    buffer: memoryview
    files: dict[str, tuple[int, ...]]
    number: int | None


class BlockCache:
    """What workers keep of blocks, by name: the least recently used goes beyond the budget.

    Files are looked at each time: those that were changed are read anew. Objects are known by their
    checksums, without which they are fetched for each task. What a driver has never changes under its name.

    budget : bytes that may be kept.
    """

    def __init__(self, budget: int = KEPT_BYTES) -> None:
        self._budget = budget
        self._kept: dict[tuple[Place, tuple[Part, ...]], Kept] = {}
        self._lock = threading.Lock()  # of what is kept: threads may load at the same time
        self.reads = 0  # parts that were mapped or read, for tests

    def __len__(self) -> int:
        return len(self._kept)

    @contextmanager
    def with_room(self, size: int) -> Iterator[None]:
        """Keep so many bytes more, within."""
        with self._lock:
            self._budget += size
        try:
            yield
        finally:
            with self._lock:
                self._budget -= size
                self._make_room()

    def load(
        self,
        block: StoredBlock,
        structure: Structure,
        read: ReadPart,
        is_private: bool = False,
        number: int | None = None,
    ) -> Any:
        """A block, read-only where it is kept; DamagedError if it is not as it was stored.

        read : the bytes of a part.
        is_private : one that may be written into.
        number : of the blocks of which it is one; None if it does not go with them.
        """
        return load_block(block, structure, partial(self._buffer, read, number), is_private)

    def forget_removed(self, numbers: Collection[int] = ()) -> None:
        """Let go of bytes whose files have been removed, or whose blocks have gone.

        numbers : those of blocks that have not, and a last one, from which on others are newer than what is
            told here.
        """
        exists = partial(os.access, mode=os.F_OK)  # os.path.exists takes twice as long
        latest = max(numbers, default=-1)

        def is_removed(one: Kept) -> bool:
            if numbers and one.number is not None:  # which is known without a look at every file
                return one.number < latest and one.number not in numbers
            return not all(map(exists, one.files))

        with self._lock:
            for key in [key for key, one in self._kept.items() if is_removed(one)]:
                del self._kept[key]

    def _buffer(self, read: ReadPart, number: int | None, place: Place, parts: tuple[Part, ...]) -> Any:
        """The bytes of parts in a row."""
        kept = self._kept.get((place, parts))
        if kept is None or kept.files != {path: status_of(path) for path in kept.files}:
            return self._new_buffer(read, number, place, parts)
        with self._lock:
            self._kept.pop((place, parts), None)
            self._kept[place, parts] = kept._replace(number=number)  # behind those that were used before
        return kept.buffer

    def _new_buffer(self, read: ReadPart, number: int | None, place: Place, parts: tuple[Part, ...]) -> Any:
        """The same, read now; kept if it can be told whether it has changed."""
        stored = [part for part in parts if part.key]  # others are zeros, and lie nowhere
        has_checksums = all(part.crc32 is not None for part in stored)
        if not stored or (place.kind == "bucket" and not has_checksums):
            return self._joined(read, place, parts)
        is_file = place.kind in ("folder", "private")
        paths = [os.path.join(place.place, part.key) for part in stored] if is_file else []
        # None of what the driver has sent, where its folder is on another machine.
        files = {path: status for path in paths if (status := status_of(path))}
        kept = Kept(memoryview(self._joined(read, place, parts)).toreadonly(), files, number)
        with self._lock:
            self._kept.pop((place, parts), None)
            if len(kept.buffer) <= self._budget:
                self._kept[place, parts] = kept
            self._make_room()
        return kept.buffer

    def _make_room(self) -> None:
        """Let go of what was used least recently, until the rest is within the budget; `_lock` is held."""
        while sum(len(one.buffer) for one in self._kept.values()) > self._budget:
            del self._kept[next(iter(self._kept))]

    def _joined(self, read: ReadPart, place: Place, parts: tuple[Part, ...]) -> Any:
        """The bytes of parts in a row."""
        self.reads += len(parts)
        return joined(read, place, parts)


def load_block(
    block: StoredBlock,
    structure: Structure,
    buffer: Callable[[Place, tuple[Part, ...]], Any],
    is_private: bool = True,
) -> Any:
    """A block, which may be written into if it is private; `buffer`: the bytes of parts in a row."""
    if block.source.kind == "message":
        leaves = unpacked(block.layout, block.data)
    else:
        leaves = []
        for parts, layout in runs(tuple([part for part in block.parts if part.size]), block.layout):
            leaves += unpacked(layout, buffer(block.source, parts), is_private)
    return unflatten(structure, leaves)


def joined(read: ReadPart, place: Place, parts: tuple[Part, ...]) -> Any:
    """The bytes of parts in a row: a copy of several, one as it is read."""
    if len(parts) == 1:
        return read(place, parts[0])
    together = np.empty(sum(part.size for part in parts), np.uint8).data  # its memory is in large pages
    start = 0
    for part in parts:
        together[start : start + part.size] = read(place, part)
        start += part.size
    return together


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
        leaves, structure = flatten(block)
        return self._f(unflatten(structure, [leaf.copy() for leaf in leaves]))


def runs(parts: tuple[Part, ...], layout: Layout) -> list[tuple[tuple[Part, ...], Layout]]:
    """Return parts in groups, as small as can be, that no array of a block crosses, each with its arrays."""
    if len(parts) < 2:
        return [(parts, layout)]
    ends = list(accumulate(np.dtype(dtype).itemsize * prod(shape) for dtype, shape in layout))
    found, first, given, size = [], 0, 0, 0
    for number, part in enumerate(parts, 1):
        size += part.size
        if size in ends or number == len(parts):
            last = bisect_right(ends, size) if number < len(parts) else len(ends)
            found.append((parts[first:number], layout[given:last]))
            first, given = number, last
    return found
