"""The blocks of maps as files that workers on this machine map into their memory.

They lie in memory where there is room for them, else on disk, until the blocks themselves are gone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
import time
import weakref
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from polarmap.errors import ExecutorError
from polarmap.executors.base import Array, Coded, layout_bytes
from polarmap.worker.encryption import Encryption, encrypt_part
from polarmap.worker.messages import StoredBlock
from polarmap.worker.parts import MESSAGE, Part, Place

SENT_BYTES = 1 << 14  # smaller blocks travel with their tasks: a file takes longer
ROOM_SHARE = 2  # of the memory that is free in a folder, one such part may be used


class StoredPieces:
    """The pieces of some coded blocks, written as they are asked for, each once; small blocks as messages.

    Attributes
    ----------
    blocks : weak reference to the blocks
    folders : list of Path
        Where its files lie: in the first unless there is no room.
    bytes : int
        That the files take when all are written.
    encryption : Encryption or None
        Of the files.
    users : int
        Maps that use it now.
    used : float
        When it was used last.
    """

    def __init__(
        self, coded: Coded, folders: Sequence[Path], size: int, encryption: Encryption | None = None
    ) -> None:
        self.blocks, self.folders, self.encryption = weakref.ref(coded), list(folders), encryption
        self.bytes = size
        self.users, self.used = 0, time.monotonic()
        self._lock = threading.Lock()
        self._unwritten = {piece for task in range(coded.n) for piece in coded.pieces(task)}
        self._places: dict[int, Part] = {}  # piece -> file, its path below the root
        self._tasks: dict[int, StoredBlock] = {}
        self._finalizer = weakref.finalize(coded, _remove, self.folders, os.getpid())
        self._finalizer.atexit = False

    def is_there(self) -> bool:
        """Whether nobody has removed its files."""
        return all(map(os.path.isdir, {os.path.dirname("/" + part.key) for part in self._places.values()}))

    def prepare(self, coded: Coded, tasks: Sequence[int]) -> None:
        """Nothing: each is written when it is asked for, so that the first worker begins at once."""

    def part(self, coded: Coded, key: str) -> bytes:
        """Never asked for: workers read files."""
        raise LookupError(key)

    def block(self, coded: Coded, task: int) -> StoredBlock:
        """The block of a task, stored now if it is not yet."""
        with self._lock:
            found = self._tasks.get(task)
            if found is None:
                layout = coded.layout(task)
                if self.encryption is None and layout_bytes(layout) < SENT_BYTES:
                    place, parts = MESSAGE, [self._in_message(coded, one) for one in coded.pieces(task)]
                else:
                    place = Place("folder", "/", encryption=self.encryption)
                    parts = [self._places.get(one) or self._write(coded, one) for one in coded.pieces(task)]
                found = self._tasks[task] = StoredBlock(place, tuple(parts), coded.structure, layout)
                if not self._unwritten:
                    coded.release()
            return found

    def store_again(self, coded: Coded, task: int) -> None:
        """A worker has found that the block of a task is not as it was stored.

        It is written anew when it is asked for again.
        """
        with self._lock:
            for piece in coded.pieces(task):
                self._places.pop(piece, None)
            self._tasks.clear()

    def remove(self) -> None:
        """Remove its files."""
        self._finalizer()
        with self._lock:
            self._places.clear()
            self._tasks.clear()

    def _in_message(self, coded: Coded, piece: int) -> Part:
        data = b"".join(map(_bytes_of, coded.piece(piece)))
        self._unwritten.discard(piece)
        return Part(cast(Any, data), len(data))

    def _write(self, coded: Coded, piece: int) -> Part:
        leaves = coded.piece(piece)
        size = sum(leaf.nbytes for leaf in leaves)
        for number, folder in enumerate(self.folders, 1):
            path = folder / str(piece)
            part = Part(str(path).lstrip("/"), size)
            stored = leaves if self.encryption is None else [_encrypted(self.encryption, part, leaves)]
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)  # not written into: a worker may have mapped it
                with path.open("xb", buffering=0) as file:
                    for leaf in stored:
                        _write_all(file, leaf)
                break
            except OSError as error:
                with contextlib.suppress(OSError):
                    path.unlink()
                if number == len(self.folders):
                    raise ExecutorError(f"no room for what workers are to read: {error}") from error
        self._places[piece] = part
        self._unwritten.discard(piece)
        return part


class BlockFiles:
    """The stored pieces of all blocks that live.

    Parameters
    ----------
    memory : Path or None
        A folder whose files are in memory.
    disk : Path
    budget : int
        Bytes that the files in memory may take together; those that were used least recently go.
    """

    def __init__(self, memory: Path | None, disk: Path, budget: int) -> None:
        self._memory, self._disk, self._budget = memory, disk, budget
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        # By the identity of the blocks: each map of a key encrypts them anew.
        self._stored: dict[tuple[int, Encryption | None], StoredPieces] = {}

    def of(self, coded: Coded, encryption: Encryption | None = None) -> StoredPieces:
        """Those of these blocks, in use until `done` is called."""
        with self._lock:
            for key, stored in list(self._stored.items()):
                if stored.blocks() is None:
                    del self._stored[key]
            name = id(coded), encryption
            found = self._stored.get(name)
            if found is None or (not found.users and not found.is_there()):
                if found is not None:
                    found.remove()
                size = bytes_of(coded)
                found = StoredPieces(coded, self._folders(size), size, encryption)
                self._stored[name] = found
            found.users += 1
            found.used = time.monotonic()
            return found

    def done(self, stored: StoredPieces) -> None:
        """A map does not need them any more."""
        with self._lock:
            stored.users -= 1

    def _folders(self, size: int) -> list[Path]:
        name = f"blocks-{next(self._numbers)}"
        if self._memory is None or not self._has_room(self._memory, size):
            return [self._disk / name]
        return [self._memory / name, self._disk / name]

    def _has_room(self, memory: Path, size: int) -> bool:
        """Whether so much fits in memory, when what is not in use has made way."""
        try:
            room = os.statvfs(memory)
        except OSError:
            return False
        if size > min(self._budget, room.f_bavail * room.f_frsize // ROOM_SHARE):
            return False
        inside = [one for one in self._stored.values() if one.folders[0].parent == memory]
        for stored in sorted(inside, key=lambda one: one.used):
            if sum(one.bytes for one in inside) + size <= self._budget:
                break
            if not stored.users:
                stored.remove()
                inside.remove(stored)
                self._stored = {key: one for key, one in self._stored.items() if one is not stored}
        return sum(one.bytes for one in inside) + size <= self._budget


def bytes_of(coded: Coded) -> int:
    """What the pieces of all coded blocks weigh, at most."""
    first = {piece: task for task in reversed(range(coded.n)) for piece in coded.pieces(task)}
    return sum(layout_bytes(coded.layout(task)) for task in set(first.values()))


def name_of(coded: Coded, task: int) -> Hashable:
    """What means the same task to every map of the same blocks."""
    if coded.source is None or coded.source.kind == "message":
        return id(coded), task
    return coded.source, coded.parts(task)


def _encrypted(encryption: Encryption, part: Part, leaves: Sequence[Array]) -> Array:
    """The bytes of a part as they are stored."""
    data = b"".join(map(_bytes_of, leaves)) if len(leaves) > 1 else _bytes_of(leaves[0])
    return np.frombuffer(encrypt_part(encryption, part, data), np.uint8)


def _bytes_of(leaf: Array) -> Any:
    """Those of an array, without a copy where its memory is in one run."""
    whole = np.ascontiguousarray(leaf)
    return whole.reshape(-1).view(np.uint8).data if whole.size and whole.itemsize else b""


def _write_all(file: Any, leaf: Array) -> None:
    """All bytes of an array."""
    data = _bytes_of(leaf)
    while len(data):
        data = data[file.write(data) :]


def _remove(folders: Sequence[Path], owner: int) -> None:
    """Not by a process that was forked of the one they belong to."""
    for folder in folders if os.getpid() == owner else ():
        shutil.rmtree(folder, ignore_errors=True)
