"""The driver's ends of the channels to workers that stay."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.worker.frames import ORDER, REPLIES, FrameError, Frames, Message, Seals, frame

READ_BYTES = 1 << 18
SEND_SECONDS = 5.0  # that a worker which waits for a message may take to read it
SLOWEST = 1e5  # bytes per second of a network


class WakeSignal:
    """A descriptor by which one thread ends the wait of another: readable from `set` to `clear`.

    >>> signal = WakeSignal()
    >>> signal.set(), signal.clear(), signal.clear(), signal.close(), signal.set()
    (None, True, False, None, None)
    """

    _read = _write = -1

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a destructor may set it while its own thread does
        self._is_set = False
        try:
            self._read, self._write = os.pipe()
        except OSError as error:
            raise ExecutorError(f"this process can open no descriptor for a map: {error}") from error

    def fileno(self) -> int:
        """Of the descriptor to poll; -1 once it is closed."""
        return self._read

    def set(self) -> None:
        """Let it be readable; nothing once it is closed. Any thread may do so at any time."""
        with self._lock:
            if self._write != -1 and not self._is_set:
                self._is_set = True
                os.write(self._write, b".")

    def clear(self) -> bool:
        """Whether it was set."""
        with self._lock:
            if self._is_set and self._read != -1:
                os.read(self._read, 1)
            was_set, self._is_set = self._is_set, False
            return was_set

    def close(self) -> None:
        """Close the descriptor. Safe to call twice."""
        with self._lock:
            self.__del__()

    def __del__(self) -> None:  # without the lock, which a thread may have held when this process was forked
        descriptors, self._read, self._write = {self._read, self._write} - {-1}, -1, -1
        for descriptor in descriptors:
            os.close(descriptor)


class SocketLink:
    """A stream socket.

    seals : of its two directions; None where nobody else can write to it.
    """

    def __init__(self, connection: socket.socket, seals: Seals | None = None) -> None:
        self._connection, self._seals = connection, seals
        self._frames = Frames(seals and seals.to_driver)

    def fileno(self) -> int:
        """Of the socket, which is readable when the worker has said something, or is gone."""
        return self._connection.fileno()

    def send(self, message: tuple[Any, ...]) -> bool:
        """Whether the worker was told."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
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
        """The worker is gone, or is to go: whoever waits for it sees that. The descriptor stays."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Say nothing more, hear nothing more: the worker ends."""
        self._connection.close()


class ObjectLink:
    """Objects in a storage, which a thread of `ObjectLinks` writes and reads.

    Parameters
    ----------
    post : callable
        Takes the messages to the worker; the last is "end".

    Attributes
    ----------
    count : int
        Of the latest message.
    unanswered : int
        Calls to which it has not replied.
    heard : float
        When the worker gave its latest sign of life.
    doubts : int
        How often it seemed to be done though no reply had come.
    is_there : bool
        Whether it may say more.
    """

    def __init__(self, post: Callable[[tuple[Any, ...]], None]) -> None:
        self._post = post
        self.count = self.unanswered = 0
        self.heard, self.doubts = time.monotonic(), 0
        self._frames, self._said = Frames(), deque[Message]()
        self.is_there = True
        self._lock, self._owner = threading.Lock(), os.getpid()
        self._news = WakeSignal()

    def number_message(self, is_call: bool) -> int:
        """The number of the next message to the worker, who replies to a call."""
        with self._lock:
            self.count, self.doubts, self.unanswered = self.count + 1, 0, self.unanswered + is_call
            return self.count

    def deliver(self, data: bytes) -> None:
        """Bytes that the worker has sent."""
        with self._lock:
            try:
                said = list(self._frames.of(data))
            except FrameError:
                self.is_there = False
            else:
                self._said += said
                self.unanswered -= sum(message.kind in REPLIES for message in said)
        self._news.set()

    def hang_up(self) -> None:
        """The worker is gone."""
        self.is_there = False
        self._news.set()

    def fileno(self) -> int:
        """Of a descriptor that is readable when the worker has said something."""
        return self._news.fileno()

    def send(self, message: tuple[Any, ...]) -> bool:
        """Whether the worker was told, as far as anybody knows."""
        try:
            self._post(message)
        except Exception:
            return False
        return True

    def receive(self) -> tuple[list[Message], bool]:
        """What it has said since the last time, and whether it will say more."""
        self._news.clear()
        with self._lock:
            said = list(self._said)
            self._said.clear()
        return said, self.is_there

    def close(self) -> None:
        """Tell the worker to end, unless it is that of a process that this one was forked of."""
        if os.getpid() == self._owner:
            self.send(("end",))
        self._news.close()


Link = SocketLink | ObjectLink
Join = Callable[[int, Link, str], None]  # with the number of a worker, its link and the name of the channel
