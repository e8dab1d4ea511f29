"""Reads blocks from a store that only this process can access, on behalf of workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from polarmap.errors import MissingObjectError
from polarmap.executors.interface import Failure, FailureKind, TaskBlocks, to_failure
from polarmap.worker.daemon_threads import CallTimeoutError, call_with_timeout, run_in_daemon_thread
from polarmap.worker.locations import StoreLocation
from polarmap.worker.segments import Segment, make_fetch_timeout_error, make_missing_segment_error
from polarmap.worker.task_records import describe_error

if TYPE_CHECKING:
    from polarmap.executors.worker_pool import AttemptKey
    from polarmap.storage import Store


class OpenStoreLocation(StoreLocation):
    """The location of blocks in a user-defined store, together with the object that reads from this store.

    Only the process that has opened the store can use this location. Workers must ask this process to read
    their blocks.
    """

    __slots__ = ("store",)

    def __init__(self, store: Store, encryption: Any = None) -> None:
        super().__init__(store.name, encryption=encryption)
        self.store = store

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OpenStoreLocation) and self.store is other.store and super().__eq__(other)

    __hash__ = StoreLocation.__hash__

    def with_encryption(self, encryption: Any) -> OpenStoreLocation:
        """Return the location of objects in the same store that are encrypted with `encryption`."""
        return OpenStoreLocation(self.store, encryption)


class FinishedRead(NamedTuple):
    """The outcome of a read for a worker: the bytes that it has requested, or the failure to read them."""

    attempt_key: AttemptKey
    segment: Segment
    data: bytes
    failure: Failure | None


class StoreReader:
    """Reads blocks on behalf of workers, from a store that only this process can access.

    The reads run on daemon threads and have a time limit, because a store may hang.

    Parameters
    ----------
    store : Store
        The user-defined store that contains the blocks.
    fetch_timeout : float
        The time limit in seconds for reading all segments of a block, starting with the first request.
    on_finished : callable
        Called without arguments, on any thread, when `collect_finished` has results to return.
    """

    def __init__(self, store: Store, fetch_timeout: float, on_finished: Callable[[], None]) -> None:
        self._store, self._fetch_timeout, self._on_finished = store, fetch_timeout, on_finished
        self._finished: SimpleQueue[FinishedRead] = SimpleQueue()
        self._deadlines: dict[AttemptKey, float] = {}

    @classmethod
    def for_blocks(
        cls, blocks: TaskBlocks, fetch_timeout: float, on_finished: Callable[[], None]
    ) -> StoreReader | None:
        """Return a reader for the store that contains the blocks of a map.

        Return None if workers can read the blocks themselves, or receive them with their tasks.
        """
        location = blocks.location
        if not isinstance(location, OpenStoreLocation):
            return None
        return cls(location.store, fetch_timeout, on_finished)

    def start(self, attempt_key: AttemptKey, segment: Segment) -> None:
        """Start to read a segment (a byte range of a stored block) that a worker has requested for a task.

        `collect_finished` returns the bytes later.
        """
        deadline = self._deadlines.setdefault(attempt_key, time.monotonic() + self._fetch_timeout)
        run_in_daemon_thread(partial(self._read, attempt_key, segment, deadline))

    def collect_finished(self) -> list[FinishedRead]:
        """Return the reads that have succeeded or failed since the last call."""
        finished: list[FinishedRead] = []
        try:
            while True:
                finished.append(self._finished.get_nowait())
        except Empty:
            return finished

    def _read(self, attempt_key: AttemptKey, segment: Segment, deadline: float) -> None:
        data, failure = b"", None
        try:
            data = call_with_timeout(partial(self._get, segment), deadline - time.monotonic())
        except CallTimeoutError:
            _, task, _ = attempt_key
            timeout_error = make_fetch_timeout_error(task, self._fetch_timeout, self._store.name, segment)
            failure = Failure(FailureKind.LOST, type(timeout_error).__name__, str(timeout_error))
        except Exception as error:
            failure = to_failure(describe_error(error))
        self._finished.put(FinishedRead(attempt_key, segment, data, failure))
        self._on_finished()

    def _get(self, segment: Segment) -> bytes:
        try:
            return self._store.get(segment.key, segment.offset, segment.offset + segment.size)
        except MissingObjectError:
            raise make_missing_segment_error(segment) from None
