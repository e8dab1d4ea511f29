"""Blocks that lie in files, mapped by a worker that stays, and kept from map to map.

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
from polarmap.worker.objects import read_part
from polarmap.worker.parts import DamagedError, Part, Place, read_file, verified
from polarmap.worker.pytree import Array, Layout, Packed, flatten, unflatten

MAPPED_BYTES = 1 << 18  # larger parts of blocks are mapped, smaller ones read
KEPT_BYTES = 8 << 30  # mapped at most: of memory that all workers share
REMEMBERED = 100_000  # parts that were verified

Function = Callable[[Any], Any]


class Kept(NamedTuple):
    """Bytes of a block in memory, read-only, and the files that they are of, as these were then."""

    buffer: memoryview
    paths: tuple[str, ...]
    status: tuple[Any, ...]


class KeptBlocks:
    """Blocks as tasks get them: those that lie in memory already are read-only.

    To map or read a file costs more than to work on it (its pages are entered one by one), so what is
    in memory is kept: the least recently used goes beyond KEPT_BYTES, and all whose file is gone.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Any, ...], Kept] = OrderedDict()
        self._bytes = 0
        self._verified: set[tuple[Any, ...]] = set()
        self._lock = threading.Lock()  # of what is kept: threads may load at the same time
        self.reads = 0  # parts that were mapped or read, for tests

    def __len__(self) -> int:
        return len(self._kept)

    def load(self, block: StoredBlock, is_private: bool = False) -> Any:
        """A block; `is_private`: one that may be written into.

        DamagedError if it is not as it was stored.
        """
        source, parts = block.source, tuple(part for part in block.parts if part.size)
        if sum(part.size for part in parts) < MAPPED_BYTES or not all(part.key for part in parts):
            buffers: list[Any] = [self._read(source, part) for part in parts]
        elif is_private and source.encryption is not None:
            buffers = [bytearray(self._read(source, part)) for part in parts]
        elif is_private:
            buffers = [self._mapped(source.place, part, {"access": mmap.ACCESS_COPY})[0] for part in parts]
        else:
            buffers = [self._in_memory(source, parts)]
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

    def _read(self, source: Place, part: Part) -> Any:
        """The bytes of a small part, of one that is zeros and lies nowhere, or of one that is encrypted."""
        if not part.key:
            return bytearray(part.size)
        self.reads += 1
        if source.encryption is not None:
            return read_decrypted(source, part, read_part)
        return verified(part, read_file(source.place, part))

    def _in_memory(self, source: Place, parts: tuple[Part, ...]) -> memoryview:
        """The bytes of all parts in a row: where one part is all, those of its file, else a copy."""
        key, kept = (source, parts), self._kept.get((source, parts))
        paths = tuple(os.path.join(source.place, part.key) for part in parts)
        is_new = kept is None or kept.status != tuple(map(status_of, paths))  # stored anew: looked at anew
        if kept is None or is_new:
            is_mapped = len(parts) == 1 and source.encryption is None
            kept = (self._mapping if is_mapped else self._copy)(source, parts, paths)
        with self._lock:
            if is_new:
                self._keep(key, kept)
            elif key in self._kept:
                self._kept.move_to_end(key)
        return kept.buffer

    def _keep(self, key: tuple[Any, ...], kept: Kept) -> None:
        if key in self._kept:
            self._drop(key)
        self._kept[key] = kept
        self._bytes += len(kept.buffer)
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def _mapping(self, source: Place, parts: tuple[Part, ...], paths: tuple[str, ...]) -> Kept:
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        buffer, status = self._mapped(source.place, parts[0], {"flags": flags, "prot": mmap.PROT_READ})
        return Kept(buffer, paths, (status,))

    def _copy(self, source: Place, parts: tuple[Part, ...], paths: tuple[str, ...]) -> Kept:
        status = tuple(map(status_of, paths))
        if len(parts) == 1:
            return Kept(memoryview(self._read(source, parts[0])).toreadonly(), paths, status)
        whole = np.empty(sum(part.size for part in parts), np.uint8)  # which is in large pages
        start = 0
        for part in parts:
            data = self._read(source, part)
            whole[start : start + part.size] = np.frombuffer(data, np.uint8)
            start += part.size
        return Kept(whole.data.toreadonly(), paths, status)

    def _drop(self, key: tuple[Any, ...]) -> None:
        self._bytes -= len(self._kept.pop(key).buffer)

    def _mapped(self, folder: str, part: Part, how: dict[str, int]) -> tuple[memoryview, tuple[int, ...]]:
        """A part as a mapping of its file, and the status of that."""
        path = os.path.join(folder, part.key)
        self.reads += 1
        try:
            with open(path, "rb") as file:
                found = os.fstat(file.fileno())
                status, size = _told(found), found.st_size
                if size < part.offset + part.size:
                    there = max(0, size - part.offset)
                    raise DamagedError(f"{part.key} has {there} of {part.size} bytes from {part.offset} on")
                begin = part.offset - part.offset % mmap.ALLOCATIONGRANULARITY
                length = part.offset - begin + part.size
                mapped = mmap.mmap(file.fileno(), length, offset=begin, **how)
        except FileNotFoundError:
            raise DamagedError(f"{part.key} is missing") from None
        buffer = memoryview(mapped)[part.offset - begin :]
        if part.crc32 is not None and (path, part, status) not in self._verified:
            verified(part, buffer)
            if len(self._verified) >= REMEMBERED:
                self._verified.clear()
            self._verified.add((path, part, status))
        return buffer, status


def status_of(path: str) -> tuple[int, ...]:
    """What changes when a file is written or replaced; empty if there is none."""
    try:
        return _told(os.stat(path))
    except OSError:
        return ()


def _told(status: os.stat_result) -> tuple[int, ...]:
    """The time of the last change (ctime) among it, which, unlike that of the data, nobody can set."""
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
