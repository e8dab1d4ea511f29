"""Check the TCP proxy of the tests: it delays, throttles and cuts without losing bytes."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from pool_processes import check, until
from slow_links import BUFFER_BYTES, Pipe, SlowLinks, slow_links
from worker_sites import ThreadSite, pool_of


class EchoServer:
    """A server that sends back the bytes it receives, while it may read."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.may_read = threading.Event()
        self.may_read.set()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # The socket was closed.
            while True:
                threading.Thread(target=self._echo, args=(self.socket.accept()[0],), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := (self.may_read.wait() and connection.recv(1 << 16)):
                connection.sendall(data)


@pytest.fixture
def server() -> Iterator[EchoServer]:
    echo_server = EchoServer()
    yield echo_server
    echo_server.may_read.set()
    echo_server.socket.close()


@pytest.fixture
def links(server: EchoServer) -> Iterator[SlowLinks]:
    proxy = SlowLinks(server.socket.getsockname())
    yield proxy
    proxy.close()
    assert not any(thread.name == "slow-links" for thread in threading.enumerate())


@pytest.fixture
def caller(links: SlowLinks) -> Iterator[socket.socket]:
    """Connect to the proxy, and wait until it has accepted the connection."""
    with socket.create_connection(links.endpoint, 30.0) as connection:
        assert exchange(connection, b"hello") == b"hello"
        yield connection


def exchange(caller: socket.socket, data: bytes) -> bytes:
    """Send data and read the same number of bytes."""
    sender = threading.Thread(target=caller.sendall, args=(data,))
    sender.start()
    echoed = bytearray()
    while len(echoed) < len(data) and (received := caller.recv(1 << 16)):
        echoed += received
    sender.join()
    return bytes(echoed)


# --- a pipe, by a clock of the test --------------------------------------------------------------


def test_a_pipe_at_full_speed_passes_all_bytes_immediately() -> None:
    pipe = Pipe(0.0)
    pipe.put(b"abc", 1.0)
    assert pipe.take(1.0) == b"abc"
    assert pipe.is_empty()


def test_a_pipe_delays_each_byte() -> None:
    pipe = Pipe(0.0)
    pipe.delay = 0.5
    pipe.put(b"a", 1.0)
    pipe.put(b"b", 1.25)
    assert pipe.seconds_to_next(1.25) == 0.25
    assert [pipe.take(now) for now in (1.49, 1.5, 1.74, 1.75)] == [b"", b"a", b"", b"b"]


def test_a_pipe_passes_as_many_bytes_as_its_rate_allows() -> None:
    pipe = Pipe(0.0)
    pipe.rate = 1000.0
    pipe.put(bytes(3000), 10.0)  # The idle time before saves up no bytes.
    assert [len(pipe.take(now)) for now in (10.0, 10.5, 11.0, 13.0)] == [0, 500, 500, 2000]
    assert pipe.sent_bytes == 3000


def test_a_pipe_may_become_faster_while_bytes_wait() -> None:
    pipe = Pipe(0.0)
    pipe.rate = 1.0
    pipe.put(bytes(1000), 0.0)
    assert len(pipe.take(10.0)) == 10
    pipe.rate = float("inf")
    assert len(pipe.take(10.0)) == 990


def test_a_pipe_takes_no_more_than_its_buffer() -> None:
    pipe = Pipe(0.0)
    pipe.rate, count = 1.0, 0
    while room := pipe.room():
        pipe.put(bytes(room), 0.0)
        count += room
    assert count == BUFFER_BYTES


# --- connections ---------------------------------------------------------------------------------


def test_bytes_pass_unchanged_and_are_counted(links: SlowLinks, caller: socket.socket) -> None:
    data = os.urandom(3_000_000)
    assert exchange(caller, data) == data
    assert links[0].bytes_to_target == links[0].bytes_to_caller == len(data) + 5


def test_a_throttled_link_takes_at_least_the_time_of_its_rate(
    links: SlowLinks, caller: socket.socket
) -> None:
    links[0].rate, links[0].delay = 1e6, 0.02
    data, began = os.urandom(500_000), time.monotonic()
    assert exchange(caller, data) == data
    assert time.monotonic() - began >= 0.8 * 0.5


def test_a_sender_on_a_slow_link_has_to_wait(
    links: SlowLinks, caller: socket.socket, server: EchoServer
) -> None:
    links[0].rate = 1.0
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    caller.settimeout(0.2)
    with pytest.raises(TimeoutError):  # The buffers of the kernel and of the proxy are full.
        caller.sendall(bytes(8_000_000))
    assert links[0].bytes_to_target < 1000


def test_a_receiver_that_does_not_read_stops_its_sender(
    links: SlowLinks, caller: socket.socket, server: EchoServer
) -> None:
    server.may_read.clear()
    caller.settimeout(0.2)
    with pytest.raises(TimeoutError):
        caller.sendall(bytes(100_000_000))
    assert links[0].bytes_to_target < 64e6


def test_a_cut_link_is_silent_until_it_is_restored(links: SlowLinks, caller: socket.socket) -> None:
    links[0].cut()
    caller.sendall(b"lost for now")
    caller.settimeout(0.3)
    with pytest.raises(TimeoutError):
        caller.recv(1)
    links.restore()
    caller.settimeout(30.0)
    assert exchange(caller, b"") == b""
    assert caller.recv(100)[:4] == b"lost"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can drop packets of a socket")
def test_a_cut_link_acknowledges_nothing(links: SlowLinks, caller: socket.socket) -> None:
    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
    links[0].cut()
    caller.sendall(b"x")
    with pytest.raises(TimeoutError, match="Connection timed out"):
        caller.recv(1)


def test_only_the_chosen_links_change(links: SlowLinks, caller: socket.socket) -> None:
    with socket.create_connection(links.endpoint, 30.0) as second:
        assert exchange(second, b"hello") == b"hello"
        for link in links.first(1):
            link.cut()
        assert exchange(second, b"still here") == b"still here"
        assert [link.index for link in links.select(lambda link: link.is_cut)] == [0]


def test_both_sides_see_the_end_of_a_closed_link(links: SlowLinks, caller: socket.socket) -> None:
    links[0].close()
    assert caller.recv(1) == b""
    assert links.first(1) == []


def test_the_end_of_one_side_reaches_the_other_after_its_data(links: SlowLinks, server: EchoServer) -> None:
    links.on_connect = lambda link: setattr(link, "delay", 0.1)
    with socket.create_connection(links.endpoint, 30.0) as caller:
        caller.sendall(b"last words")
    assert until(lambda: len(links) == 1 and links[0].is_closed)
    assert links[0].bytes_to_target == 10


def test_a_new_link_may_be_cut_from_the_beginning(links: SlowLinks) -> None:
    links.on_connect = lambda link: link.cut()
    with socket.create_connection(links.endpoint, 30.0) as caller:
        caller.settimeout(0.3)
        caller.sendall(b"hello")
        with pytest.raises(TimeoutError):
            caller.recv(1)


def test_a_link_ends_if_the_target_is_unavailable(links: SlowLinks, server: EchoServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        links.target = gone.getsockname()
    with socket.create_connection(links.endpoint, 30.0) as caller:
        assert caller.recv(1) == b""


def test_workers_of_a_pool_call_the_proxy() -> None:
    with slow_links() as links, pool_of(ThreadSite()) as pool:
        check(pool)
        assert len(links) >= 6
        assert all(link.bytes_to_target and link.bytes_to_caller for link in links.first(6))
