"""A TCP proxy whose connections can be delayed, throttled and cut while a test runs.

`SlowLinks` forwards each connection that it accepts to a target. Each connection is a `SlowLink` with its own
settings, which a test may change at any time. `slow_links()` puts a proxy between a pool and its workers::

    with slow_links() as links, Pool(client, workers=32) as pool:
        coded_map(f, A, executor=pool)
        for link in links.first(8):  # the links of the first 8 workers that have called
            link.rate = 20e6 / 8  # bytes per second in each direction; inf: as fast as possible
            link.delay = 0.05  # seconds one way
        links[8].cut()  # No data passes any more, and neither end is informed.
        links[9].close()  # both sides see the end of the connection
        coded_map(f, A, executor=pool)
        links.restore()  # every link that is not closed: no delay, full speed, not cut

`links.on_connect` is called with each new link before it carries any data. For example, `SlowLink.cut` makes
workers that start later silent from the beginning.

On Linux, `cut` drops packets inside the kernel: neither data nor keepalive probes are acknowledged, as if the
cable had been pulled. On other systems, `cut` stops reading and writing, and the kernel still answers probes.
"""

from __future__ import annotations

import contextlib
import ctypes
import selectors
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from math import inf

import pytest

from polarmap.executors import remote_workers

# Bytes that may wait for transmission in each direction; a sender blocks beyond this.
BUFFER_BYTES = 64 << 10
WINDOW_BYTES = 4 << 20  # Bytes that may be in flight in each direction.
SEGMENT_BYTES = 1448  # Data bytes in an Ethernet packet.
CHUNK_BYTES = 16 << 10  # The most bytes that are read at a time.
# Linux: socket options, from asm-generic/socket.h, and the filter program `ret #0`, which drops each packet.
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0), 8)


class Pipe:
    """One direction of a link: bytes wait for transmission, then are in flight for `delay` seconds.

    Parameters
    ----------
    now : float
        The time in seconds at which the pipe is created.
    """

    def __init__(self, now: float) -> None:
        self.delay, self.rate = 0.0, inf
        self.sent_bytes = 0  # Bytes that have left the pipe.
        self._waiting, self._travelling = bytearray(), deque[tuple[float, bytes]]()
        self._n_travelling = 0
        self._tokens, self._filled_at = 0.0, now

    def room(self) -> int:
        """Return the number of bytes that may be put into the pipe now."""
        free = BUFFER_BYTES - len(self._waiting)
        window = BUFFER_BYTES + (WINDOW_BYTES if self.delay else 0)
        return max(0, min(free, CHUNK_BYTES, window - self._n_travelling))

    def put(self, data: bytes, now: float) -> None:
        """Add bytes that wait for transmission."""
        self._transmit(now)
        self._waiting += data
        self._transmit(now)

    def take(self, now: float) -> bytes:
        """Return and remove the bytes that have arrived."""
        self._transmit(now)
        arrived = []
        while self._travelling and self._travelling[0][0] <= now:
            arrived.append(self._travelling.popleft()[1])
        data = b"".join(arrived)
        self._n_travelling -= len(data)
        self.sent_bytes += len(data)
        return data

    def seconds_to_next(self, now: float) -> float:
        """Return the seconds until `take` may return bytes again; inf if the pipe is empty."""
        self._transmit(now)
        arrival = self._travelling[0][0] - now if self._travelling else inf
        burst = min(len(self._waiting), max(1, int(self.rate * 0.01)) if self.rate < inf else 1)
        departure = max(0.0, burst - self._tokens) / self.rate if self._waiting and self.rate > 0 else inf
        return max(0.0, min(arrival, departure + self.delay))

    def is_empty(self) -> bool:
        """Return whether nothing waits or travels."""
        return not (self._waiting or self._travelling)

    def _transmit(self, now: float) -> None:
        """Let as many of the waiting bytes depart as the rate allows."""
        if self.rate == inf:
            count, self._tokens = len(self._waiting), 0.0
        else:
            # Tokens add up while bytes wait: an idle link saves up none.
            filled = self._tokens + self.rate * max(0.0, now - self._filled_at)
            self._tokens = filled if self._waiting else 0.0
            count = min(len(self._waiting), int(self._tokens))
            self._tokens -= count
        self._filled_at = now
        if count:
            arrival = max(now + self.delay, self._travelling[-1][0] if self._travelling else 0.0)
            self._travelling.append((arrival, bytes(self._waiting[:count])))
            self._n_travelling += count
            del self._waiting[:count]


class SlowLink:
    """A forwarded connection. Its pipes lead from the caller to the target, and back.

    Attributes
    ----------
    index : int
        The position of this link among all links of its proxy.
    is_cut, is_closed : bool
        Whether `cut` or `close` was called, or the link has ended.
    """

    def __init__(self, index: int, caller: socket.socket, wake: Callable[[], None]) -> None:
        self.index, self.is_cut, self.is_closed = index, False, False
        self.sockets = [caller]  # The target is appended once it has been reached.
        self.pipes = Pipe(time.monotonic()), Pipe(time.monotonic())
        # Bytes that have arrived, for the target and for the caller.
        self.outgoing = bytearray(), bytearray()
        self.has_ended = [False, False]  # whether the caller and the target will send no more
        self.wake, self.lock = wake, threading.RLock()

    @property
    def delay(self) -> float:
        """The seconds that each byte travels, in each direction."""
        return self.pipes[0].delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        self._configure(seconds, self.rate)

    @property
    def rate(self) -> float:
        """The number of bytes per second in each direction."""
        return self.pipes[0].rate

    @rate.setter
    def rate(self, bytes_per_second: float) -> None:
        self._configure(self.delay, bytes_per_second)

    @property
    def bytes_to_target(self) -> int:
        """The number of bytes forwarded to the target, such as results of a worker."""
        return self.pipes[0].sent_bytes

    @property
    def bytes_to_caller(self) -> int:
        """The number of bytes forwarded to the caller, such as blocks for a worker."""
        return self.pipes[1].sent_bytes

    def cut(self) -> None:
        """Stop all traffic without informing either side."""
        with self.lock:
            if not self.is_closed:
                self.is_cut = True
                for connection in self.sockets:
                    drop_packets(connection, True)
        self.wake()

    def close(self) -> None:
        """Close both connections, which both sides notice immediately unless the link is cut."""
        with self.lock:
            self.is_closed = True
            for connection in self.sockets:
                with contextlib.suppress(OSError):  # not connected any more
                    connection.shutdown(socket.SHUT_RDWR)
        self.wake()

    def restore(self) -> None:
        """End delay, throttling and cut. After a cut of s seconds, TCP resumes within about s seconds."""
        with self.lock:
            if self.is_cut and not self.is_closed:
                for connection in self.sockets:
                    drop_packets(connection, False)
            self.is_cut = False
        self._configure(0.0, inf)

    def _configure(self, delay: float, rate: float) -> None:
        with self.lock:
            for pipe in self.pipes:
                pipe.delay, pipe.rate = delay, rate
        self.wake()


class SlowLinks:
    """A proxy that listens on a port of this machine and forwards each connection to `target`.

    Parameters
    ----------
    target : (str, int), optional
        Host and port; may be set later, before the first connection.
    on_connect : callable, optional
        Called with each new `SlowLink`, on the thread that forwards.
    """

    def __init__(
        self, target: tuple[str, int] | None = None, on_connect: Callable[[SlowLink], None] | None = None
    ) -> None:
        self.target, self.on_connect = target, on_connect
        self._links: list[SlowLink] = []
        self._listener = socket.socket()
        limit_buffers(self._listener)  # Accepted sockets inherit the limits.
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(256)
        self.endpoint: tuple[str, int] = self._listener.getsockname()
        self._waker, self._woken = socket.socketpair()
        for one in (self._listener, self._waker, self._woken):
            one.setblocking(False)
        self._is_over = False
        self._thread = threading.Thread(target=self._forward, name="slow-links", daemon=True)
        self._thread.start()

    def __getitem__(self, index: int) -> SlowLink:
        return self._links[index]

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[SlowLink]:
        return iter(list(self._links))

    def first(self, count: int) -> list[SlowLink]:
        """Return the `count` open links that were accepted first."""
        return self.select(lambda link: not link.is_closed)[:count]

    def select(self, predicate: Callable[[SlowLink], bool]) -> list[SlowLink]:
        """Return the links for which `predicate(link)` is true, in order of acceptance."""
        return list(filter(predicate, self))

    def restore(self) -> None:
        """Restore all links, including links accepted later."""
        self.on_connect = None
        for link in self:
            link.restore()

    def close(self) -> None:
        """Close all links and the port, and end the thread."""
        self._is_over = True
        self._wake()
        self._thread.join(10.0)
        for link in self:
            link.close()
            for connection in link.sockets:
                connection.close()
        for one in (self._listener, self._waker, self._woken):
            one.close()

    def _wake(self) -> None:
        # The socket is closed, or full, so that the thread wakes up anyway.
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    def _forward(self) -> None:
        while not self._is_over:
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                selector.register(self._woken, selectors.EVENT_READ)
                pause = min((register(link, selector) for link in self), default=inf)
                ready_events = {
                    key.fileobj: events for key, events in selector.select(None if pause == inf else pause)
                }
            if self._woken in ready_events:
                self._woken.recv(1 << 16)
            if self._listener in ready_events:
                self._accept()
            for link in self:
                move_bytes(link, ready_events)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # The caller has already disconnected.
            caller, _ = self._listener.accept()
            link = SlowLink(len(self._links), caller, self._wake)
            caller.setblocking(False)
            try:
                assert self.target is not None, "no target yet"
                target = socket.socket()
                link.sockets.append(target)
                limit_buffers(target)
                target.connect(self.target)
                target.setblocking(False)
                for connection in link.sockets:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            except OSError:
                link.close()
            self._links.append(link)
            if self.on_connect is not None:
                self.on_connect(link)


def register(link: SlowLink, selector: selectors.BaseSelector) -> float:
    """Register the sockets of `link` for its possible operations; return the seconds until it can do more."""
    with link.lock:
        if link.is_cut or (link.is_closed and not link.sockets):
            return inf
        if link.is_closed:
            return 0.0  # `move_bytes` closes the sockets
        pause, now = inf, time.monotonic()
        for side, connection in enumerate(link.sockets):
            to_here, from_here = link.outgoing[1 - side], link.pipes[side]
            # Data for a receiver that does not read stays in the pipe, so that its sender blocks.
            events = selectors.EVENT_WRITE if to_here else 0
            if not link.has_ended[side] and from_here.room():
                events |= selectors.EVENT_READ
            if events:
                selector.register(connection, events)
            if not link.outgoing[side]:
                pause = min(pause, from_here.seconds_to_next(now))
        return pause


def move_bytes(link: SlowLink, ready_events: dict[object, int]) -> None:
    """Read, forward and write everything that is possible without blocking."""
    with link.lock:
        if link.is_cut:
            return
        try:
            for side, connection in enumerate(link.sockets if not link.is_closed else ()):
                pipe, outgoing, receiver = link.pipes[side], link.outgoing[side], link.sockets[1 - side]
                now = time.monotonic()
                if ready_events.get(connection, 0) & selectors.EVENT_READ and (room := pipe.room()):
                    data = connection.recv(room)
                    link.has_ended[side] = not data
                    pipe.put(data, now)
                if not outgoing:
                    outgoing += pipe.take(now)
                if outgoing:
                    with contextlib.suppress(BlockingIOError):
                        del outgoing[: receiver.send(outgoing)]
                if link.has_ended[side] and pipe.is_empty() and not outgoing:
                    link.close()
        except BlockingIOError:
            pass
        except OSError:  # the connection was reset
            link.close()
        if link.is_closed:
            for connection in link.sockets:
                connection.close()
            link.sockets.clear()


def limit_buffers(connection: socket.socket) -> None:
    """Limit the kernel's buffers to a size as on a network, since loopback has larger packets and buffers."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    if sys.platform == "linux":
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)


def drop_packets(connection: socket.socket, is_dropped: bool) -> None:
    """Make the kernel drop all packets for a socket, or accept them again. Do nothing if not on Linux."""
    if sys.platform == "linux" and connection.fileno() >= 0:
        with contextlib.suppress(OSError):  # no filter was attached
            if is_dropped:
                program = struct.pack("HL", 1, ctypes.addressof(DROP_ALL))
                connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
            else:
                connection.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


@contextlib.contextmanager
def slow_links(
    on_connect: Callable[[SlowLink], None] | None = None, is_near: bool = False
) -> Iterator[SlowLinks]:
    """Make the workers of the next pool call a proxy, which forwards to where the pool listens.

    Parameters
    ----------
    is_near : bool
        Whether Dask workers on this machine may map blocks from shared memory; otherwise blocks are sent.
    """
    links = SlowLinks(on_connect=on_connect)
    with contextlib.closing(links), pytest.MonkeyPatch.context() as patched:
        if not is_near:
            patched.setattr("polarmap.executors.dask.is_every_host_local", lambda hosts: False)
        listener_type = remote_workers.WorkerListener
        patched.setattr(remote_workers, "WorkerListener", partial(_listen_behind, links, listener_type))
        yield links


def _listen_behind(links: SlowLinks, listener_type: Callable[..., object], *args: object) -> object:
    """Create a listener of a pool, and make workers call the proxy's port instead of its port."""
    listener: object = listener_type(*args)
    links.target = "127.0.0.1", listener.endpoints[0][1]  # type: ignore[attr-defined]
    listener.endpoints = (links.endpoint,)  # type: ignore[attr-defined]
    return listener
