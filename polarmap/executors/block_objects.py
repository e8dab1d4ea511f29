"""The blocks of maps as workers elsewhere fetch them, once each: from a storage, or from the driver."""

from __future__ import annotations

import itertools
import threading
import weakref
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from polarmap.errors import ExecutorError
from polarmap.executors.base import Coded
from polarmap.worker.encryption import Encryption, encrypt_part
from polarmap.worker.messages import StoredBlock
from polarmap.worker.parts import Part, Place
from polarmap.worker.retry import retry_call

TRANSFERS = 16  # objects written at once


class StoredPieces:
    """The pieces of some coded blocks under names that stand for their bytes, for as long as the blocks live.

    Parameters
    ----------
    coded : Coded
    place : Place
    prefix : str
        Of the names, which nothing else has.
    put : callable
        Stores a piece: its key and its bytes.
    """

    def __init__(
        self, coded: Coded, place: Place, prefix: str, put: Callable[[str, bytes], None] | None
    ) -> None:
        self._place, self._prefix, self._put = place, prefix, put
        self._lock = threading.Lock()
        self._parts: dict[int, Part] = {}
        self.blocks = weakref.ref(coded)

    def prepare(self, coded: Coded, tasks: Sequence[int]) -> None:
        """Store what is missing of the blocks of these tasks."""
        with self._lock:
            pieces = dict.fromkeys(piece for task in tasks for piece in coded.pieces(task))
            new = [piece for piece in pieces if piece not in self._parts]
            if not new:
                return
            coded.leaves(max(tasks))  # encode before anything is stored: its errors are the caller's
            if self._put is None:
                self._parts |= {piece: self._part(piece, self.bytes_of(coded, piece)) for piece in new}
                return
            with ThreadPoolExecutor(TRANSFERS) as pool:
                self._parts |= dict(zip(new, pool.map(partial(self._stored, coded), new)))
            if len(self._parts) == len({one for task in range(coded.n) for one in coded.pieces(task)}):
                coded.release()

    def block(self, coded: Coded, task: int) -> StoredBlock:
        """The block of a task."""
        parts = tuple(self._parts[piece] for piece in coded.pieces(task))
        return StoredBlock(self._place, parts, coded.structure, coded.layout(task))

    def part(self, coded: Coded, key: str) -> bytes:
        """The bytes of the piece of this name."""
        return self._told(self.bytes_of(coded, int(key.rpartition("/")[2])), key)

    def store_again(self, coded: Coded, task: int) -> None:
        """A worker has found that the block of a task is not as it was stored."""
        for piece in coded.pieces(task) if self._put is not None else ():
            self._stored(coded, piece)

    @staticmethod
    def bytes_of(coded: Coded, piece: int) -> bytes:
        """Those of its leaves in a row."""
        return b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in coded.piece(piece))

    def _stored(self, coded: Coded, piece: int) -> Part:
        assert self._put is not None
        data = self.bytes_of(coded, piece)
        part = self._part(piece, data)
        self._put(part.key, self._told(data, part.key))
        return part

    def _part(self, piece: int, data: bytes) -> Part:
        crc32 = zlib.crc32(data) if self._place.encryption is None else None
        return Part(f"{self._prefix}/{piece}", len(data), crc32)

    def _told(self, data: bytes, key: str) -> bytes:
        """The bytes of a piece as they are stored or sent."""
        if self._place.encryption is None:
            return data
        return encrypt_part(Encryption(*self._place.encryption), Part(key, len(data)), data)


class BlockObjects:
    """The stored pieces of all blocks that live.

    Parameters
    ----------
    storage : lithops.Storage or None
        Where they lie; None: with the driver, which workers ask for them.
    prefix : str
        Of all keys.
    """

    def __init__(self, storage: Any, prefix: str) -> None:
        self._storage, self._prefix = storage, prefix
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        # By the identity of the blocks: each map of a key encrypts them anew.
        self._stored: dict[tuple[int, Encryption | None], tuple[StoredPieces, str]] = {}

    def of(self, coded: Coded, encryption: Encryption | None = None) -> StoredPieces:
        """Those of these blocks."""
        with self._lock:
            self._remove_dead()
            name = id(coded), encryption
            if name not in self._stored:
                prefix = f"{self._prefix}/blocks/{next(self._numbers)}"
                if self._storage is None:
                    place = Place("driver", self._prefix, encryption=encryption)
                    stored = StoredPieces(coded, place, prefix, None)
                else:
                    place = Place("bucket", self._storage.bucket, self._storage.backend, encryption)
                    stored = StoredPieces(coded, place, prefix, self._put)
                self._stored[name] = stored, prefix
            return self._stored[name][0]

    def done(self, stored: StoredPieces) -> None:
        """A map does not need them any more; later ones may."""

    def _put(self, key: str, data: bytes) -> None:
        try:
            retry_call(partial(self._storage.put_object, self._storage.bucket, key, data))
        except Exception as error:
            raise ExecutorError(
                f"the blocks could not be stored in bucket {self._storage.bucket!r}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _remove_dead(self) -> None:
        """Remove the objects of blocks that nobody has any more."""
        dead = [key for key, (stored, _) in self._stored.items() if stored.blocks() is None]
        for key in dead:
            _, prefix = self._stored.pop(key)
            if self._storage is not None:
                keys = self._storage.list_keys(self._storage.bucket, f"{prefix}/")
                if keys:
                    self._storage.delete_objects(self._storage.bucket, keys)
