"""Tests of both ends of a socket channel: order, partial sends, stalls, authentication and closing."""

from __future__ import annotations

import os
import select
import socket
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predicates import assert_only_asks
from stored_calls import NONSENSE, nonsense

from polarmap.worker import socket_channel
from polarmap.worker.messages import (
    MAX_CHUNK_BYTES,
    ChannelAuthenticators,
    Message,
    MessageAuthenticator,
    MessageKind,
    encode_frame,
)
from polarmap.worker.polling import wait_until_ready
from polarmap.worker.socket_channel import SocketChannel, make_worker_channel

SENT = [
    Message(
        MessageKind.TASK_REPLY, (number, 2 * number, -1), bytes(number), bytes(3 * number), number % 2 == 1
    )
    for number in range(20)
]


def make_authenticators(*names: bytes) -> ChannelAuthenticators:
    outgoing, incoming = map(MessageAuthenticator, names)
    return ChannelAuthenticators(outgoing, incoming)


@pytest.fixture(params=[False, True])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[SocketChannel, SocketChannel]]:
    """Yield the driver's and the worker's end of a channel, with or without authentication."""
    driver_socket, worker_socket = socket.socketpair()
    link = SocketChannel(
        driver_socket, make_authenticators(b"to worker", b"to driver") if request.param else None
    )
    channel = make_worker_channel(
        worker_socket, make_authenticators(b"to driver", b"to worker") if request.param else None
    )
    with closing(link), closing(channel):
        yield link, channel


def send_completely(end: SocketChannel, *messages: Message) -> bool:
    """Send messages, flush until all are written, and return False if the connection was lost."""
    is_there = end.send(*messages)
    while is_there and end.has_unsent:
        assert wait_until_ready([end], select.POLLOUT, 10.0)
        is_there = end.flush()
    return is_there


def readable(end: SocketChannel) -> bool:
    return bool(wait_until_ready([end], select.POLLIN, 0.0))


def test_messages_are_sent_in_order_in_both_directions(pair: tuple[SocketChannel, SocketChannel]) -> None:
    for sender, receiver in (pair, pair[::-1]):
        assert not readable(receiver)
        assert receiver.receive() == ([], True)
        for message in SENT[:3]:
            assert sender.send(message)
        assert readable(receiver)
        assert receiver.receive(None) == (SENT[:3], True)
        assert receiver.receive(0.0) == ([], True)


class CountingSocket(socket.socket):
    """A socket that counts its system calls."""

    calls = 0

    def recv(self, *args: Any) -> bytes:
        self.calls += 1
        return super().recv(*args)

    def send(self, *args: Any) -> int:
        self.calls += 1
        return super().send(*args)

    def sendall(self, *args: Any) -> None:
        self.calls += 1
        super().sendall(*args)

    def settimeout(self, *args: Any) -> None:
        self.calls += 1
        super().settimeout(*args)


def test_a_small_message_takes_one_system_call_each_way() -> None:
    driver_socket, worker_socket = (CountingSocket(fileno=end.detach()) for end in socket.socketpair())
    message = Message(MessageKind.TASK_REPLY, data=bytes(10_000))
    with (
        closing(SocketChannel(driver_socket, make_authenticators(b"1", b"2"))) as link,
        closing(SocketChannel(worker_socket, make_authenticators(b"2", b"1"))) as other,
    ):
        assert other.send(message)
        assert link.receive() == ([message], True)
    assert (driver_socket.calls, worker_socket.calls) == (1, 1)


def test_a_large_message_is_received_in_pieces(pair: tuple[SocketChannel, SocketChannel]) -> None:
    message = Message(MessageKind.TASK_REPLY, (1, 2, 0), b"", os.urandom(5_000_000))
    for sender, receiver in (pair, pair[::-1]):
        with ThreadPoolExecutor() as pool:
            sending = pool.submit(send_completely, sender, message)
            received: list[Message] = []
            while not received:
                messages, is_there = receiver.receive(10.0)
                assert is_there
                received += messages
            assert sending.result()
        assert received == [message]


def test_a_process_without_memory_receives_short_messages() -> None:
    class Limited(socket.socket):
        def recv(self, size: int, flags: int = 0) -> bytes:
            if size > 1 << 16:
                raise MemoryError
            return super().recv(size, flags)

    here, there = socket.socketpair()
    with Limited(fileno=here.detach()) as limited, there:
        receiver, sender = SocketChannel(limited), SocketChannel(there)
        messages = [
            Message(kind=MessageKind.TASK, attempt_key=(1, task, 0), header=bytes(3_000)) for task in range(3)
        ]
        assert sender.send(*messages)
        received, is_there = receiver.receive(5.0)
        assert is_there and [(message.attempt_key, bytes(message.header)) for message in received] == [
            (message.attempt_key, bytes(message.header)) for message in messages
        ]


def test_predicates_of_a_connection_do_not_consume_messages(
    pair: tuple[SocketChannel, SocketChannel],
) -> None:
    link, channel = pair
    link.send(SENT[1])
    assert_only_asks(channel, channel.is_peer_closed, channel.is_stalled)
    link.close()
    assert_only_asks(channel, channel.is_peer_closed, channel.is_stalled)
    assert channel.receive(None)[0] == SENT[1:2]


def test_a_closed_peer_is_detected_after_its_last_message(pair: tuple[SocketChannel, SocketChannel]) -> None:
    link, channel = pair
    assert not channel.is_peer_closed()
    link.send(SENT[1])
    link.close()
    assert channel.is_peer_closed()  # A message can still be read.
    messages, is_there = channel.receive(None)
    assert messages == SENT[1:2]
    assert not is_there or channel.receive(None) == ([], False)
    channel.send(Message(MessageKind.TASK_REPLY, data=bytes(10**6)))
    assert not channel.send(Message(MessageKind.TASK_REPLY, data=bytes(10**6)))


def test_both_ends_detect_a_disconnect(pair: tuple[SocketChannel, SocketChannel]) -> None:
    link, channel = pair
    link.disconnect()
    assert link.fileno() >= 0
    assert readable(link)
    assert link.receive() == channel.receive(None) == ([], False)


# --- messages that exceed the send buffer -----------------------------------------------------------


def small_buffers() -> tuple[socket.socket, socket.socket]:
    """Return a pair of connected sockets with the smallest buffers."""
    ends = socket.socketpair()
    for end in ends:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, 1)
    return ends


def receive_messages(end: SocketChannel, other: SocketChannel, count: int) -> list[Message]:
    """Receive `count` messages at `end`, while `other` flushes its unsent messages."""
    received: list[Message] = []
    while len(received) < count:
        assert other.flush()
        messages, is_there = end.receive(0.0 if other.has_unsent else 10.0)
        assert is_there
        received += messages
    return received


sizes = st.integers(0, 40).map(lambda size: 7 * size)
messages = st.lists(st.tuples(sizes, sizes, st.booleans()), min_size=1, max_size=6)


@given(messages=messages, is_sealed=st.booleans(), chunk=st.integers(1, 100))
def test_messages_of_any_size_arrive_in_order_through_small_buffers(
    messages: list[tuple[int, int, bool]], is_sealed: bool, chunk: int
) -> None:
    driver_socket, worker_socket = small_buffers()
    expected = [
        Message(MessageKind.TASK, (1, number, 0), os.urandom(header), memoryview(os.urandom(data)), is_file)
        for number, (header, data, is_file) in enumerate(messages)
    ]
    with pytest.MonkeyPatch.context() as patched:
        for module in ("messages", "socket_channel"):
            patched.setattr(f"polarmap.worker.{module}.MAX_CHUNK_BYTES", chunk)
        with (
            closing(
                SocketChannel(driver_socket, make_authenticators(b"1", b"2") if is_sealed else None)
            ) as link,
            closing(
                SocketChannel(worker_socket, make_authenticators(b"2", b"1") if is_sealed else None)
            ) as other,
        ):
            assert link.send(*expected[:1]) and link.send(*expected[1:])
            assert receive_messages(other, link, len(expected)) == expected
            assert not link.has_unsent


@given(
    before=st.integers(0, 3), size=st.integers(0, 10**6), n_read=st.integers(0, 30), is_sealed=st.booleans()
)
@settings(deadline=None)
def test_dropped_messages_never_arrive_but_later_messages_do(
    before: int, size: int, n_read: int, is_sealed: bool
) -> None:
    driver_socket, worker_socket = small_buffers()
    with (
        closing(SocketChannel(driver_socket, make_authenticators(b"1", b"2") if is_sealed else None)) as link,
        closing(
            SocketChannel(worker_socket, make_authenticators(b"2", b"1") if is_sealed else None)
        ) as other,
    ):
        sent = [
            Message(MessageKind.SEGMENT, (1, number, 0), b"key", bytes(size)) for number in range(before + 1)
        ]
        assert link.send(*sent)
        received: list[Message] = []
        for _ in range(n_read):
            received += other.receive(0.0)[0]
            assert link.flush()
        dropped = link.drop_unsent_messages()
        last = Message(MessageKind.CANCEL, (1, 0, 0))
        assert link.send(last)
        while last not in received:
            received += receive_messages(other, link, 1)
        kept = [message for message in sent if message not in dropped]
        assert received == [*kept, last]
        assert dropped == sent[len(kept) :]


def test_a_cancellation_is_not_dropped() -> None:
    driver_socket, worker_socket = small_buffers()
    with closing(SocketChannel(driver_socket)) as link, closing(SocketChannel(worker_socket)) as other:
        cancel, part = (
            Message(MessageKind.CANCEL, (1, 2, 0)),
            Message(MessageKind.SEGMENT, (2, 0, 0), data=bytes(10**6)),
        )
        assert link.send(Message(MessageKind.TASK, (1, 2, 0), bytes(10**5)), cancel, part)
        assert [message.kind for message in link.drop_unsent_messages()] == [MessageKind.SEGMENT]
        assert receive_messages(other, link, 2)[-1] == cancel


def test_unsent_data_is_not_copied() -> None:
    data = memoryview(bytes(10**7))
    pairs = [small_buffers() for _ in range(20)]
    links = [SocketChannel(driver_socket, make_authenticators(b"1", b"2")) for driver_socket, _ in pairs]
    tracemalloc.start()
    try:
        assert all(link.send(Message(MessageKind.SEGMENT, data=data)) for link in links)
        assert all(link.flush() for link in links)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        for link, (_, worker_socket) in zip(links, pairs):
            link.close()
            worker_socket.close()
    assert peak_bytes < len(links) * 3 * MAX_CHUNK_BYTES


def test_only_a_peer_that_reads_nothing_is_stalled_after_the_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(socket_channel.time, "monotonic", lambda: now[0])
    driver_socket, worker_socket = small_buffers()
    with worker_socket, closing(SocketChannel(driver_socket, send_timeout=3.0)) as link:
        assert not link.is_stalled()
        assert link.send(Message(MessageKind.TASK, data=bytes(10**6)))
        now[0] += 2.9
        assert not link.is_stalled()
        worker_socket.recv(10**5)
        assert link.flush()  # The link writes some bytes.
        now[0] += 2.9
        assert link.flush() and not link.is_stalled()
        now[0] += 0.2
        assert link.flush() and link.is_stalled()


def test_a_worker_sends_a_message_completely_before_it_continues() -> None:
    driver_socket, worker_socket = small_buffers()
    message = Message(MessageKind.TASK_REPLY, data=bytes(10**6))
    with (
        ThreadPoolExecutor() as pool,
        closing(SocketChannel(driver_socket)) as link,
        closing(make_worker_channel(worker_socket)) as channel,
    ):
        sending = pool.submit(channel.send, message)
        assert receive_messages(link, link, 1) == [message]
        assert sending.result(10.0)
        assert not channel.has_unsent


@pytest.mark.parametrize("timeout", [0.1, 1.0, 11.0, 60.0])
def test_the_system_notices_silence_within_the_timeout(timeout: float) -> None:
    with socket.socket() as connection:
        socket_channel.configure_tcp(connection, timeout)
        for name, value in (("TCP_NODELAY", 1), ("TCP_USER_TIMEOUT", 1000 * timeout)):
            if hasattr(socket, name):
                assert connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value
    for system in ("linux", "darwin", "win32"):
        options = list(socket_channel.get_tcp_options(timeout, system).values())
        idle, interval, count = options[:3]
        # The options are whole seconds.
        assert abs(idle + interval * count - timeout) <= max(4.0, 0.15 * timeout)
    for name, number in {
        "TCP_KEEPIDLE": 4,
        "TCP_KEEPINTVL": 5,
        "TCP_KEEPCNT": 6,
        "TCP_USER_TIMEOUT": 18,
    }.items():
        if sys.platform == "linux":
            assert number == getattr(socket, name)
            assert number in socket_channel.get_tcp_options(timeout, "linux")


def test_an_invalid_message_and_all_later_bytes_are_ignored(
    pair: tuple[SocketChannel, SocketChannel],
) -> None:
    link, channel = pair
    assert link.send(SENT[1])
    assert channel.receive(None) == (SENT[1:2], True)
    has_seals = link._authenticator is not None
    link._connection.sendall(
        encode_frame(SENT[2], MessageAuthenticator(b"another key") if has_seals else None) + bytes(100)
    )
    assert channel.receive(None) == ([] if has_seals else SENT[2:3], False)
    link.send(SENT[3])
    assert channel.receive(None) == ([], False)


@pytest.mark.parametrize("name", NONSENSE)
def test_received_headers_are_not_unpickled(
    pair: tuple[SocketChannel, SocketChannel], tmp_path: Path, name: str
) -> None:
    for end in pair:
        end._connection.sendall(nonsense(tmp_path / "unpickled")[name])
        end._connection.shutdown(socket.SHUT_WR)
    for end in pair:
        messages, _ = end.receive(10.0)
        # With authentication, no message has a valid tag.
        is_heard = name == "a message" and end._authenticator is None
        assert [type(message.header) for message in messages] == is_heard * [bytearray]
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # pytest has threads.
def test_a_process_forked_from_a_worker_does_not_keep_its_socket_open() -> None:
    driver_socket, worker_socket = socket.socketpair()
    driver_socket.settimeout(30.0)
    channel = make_worker_channel(worker_socket)
    waiting, go = os.pipe()
    child = os.fork()
    if not child:
        os.close(go)
        os.read(waiting, 1)
        os._exit(channel.send(Message(MessageKind.TASK_REPLY)))
    channel.close()
    assert driver_socket.recv(1) == b""  # The child is still alive.
    os.close(go)
    assert os.waitpid(child, 0)[1] == 0
    os.close(waiting)
    driver_socket.close()
