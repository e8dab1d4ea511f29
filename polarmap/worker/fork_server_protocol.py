"""The requests of a driver to the fork server of its local workers, and the events that it reports.

Runs in the fork server too: imports the standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

REQUEST_FORMAT, EVENT_FORMAT = ">cQ", ">Qi"
REQUEST_BYTES, EVENT_BYTES = struct.calcsize(REQUEST_FORMAT), struct.calcsize(EVENT_FORMAT)
SERVER_READY = b"r"  # the first byte that the fork server sends


class ForkServerCommand(bytes, Enum):
    """What the driver asks of the fork server."""

    FORK = b"f"  # fork a worker, which serves the socket that travels with the request
    KILL = b"k"  # kill a worker, and what it has started


class ForkServerRequest(NamedTuple):
    """A request of the driver about one worker."""

    command: ForkServerCommand
    worker_id: int

    def encode(self) -> bytes:
        """Return the request as it travels."""
        return struct.pack(REQUEST_FORMAT, *self)

    @classmethod
    def decode(cls, data: bytes) -> ForkServerRequest:
        """Return the request that `encode` wrote."""
        command, worker_id = struct.unpack(REQUEST_FORMAT, data)
        return cls(ForkServerCommand(command), worker_id)


class WorkerExitEvent(NamedTuple):
    """An event of the fork server: a worker has ended.

    wait_status : as `os.waitpid` returns it.
    """

    worker_id: int
    wait_status: int

    def encode(self) -> bytes:
        """Return the event as it travels."""
        return struct.pack(EVENT_FORMAT, *self)

    @classmethod
    def decode_all(cls, data: bytes) -> Iterator[WorkerExitEvent]:
        """Yield all events in bytes that end with the end of an event."""
        return map(cls._make, struct.iter_unpack(EVENT_FORMAT, data))
