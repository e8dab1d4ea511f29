"""Encode requests of a driver to its fork server, and the events that the fork server reports.

Requests and events have a fixed size and are sent over a socket pair. Runs in the fork server too: imports
the standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

REQUEST_FORMAT, EVENT_FORMAT = ">cQ", ">Qi"  # `struct` formats of the two tuples below
REQUEST_BYTES, EVENT_BYTES = struct.calcsize(REQUEST_FORMAT), struct.calcsize(EVENT_FORMAT)
SERVER_READY = b"r"  # the first byte that the fork server sends


class ForkServerCommand(bytes, Enum):
    """The commands of a driver to its fork server."""

    FORK = b"f"  # fork a worker, which serves the socket that is sent with the request
    KILL = b"k"  # kill a worker and the processes that it has started


class ForkServerRequest(NamedTuple):
    """A request of the driver about one worker."""

    command: ForkServerCommand
    worker_id: int

    def encode(self) -> bytes:
        """Return the request as bytes."""
        return struct.pack(REQUEST_FORMAT, *self)

    @classmethod
    def decode(cls, data: bytes) -> ForkServerRequest:
        """Return the request that `encode` wrote."""
        command, worker_id = struct.unpack(REQUEST_FORMAT, data)
        return cls(ForkServerCommand(command), worker_id)


class WorkerExitEvent(NamedTuple):
    """The event that a worker process has exited.

    Attributes
    ----------
    worker_id : int
        The id that the driver has passed in its FORK request.
    wait_status : int
        The exit status, as `os.waitpid` returns it.
    """

    worker_id: int
    wait_status: int

    def encode(self) -> bytes:
        """Return the event as bytes."""
        return struct.pack(EVENT_FORMAT, *self)

    @classmethod
    def decode_all(cls, data: bytes) -> Iterator[WorkerExitEvent]:
        """Yield the events in `data`, which must end at the end of an event."""
        return map(cls._make, struct.iter_unpack(EVENT_FORMAT, data))
