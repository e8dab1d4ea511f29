"""Encode and decode the messages between a driver and its fork server, which forks worker processes.

Requests of the driver and events of the fork server have a fixed size and are sent over a socket pair. This
module also runs in the fork server, so it imports only the standard library.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

REQUEST_FORMAT, EVENT_FORMAT = ">cQ", ">Qi"  # `struct` formats of ForkServerRequest and WorkerExitEvent
REQUEST_BYTES, EVENT_BYTES = struct.calcsize(REQUEST_FORMAT), struct.calcsize(EVENT_FORMAT)
SERVER_READY = b"r"  # The fork server sends this byte once it has started.


class ForkServerCommand(bytes, Enum):
    """The commands that a driver sends to its fork server."""

    FORK = b"f"  # Fork a worker. Its end of a socket pair is sent together with the request.
    KILL = b"k"  # Kill a worker and the processes that it has started.


class ForkServerRequest(NamedTuple):
    """A driver's request to its fork server to fork or kill a worker process."""

    command: ForkServerCommand
    worker_id: int

    def encode(self) -> bytes:
        """Return the request as bytes, to be sent over a socket."""
        return struct.pack(REQUEST_FORMAT, *self)

    @classmethod
    def decode(cls, data: bytes) -> ForkServerRequest:
        """Decode a request from the bytes that `encode` returned."""
        command, worker_id = struct.unpack(REQUEST_FORMAT, data)
        return cls(ForkServerCommand(command), worker_id)


class WorkerExitEvent(NamedTuple):
    """A fork server's report that a worker process has exited.

    Attributes
    ----------
    worker_id : int
        The id of the worker, which the driver has chosen in its FORK request.
    wait_status : int
        The exit status of the process, as returned by `os.waitpid`.
    """

    worker_id: int
    wait_status: int

    def encode(self) -> bytes:
        """Return the event as bytes, to be sent over a socket."""
        return struct.pack(EVENT_FORMAT, *self)

    @classmethod
    def decode_all(cls, data: bytes) -> Iterator[WorkerExitEvent]:
        """Decode a byte string with one or more complete events, and return an iterator over them."""
        return map(cls._make, struct.iter_unpack(EVENT_FORMAT, data))
