"""The objects of one map in a Lithops storage: blocks that workers read, results that they left."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.base import Coded, layout_bytes
from polarmap.executors.lithops_storage import PREFIX, remove_objects
from polarmap.worker.encryption import Encryption, encrypt_part
from polarmap.worker.io_lithops import Address
from polarmap.worker.messages import Reply, StoredBlock, Ticket, reply_of_bytes
from polarmap.worker.parts import Part, Place
from polarmap.worker.retry import retry_call

LISTING_SECONDS = 0.1  # between looks for results of subtasks
TRANSFERS = 16  # objects moved at once to or from a remote storage


class MapObjects:
    """Below a prefix of their own, in the bucket of a `lithops.Storage`.

    Attributes
    ----------
    address : Address
        By which workers find them.
    """

    def __init__(self, storage: Any, coded: Coded, encryption: Encryption | None = None) -> None:
        self._storage, self._coded, self._encryption = storage, coded, encryption
        self.address = Address(storage.bucket, f"{PREFIX}/{uuid.uuid4().hex}")
        self._stored: set[int] = set()  # pieces of blocks
        self._told: set[str] = set()  # keys of results of subtasks
        self._next_listing = 0.0

    def block(self, task: int) -> StoredBlock:
        """What the worker of a task reads: parts of a stored array, or the pieces that we store."""
        coded, layout = self._coded, self._coded.layout(task)
        if coded.source is not None:
            return StoredBlock(coded.source, tuple(coded.parts(task)), coded.structure, layout)
        pieces = coded.pieces(task)
        if len(pieces) == 1:
            sizes = [layout_bytes(layout)]
        elif len(pieces) == len(layout):
            sizes = [layout_bytes([leaf]) for leaf in layout]
        else:  # some have several leaves: parts of a sum, which exist already
            sizes = [sum(leaf.nbytes for leaf in coded.piece(piece)) for piece in pieces]
        parts = [Part(self._block_key(piece), size) for piece, size in zip(pieces, sizes, strict=True)]
        place = Place("bucket", self.address.bucket, encryption=self._encryption)
        return StoredBlock(place, tuple(parts), coded.structure, layout)

    def unstored(self, tasks: Sequence[int]) -> list[int]:
        """The pieces of these tasks that no one has stored yet, each once, as stored from now on."""
        if self._coded.source is not None:
            return []
        pieces = [piece for task in tasks for piece in self._coded.pieces(task)]
        new = [piece for piece in dict.fromkeys(pieces) if piece not in self._stored]
        self._stored.update(new)
        return new

    def put_piece(self, piece: int) -> None:
        """Store a piece of the blocks."""
        key = self._block_key(piece)
        data = b"".join(leaf.tobytes() for leaf in self._coded.piece(piece))
        if self._encryption is not None:
            data = encrypt_part(self._encryption, Part(key, len(data)), data)
        self._put(key, data)

    def put_blocks(self, tasks: Sequence[int], is_first: bool) -> None:
        """Store the blocks of these tasks, at first also the sign that somebody waits for results."""
        try:
            if is_first:
                self._put(self.address.liveness_key, b"alive")
            with ThreadPoolExecutor(TRANSFERS) as pool:
                for done in [pool.submit(self.put_piece, piece) for piece in self.unstored(tasks)]:
                    done.result()
        except Exception as error:
            raise ExecutorError(
                f"the blocks could not be stored in bucket {self.address.bucket!r}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def remove_sign(self) -> None:
        """Nobody waits for results any more."""
        self._storage.delete_object(self.address.bucket, self.address.liveness_key)

    def result(self, reply: Reply) -> bytes | None:
        """The bytes of a result that do not come with its reply."""
        if reply.result is None or len(reply.result.data) or not layout_bytes(reply.result.layout):
            return None
        key = self.address.result_key(reply.task, reply.attempt)
        data: bytes = self._storage.get_object(self.address.bucket, key)
        return data

    def partial_results(self) -> list[Reply]:
        """The results of subtasks that workers have stored since the last look."""
        if time.monotonic() < self._next_listing:
            return []
        try:
            keys = self._storage.list_keys(self.address.bucket, f"{self.address.prefix}/subtask/")
        except Exception:  # the ends of the tasks tell what cannot be reached
            keys = []
        found = [self._taken(key) for key in sorted(keys) if key not in self._told]
        self._next_listing = time.monotonic() + LISTING_SECONDS
        return [reply for reply in found if reply is not None]

    def rest_of(self, ticket: Ticket, told: Sequence[int]) -> tuple[list[Reply], int]:
        """The results of a task's subtasks that were not told yet, and how many could not be read."""
        others = [subtask for subtask in ticket.subtask_order if subtask not in told]
        keys = [self.address.subtask_key(ticket.task, ticket.attempt, subtask) for subtask in others]
        taken = [self._taken(key) for key in keys if key not in self._told]
        found = [reply for reply in taken if reply is not None]
        return found, len(taken) - len(found)

    def remove(self, others: Sequence[str] = ()) -> None:
        """Remove all of them, and what lies below other prefixes."""
        remove_objects(self._storage, [f"{self.address.prefix}/", *others])

    def _block_key(self, piece: int) -> str:
        return f"{self.address.prefix}/block/{piece}"

    def _put(self, key: str, data: bytes) -> None:
        retry_call(partial(self._storage.put_object, self.address.bucket, key, data))

    def _taken(self, key: str) -> Reply | None:
        """The result of a subtask, once; None while its object is still being written."""
        try:
            task, attempt, _ = map(int, key.rpartition("/")[2].split("-"))
            sealed_of = None if self._encryption is None else (task, attempt)
            reply = reply_of_bytes(bytes(self._storage.get_object(self.address.bucket, key)), sealed_of)
        except Exception:
            return None
        if reply is not None:
            self._told.add(key)
        return reply
