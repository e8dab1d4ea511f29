"""Where workers read the blocks of maps: each piece is stored once, for as long as the blocks live."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from polarmap.errors import ExecutorError
from polarmap.executors.base import Coded, Failure, Payload
from polarmap.executors.transfers import in_parallel
from polarmap.worker.encryption import to_stored_bytes
from polarmap.worker.private_files import write_private_file
from polarmap.worker.pytree import count_layout_bytes
from polarmap.worker.segments import INLINE, Location, Segment
from polarmap.worker.task_records import BlockRef, to_plain_tuple

SENT_BYTES = 1 << 14  # smaller blocks travel with their tasks: a file takes longer
ROOM_SHARE = 2  # of the memory that is free in a folder, one such part may be used
TRANSFERS = 16  # objects written at once
MOVED_BYTES = 1e8  # of blocks in a second over a usual network
KEPT_BY_NUMBER = ("driver", "private", "dask", "ray")  # places of what workers keep until they are told


class StoredPieces:
    """The pieces of some coded blocks, and what workers are told of them; those in storage stay there.

    Attributes
    ----------
    blocks : weak reference to the blocks
    roots : list of str
        What the keys of its pieces begin with, once one is stored: the first unless there is no room.
    bytes : int
        That the pieces weigh when all are stored, at most; 0 while none is.
    users : int
        Maps that use it now.
    number : int
        Of these blocks, which no others of the store have.
    kept_as : int or None
        The number by which workers keep their bytes until these blocks are gone; None: the bytes are also
        others'.
    """

    def __init__(self, coded: Coded, place: Location, storing: BlockStore, number: int) -> None:
        self.blocks, self._source = weakref.ref(coded), coded.source
        self._place, self._storing, self.number = place, storing, number
        self.kept_as = number if (self._source or place).kind in KEPT_BY_NUMBER else None
        self.roots, self.bytes, self.users = list[str](), 0, 0
        self._lock = threading.RLock()
        tasks = range(coded.n if self._source is None else 0)
        self._unstored = {piece for task in tasks for piece in coded.pieces(task)}
        self._parts: dict[int, Segment] = {}  # of pieces
        self._orders: dict[int, bytes] = {}  # of tasks

    def name(self, coded: Coded, task: int) -> Hashable:
        """What means the same task to every map of the same blocks."""
        if self._source is None or self._source == INLINE:
            return self.number, task
        return self._orders.get(task) or self.order(coded, task)

    def moving_seconds(self, coded: Coded) -> float:
        """About how long a block takes to a worker that does not have it; 0 where it is a file here."""
        is_here = (self._source or self._place).kind in ("message", "private", "folder")
        return 0.0 if is_here else count_layout_bytes(coded.layout(0)) / MOVED_BYTES

    def order(self, coded: Coded, task: int) -> bytes:
        """What the worker of a task reads, as it is told: the fields of a `BlockRef`, pickled."""
        with self._lock:
            found = self._orders.get(task)
            if found is None:
                source, parts, *rest = self.block(coded, task)
                fields = to_plain_tuple(source), tuple(map(tuple, parts)), *rest
                found = pickle.dumps(fields, pickle.HIGHEST_PROTOCOL)
                if self._source != INLINE:  # where blocks come and go
                    self._orders[task] = found
            return found

    def prepare(self, coded: Coded, tasks: Sequence[int], deadline: float = inf) -> None:
        """Store what is missing of the blocks of these tasks, where many at once take no longer than one.

        Others are stored when they are asked for, so that the first worker begins at once. TimeoutError at
        the deadline, on the monotonic clock: a storage may hang.
        """
        if self._source is not None or not self._storing.is_parallel:
            return
        with self._lock:
            pieces = dict.fromkeys(piece for task in tasks for piece in coded.pieces(task))
            new = [piece for piece in pieces if piece not in self._parts]
            if not new:
                return
            coded.leaves(max(tasks))  # encode before anything is stored: its errors are the caller's
            self._find_room(coded)
            self._parts |= zip(new, in_parallel(partial(self._store, coded), new, TRANSFERS, deadline))

    def block(self, coded: Coded, task: int) -> BlockRef:
        """What the worker of a task gets; stored now if it is not yet."""
        with self._lock:
            return self._new_block(coded, task) if self._source is None else stored_block(coded, task)

    def part(self, coded: Coded, key: str) -> bytes | memoryview:
        """Return the bytes of a piece as a worker gets them that asks for this key.

        A piece that is one array is not copied: many workers may be sent theirs at the same time.
        """
        buffers = _buffers(coded, int(key.rpartition("/")[2]))
        stored = to_stored_bytes(self._place, Segment(key, sum(map(len, buffers))), *buffers)
        return stored[0] if len(stored) == 1 else b"".join(stored)

    def store_if_damaged(self, coded: Coded, task: int, failure: Failure) -> None:
        """A block that its worker found damaged is stored anew when it is asked for again."""
        if failure.kind == "damaged":
            with self._lock:
                for piece in coded.pieces(task):
                    self._parts.pop(piece, None)
                self._orders.clear()

    def _new_block(self, coded: Coded, task: int) -> BlockRef:
        layout, pieces = coded.layout(task), coded.pieces(task)
        if self._storing.is_mapped and not self._place.encryption and count_layout_bytes(layout) < SENT_BYTES:
            block = _in_message(coded, task)
        else:
            self._find_room(coded)
            for piece in pieces:
                if piece not in self._parts:
                    self._parts[piece] = self._store(coded, piece)
            block = BlockRef(self._place, tuple(self._parts[piece] for piece in pieces), layout)
        self._unstored.difference_update(pieces)
        if not self._unstored and self._storing.has_bytes:
            coded.release()
        return block

    def _find_room(self, coded: Coded) -> None:
        """Let there be roots, from the first piece on: blocks that all travel with their tasks have none."""
        if self.roots:
            return
        storing = self._storing
        first = {piece: task for task in reversed(range(coded.n)) for piece in coded.pieces(task)}
        size = sum(count_layout_bytes(coded.layout(task)) for task in set(first.values()))
        with storing.lock:  # until others can see that the room is taken
            self.bytes, self.roots = size, storing.roots(self.number, size)
        if storing.is_mapped:
            weakref.finalize(coded, _remove, weakref.WeakMethod(storing.remove), self.roots).atexit = False
            storing.remove_unneeded()  # at once: what has made way is in memory

    def _store(self, coded: Coded, piece: int) -> Segment:
        buffers, failed = _buffers(coded, piece), OSError()
        for root in self.roots:
            part = Segment(f"{root}{piece}", sum(map(len, buffers)))
            if not self._storing.has_bytes:
                return part
            try:
                crc32 = self._storing.put(part.key, to_stored_bytes(self._place, part, *buffers))
                return part._replace(crc32=crc32)
            except OSError as error:
                failed = error
        raise ExecutorError(f"no room for what workers are to read: {failed}") from failed


def _remove(remover: weakref.WeakMethod[Callable[[Sequence[str]], None]], roots: Sequence[str]) -> None:
    """Remove what is below roots, unless the store is gone, and with it all that it had."""
    remove = remover()
    if remove is not None:
        remove(roots)


def stored_block(coded: Coded, task: int) -> BlockRef:
    """What the worker of a task gets of blocks that lie in storage already, or travel in messages."""
    assert coded.source is not None
    if coded.source == INLINE:
        return _in_message(coded, task)
    return BlockRef(coded.source, coded.parts(task), coded.layout(task))


def _in_message(coded: Coded, task: int) -> BlockRef:
    """The block of a task as it travels with it."""
    data = b"".join(buffer for piece in coded.pieces(task) for buffer in _buffers(coded, piece))
    return BlockRef(INLINE, (), coded.layout(task), data)


def _buffers(coded: Coded, piece: int) -> list[Any]:
    """The bytes of the leaves of a piece, without copies of those whose memory is in one run."""
    leaves = map(np.ascontiguousarray, coded.piece(piece))
    return [leaf.reshape(-1).view(np.uint8).data if leaf.size and leaf.itemsize else b"" for leaf in leaves]


class BlockStore:
    """What workers read of all blocks of a pool or a run: here they ask the driver. Others store the bytes.

    These lie below roots: the first unless there is no room.

    place : where workers find them.
    has_bytes : whether they lie there, so that the blocks may let go of those that can be made again.
    is_parallel : whether many are stored in the time of one.
    is_mapped : whether workers map them, without checksums; small ones travel with their tasks, as that takes
        less time, and all are removed at once when the blocks are gone.
    unneeded : what the keys of all begin with that is to be removed.
    """

    has_bytes = is_parallel = is_mapped = False

    def __init__(self, prefix: str) -> None:
        self.place, self._prefix = Location("driver", prefix), prefix
        self.lock = threading.RLock()  # a run that is closed by its destructor may interrupt anything
        self._removing = threading.Lock()
        self.next_number = 0  # of the next blocks that come
        # By the identity of the blocks, and by place: with a key each map has its own. The latest used last.
        self._stored: dict[tuple[int, Location], StoredPieces] = {}
        self.unneeded: list[str] = []

    def of(self, payload: Payload) -> StoredPieces:
        """What is stored of the blocks of a map, in use until `done` is called."""
        coded, place = payload.blocks, self.place._replace(encryption=payload.encryption)
        with self.lock:
            self._let_go([name for name, one in self._stored.items() if one.blocks() is None])
            name = id(coded), place
            found = self._stored.pop(name, None)
            if found is None:
                found = StoredPieces(coded, place, self, self.next_number)
                self.next_number += 1
            self._stored[name] = found
            found.users += 1
            return found

    def in_use(self) -> tuple[int, ...]:
        """The numbers of all blocks that have not gone."""
        with self.lock:
            return tuple([one.number for one in self._stored.values()])

    def done(self, stored: StoredPieces) -> None:
        """A map does not need them any more; later ones may."""
        with self.lock:
            stored.users -= 1

    def roots(self, number: int, size: int) -> list[str]:
        """For the pieces of new blocks of this size, while `lock` is held."""
        return [f"{self._prefix}/blocks/{number}/"]

    def put(self, key: str, buffers: Sequence[Any]) -> int | None:
        """Store bytes; their checksum, if workers are to compare it. OSError: no room is below this root."""
        raise NotImplementedError

    def remove(self, roots: Sequence[str]) -> None:
        """Remove all below roots."""

    def remove_unneeded(self) -> None:
        """Remove what nobody needs, with no lock held that other maps wait for, as a storage may hang.

        What one that is away keeps goes later, or at the end.
        """
        if not self._removing.acquire(blocking=False):  # the storage may not answer whoever does
            return
        try:
            with contextlib.suppress(Exception):
                while self.unneeded:
                    self.remove(self.unneeded[:1])
                    del self.unneeded[0]
        finally:
            self._removing.release()

    def _let_go(self, names: Iterable[tuple[int, Location]]) -> None:
        self.unneeded += [root for name in names for root in self._stored.pop(name).roots]


class InFolders(BlockStore):
    """Files that workers on this machine map: in memory where there is room for them, else on disk.

    memory : a folder whose files are in memory; None if there is none.
    disk : another one.
    budget : bytes that the files in memory may take together; those that were used least recently go.
    """

    has_bytes = is_mapped = True

    def __init__(self, memory: Path | None, disk: Path, budget: int) -> None:
        super().__init__("")
        self.place, self._owner = Location("private", "/"), os.getpid()
        self._memory, self._disk, self._budget = memory, disk, budget

    def roots(self, number: int, size: int) -> list[str]:
        """A folder in memory, if it has room when what is not in use has made way, and one on disk."""
        folders = [self._disk]
        if self._memory is not None and self._has_room(self._memory, size):
            folders.insert(0, self._memory)
        return [f"{folder}/blocks-{number}/".lstrip("/") for folder in folders]

    def put(self, key: str, buffers: Sequence[Any]) -> None:
        """A new file: one that is there is not written into, as a worker may have mapped it."""
        write_private_file(os.path.join("/", key), *buffers)

    def remove(self, roots: Sequence[str]) -> None:
        """The folders; not by a process that was forked of the one they belong to."""
        for root in roots if os.getpid() == self._owner else ():
            shutil.rmtree(os.path.join("/", root), ignore_errors=True)

    def _has_room(self, memory: Path, size: int) -> bool:
        try:
            room = os.statvfs(memory)
        except OSError:
            return False
        if size > min(self._budget, room.f_bavail * room.f_frsize // ROOM_SHARE):
            return False
        inside = {name: one for name, one in self._stored.items() if len(one.roots) > 1}
        used, unneeded = sum(one.bytes for one in inside.values()), []
        for name, one in inside.items():
            if used + size > self._budget and not one.users:
                unneeded.append(name)
                used -= one.bytes
        self._let_go(unneeded)
        return used + size <= self._budget
