"""The driver's ends of the channels to workers that stay."""

from __future__ import annotations

import contextlib
import pickle
import select
import socket
from collections.abc import Iterable
from typing import Any, Protocol

from polarmap.worker.authentication import Seals
from polarmap.worker.frames import ORDER, FrameError, Frames, Message, frame
from polarmap.worker.messages import plain

READ_BYTES = 1 << 18
SEND_SECONDS = 5.0  # that a worker which waits for a message may take to read it
SLOWEST = 1e5  # bytes per second of a network


class Link(Protocol):
    """The driver's end of a channel to one worker."""

    def fileno(self) -> int:
        """Of a descriptor that is readable when the worker has said something, or is gone."""
        ...

    def send(self, message: tuple[Any, ...]) -> bool:
        """Whether the worker was told."""
        ...

    def receive(self) -> tuple[list[Message], bool]:
        """What it has said since the last time, and whether it will say more."""
        ...

    def hang_up(self) -> None:
        """The worker is gone, or is to go: whoever waits for it sees that."""
        ...

    def close(self) -> None:
        """Say nothing more, hear nothing more: the worker ends."""
        ...


class SocketLink:
    """A stream socket.

    seals : of its two directions; None where nobody else can write to it.
    is_plain : whether messages must be read where polarmap may not be installed.
    """

    def __init__(self, connection: socket.socket, seals: Seals | None = None, is_plain: bool = False) -> None:
        self._connection, self._seals, self._is_plain = connection, seals, is_plain
        self._frames = Frames(seals and seals.to_driver)

    def fileno(self) -> int:
        """Of the socket."""
        return self._connection.fileno()

    def send(self, message: tuple[Any, ...]) -> bool:
        """Whether the worker was told."""
        data = pickle.dumps(plain(message) if self._is_plain else message, pickle.HIGHEST_PROTOCOL)
        try:
            self._connection.settimeout(SEND_SECONDS + len(data) / SLOWEST)  # for all of it
            seal = self._seals and self._seals.to_worker
            self._connection.sendall(frame(Message(ORDER, header=data), seal))
        except OSError:
            return False
        return True

    def receive(self) -> tuple[list[Message], bool]:
        """What it has said since the last time, and whether it will say more."""
        said: list[Message] = []
        try:
            self._connection.setblocking(False)
            while True:
                data = self._connection.recv(READ_BYTES)
                said += self._frames.of(data)
                if len(data) < READ_BYTES:
                    return said, bool(data)
        except BlockingIOError:
            return said, True
        except (OSError, FrameError):
            return said, False

    def hang_up(self) -> None:
        """End the connection; the descriptor stays."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()


def readable(links: Iterable[Link]) -> set[Link]:
    """Those whose worker has said something, or is gone."""
    poll, found = select.poll(), dict[int, Link]()
    for link in links:
        with contextlib.suppress(ValueError, OSError):
            poll.register(link, select.POLLIN)
            found[link.fileno()] = link
    return {found[descriptor] for descriptor, _ in poll.poll(0)} if found else set()
