"""Messages whole, in any pieces or none; both ends of a socket; who calls whom, and is at the other end."""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_calls import NONSENSE, nonsense

from polarmap.worker import socket_channel
from polarmap.worker.socket_channel import (
    CANCEL,
    FRAME_PREFIX,
    MAC_BYTES,
    NONCE_BYTES,
    PROOF_BYTES,
    SEGMENT,
    TASK,
    TASK_REPLY,
    WORKER_ID_BYTES,
    ChannelAuthenticators,
    FrameDecoder,
    FrameError,
    Message,
    MessageAuthenticator,
    SocketChannel,
    authenticate_driver,
    authenticate_worker,
    connect_to_driver,
    encode_frame,
    make_worker_channel,
    wait_until_ready,
)

KEY = bytes(range(32))
SENT = [
    Message(TASK_REPLY, (number, 2 * number, -1), bytes(number), bytes(3 * number), number % 2 == 1)
    for number in range(20)
]


@pytest.mark.parametrize("is_sealed", [False, True])
def test_messages_may_come_in_any_pieces_and_are_writable(is_sealed: bool) -> None:
    ours, theirs = (MessageAuthenticator(b"key") if is_sealed else None for _ in range(2))
    frames = FrameDecoder(theirs)
    for step in (1, 7, 10_000):
        sent = b"".join(encode_frame(message, ours) for message in SENT)
        found = [
            one for start in range(0, len(sent), step) for one in frames.feed(sent[start : start + step])
        ]
        assert found == SENT
        found[-1].data[0] = 1  # type: ignore[index]


def test_bytes_that_are_no_messages_are_refused() -> None:
    for sent in (
        struct.pack(FRAME_PREFIX, TASK_REPLY, False, 0, 0, 0, 2**40, 0),
        struct.pack(FRAME_PREFIX, TASK_REPLY, False, 0, 0, 0, 0, 2**60),
        struct.pack(FRAME_PREFIX, b"?", False, 0, 0, 0, 0, 0),
        b"a line that f has printed into our socket, for example\n",
        b"\xff" * 64,
        bytes(64),
        b"?" + os.urandom(63),
    ):
        with pytest.raises(FrameError):
            list(FrameDecoder().feed(sent + bytes(2**16)))


def test_messages_that_are_changed_repeated_swapped_or_left_out_are_refused() -> None:
    seal = MessageAuthenticator(b"key")
    first, second = (encode_frame(message, seal) for message in SENT[3:5])
    wrong = [
        second,
        first + first,
        encode_frame(SENT[3], MessageAuthenticator(b"another key")),
        encode_frame(SENT[3]) + bytes(MAC_BYTES),
    ]
    for place in (5, len(first) - MAC_BYTES - 1, len(first) - MAC_BYTES, len(first) - 1):
        changed = bytearray(first)
        changed[place] ^= 1
        wrong.append(bytes(changed))
    for sent in wrong:
        with pytest.raises(FrameError):
            list(FrameDecoder(MessageAuthenticator(b"key")).feed(sent))
    assert list(FrameDecoder(MessageAuthenticator(b"key")).feed(first + second)) == SENT[3:5]


@pytest.mark.parametrize("cut", [0, 1, 1 << 20, 1 << 23])
def test_a_tag_is_of_all_bytes_however_they_are_cut_and_copies_none_of_many(cut: int) -> None:
    data = memoryview(bytes(range(256)) * (1 << 15))
    expected = MessageAuthenticator(b"key").compute_tag((data,))
    tracemalloc.start()
    try:
        assert MessageAuthenticator(b"key").compute_tag((data[:cut], data[cut:])) == expected
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1 << 20
    few = data[: 1 << 10].tobytes()
    assert (
        expected
        != MessageAuthenticator(b"key").compute_tag((few,))
        == MessageAuthenticator(b"key").compute_tag((few[:9], few[9:]))
    )


# --- both ends of a socket -------------------------------------------------------------------------


def seals(*names: bytes) -> ChannelAuthenticators:
    sent, heard = map(MessageAuthenticator, names)
    return ChannelAuthenticators(sent, heard)


class Watched(MessageAuthenticator):
    """With somebody who looks at what it is told and holds on to it, as a profiler of threads does."""

    def compute_tag(self, buffers: Any) -> bytes:
        self.seen = [*getattr(self, "seen", ()), *buffers]
        return super().compute_tag(buffers)


def test_messages_are_heard_while_somebody_looks_at_the_thread() -> None:
    seal, frames = MessageAuthenticator(b"key"), FrameDecoder(Watched(b"key"))
    for message in SENT:
        assert list(frames.feed(encode_frame(message, seal))) == [message]


@pytest.fixture(params=[False, True])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[SocketChannel, SocketChannel]]:
    """The driver's end, and the worker's, with seals or without."""
    ours, theirs = socket.socketpair()
    link = SocketChannel(ours, seals(b"to worker", b"to driver") if request.param else None)
    channel = make_worker_channel(theirs, seals(b"to driver", b"to worker") if request.param else None)
    with closing(link), closing(channel):
        yield link, channel


def sent_whole(end: SocketChannel, *messages: Message) -> bool:
    """Send messages, and write them until nothing waits."""
    is_there = end.send(*messages)
    while is_there and end.has_unsent:
        assert wait_until_ready([end], select.POLLOUT, 10.0)
        is_there = end.flush()
    return is_there


def readable(end: SocketChannel) -> bool:
    return bool(wait_until_ready([end], select.POLLIN, 0.0))


def test_messages_go_both_ways_in_their_order(pair: tuple[SocketChannel, SocketChannel]) -> None:
    for one, other in (pair, pair[::-1]):
        assert not readable(other)
        assert other.receive() == ([], True)
        for message in SENT[:3]:
            assert one.send(message)
        assert readable(other)
        assert other.receive(None) == (SENT[:3], True)
        assert other.receive(0.0) == ([], True)


class Counted(socket.socket):
    """Counts what is asked of the kernel."""

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


def test_a_small_message_is_sent_and_received_at_once() -> None:
    ours, theirs = (Counted(fileno=one.detach()) for one in socket.socketpair())
    message = Message(TASK_REPLY, data=bytes(10_000))
    with (
        closing(SocketChannel(ours, seals(b"1", b"2"))) as link,
        closing(SocketChannel(theirs, seals(b"2", b"1"))) as other,
    ):
        assert other.send(message)
        assert link.receive() == ([message], True)
    assert (ours.calls, theirs.calls) == (1, 1)


def test_a_large_message_comes_in_pieces(pair: tuple[SocketChannel, SocketChannel]) -> None:
    message = Message(TASK_REPLY, (1, 2, 0), b"", os.urandom(5_000_000))
    for one, other in (pair, pair[::-1]):
        with ThreadPoolExecutor() as pool:
            is_told = pool.submit(sent_whole, one, message)
            found: list[Message] = []
            while not found:
                said, is_there = other.receive(10.0)
                assert is_there
                found += said
            assert is_told.result()
        assert found == [message]


def test_a_process_without_memory_hears_what_is_short() -> None:
    class Limited(socket.socket):
        def recv(self, size: int, flags: int = 0) -> bytes:
            if size > 1 << 16:
                raise MemoryError
            return super().recv(size, flags)

    here, there = socket.socketpair()
    with Limited(fileno=here.detach()) as limited, there:
        heard, teller = SocketChannel(limited), SocketChannel(there)
        said = [
            Message(kind=socket_channel.TASK, attempt_key=(1, task, 0), header=bytes(3_000))
            for task in range(3)
        ]
        assert teller.send(*said)
        found, is_there = heard.receive(5.0)
        assert is_there and [(one.attempt_key, bytes(one.header)) for one in found] == [
            (one.attempt_key, bytes(one.header)) for one in said
        ]


def test_an_end_that_is_gone_is_found_after_its_last_words(pair: tuple[SocketChannel, SocketChannel]) -> None:
    link, channel = pair
    assert not channel.is_peer_closed()
    link.send(SENT[1])
    link.close()
    assert channel.is_peer_closed()  # though something can be read
    said, is_there = channel.receive(None)
    assert said == SENT[1:2]
    assert not is_there or channel.receive(None) == ([], False)
    channel.send(Message(TASK_REPLY, data=bytes(10**6)))
    assert not channel.send(Message(TASK_REPLY, data=bytes(10**6)))


def test_who_hangs_up_is_seen_by_both(pair: tuple[SocketChannel, SocketChannel]) -> None:
    link, channel = pair
    link.disconnect()
    assert link.fileno() >= 0
    assert readable(link)
    assert link.receive() == channel.receive(None) == ([], False)


# --- what a socket does not take at once -----------------------------------------------------------


def small_buffers() -> tuple[socket.socket, socket.socket]:
    """A pair of sockets between which little is on its way."""
    ends = socket.socketpair()
    for end in ends:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, 1)
    return ends


def received(end: SocketChannel, other: SocketChannel, count: int) -> list[Message]:
    """Receive so many messages at one end, while the other writes what waits."""
    found: list[Message] = []
    while len(found) < count:
        assert other.flush()
        said, is_there = end.receive(0.0 if other.has_unsent else 10.0)
        assert is_there
        found += said
    return found


sizes = st.integers(0, 40).map(lambda size: 7 * size)
messages = st.lists(st.tuples(sizes, sizes, st.booleans()), min_size=1, max_size=6)


@given(messages=messages, is_sealed=st.booleans(), chunk=st.integers(1, 100))
def test_messages_of_any_size_arrive_in_order_through_small_buffers(
    messages: list[tuple[int, int, bool]], is_sealed: bool, chunk: int
) -> None:
    ours, theirs = small_buffers()
    expected = [
        Message(TASK, (1, number, 0), os.urandom(header), memoryview(os.urandom(data)), is_file)
        for number, (header, data, is_file) in enumerate(messages)
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(socket_channel, "MAX_CHUNK_BYTES", chunk)
        with (
            closing(SocketChannel(ours, seals(b"1", b"2") if is_sealed else None)) as link,
            closing(SocketChannel(theirs, seals(b"2", b"1") if is_sealed else None)) as other,
        ):
            assert link.send(*expected[:1]) and link.send(*expected[1:])
            assert received(other, link, len(expected)) == expected
            assert not link.has_unsent


@given(
    before=st.integers(0, 3), size=st.integers(0, 10**6), n_read=st.integers(0, 30), is_sealed=st.booleans()
)
@settings(deadline=None)
def test_messages_that_are_dropped_never_arrive_and_later_ones_do(
    before: int, size: int, n_read: int, is_sealed: bool
) -> None:
    ours, theirs = small_buffers()
    with (
        closing(SocketChannel(ours, seals(b"1", b"2") if is_sealed else None)) as link,
        closing(SocketChannel(theirs, seals(b"2", b"1") if is_sealed else None)) as other,
    ):
        sent = [Message(SEGMENT, (1, number, 0), b"key", bytes(size)) for number in range(before + 1)]
        assert link.send(*sent)
        found: list[Message] = []
        for _ in range(n_read):
            found += other.receive(0.0)[0]
            assert link.flush()
        dropped = link.drop_unsent()
        last = Message(CANCEL, (1, 0, 0))
        assert link.send(last)
        while last not in found:
            found += received(other, link, 1)
        kept = [one for one in sent if one not in dropped]
        assert found == [*kept, last]
        assert dropped == sent[len(kept) :]


def test_a_cancellation_is_not_dropped() -> None:
    ours, theirs = small_buffers()
    with closing(SocketChannel(ours)) as link, closing(SocketChannel(theirs)) as other:
        cancel, part = Message(CANCEL, (1, 2, 0)), Message(SEGMENT, (2, 0, 0), data=bytes(10**6))
        assert link.send(Message(TASK, (1, 2, 0), bytes(10**5)), cancel, part)
        assert [one.kind for one in link.drop_unsent()] == [SEGMENT]
        assert received(other, link, 2)[-1] == cancel


def test_what_waits_is_a_reference_to_the_data_of_the_sender() -> None:
    data = memoryview(bytes(10**7))
    pairs = [small_buffers() for _ in range(20)]
    links = [SocketChannel(ours, seals(b"1", b"2")) for ours, _ in pairs]
    tracemalloc.start()
    try:
        assert all(link.send(Message(SEGMENT, data=data)) for link in links)
        assert all(link.flush() for link in links)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        for link, (_, theirs) in zip(links, pairs):
            link.close()
            theirs.close()
    assert most < len(links) * 3 * socket_channel.MAX_CHUNK_BYTES


def test_an_end_that_reads_nothing_is_stalled_after_the_timeout_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(socket_channel.time, "monotonic", lambda: now[0])
    ours, theirs = small_buffers()
    with theirs, closing(SocketChannel(ours, send_timeout=3.0)) as link:
        assert not link.is_stalled()
        assert link.send(Message(TASK, data=bytes(10**6)))
        now[0] += 2.9
        assert not link.is_stalled()
        theirs.recv(10**5)
        assert link.flush()  # a byte is written
        now[0] += 2.9
        assert link.flush() and not link.is_stalled()
        now[0] += 0.2
        assert link.flush() and link.is_stalled()


def test_a_worker_sends_all_of_a_message_before_it_goes_on() -> None:
    ours, theirs = small_buffers()
    message = Message(TASK_REPLY, data=bytes(10**6))
    with (
        ThreadPoolExecutor() as pool,
        closing(SocketChannel(ours)) as link,
        closing(make_worker_channel(theirs)) as channel,
    ):
        is_told = pool.submit(channel.send, message)
        assert received(link, link, 1) == [message]
        assert is_told.result(10.0)
        assert not channel.has_unsent


@pytest.mark.parametrize(
    "flags",
    [socket_channel.CONTINUATION_FLAG, socket_channel.CONTINUATION_FLAG | socket_channel.MORE_FRAMES_FLAG],
)
def test_a_frame_that_continues_nothing_or_another_message_is_refused(flags: int) -> None:
    rest = encode_frame(SENT[3], None, flags)
    for before in (b"", encode_frame(SENT[3]), encode_frame(SENT[4], None, socket_channel.MORE_FRAMES_FLAG)):
        frames = FrameDecoder()
        list(frames.feed(before))
        with pytest.raises(FrameError, match="was not begun"):
            list(frames.feed(rest))


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
        assert abs(idle + interval * count - timeout) <= max(4.0, 0.15 * timeout)  # whole seconds
    for name, number in {
        "TCP_KEEPIDLE": 4,
        "TCP_KEEPINTVL": 5,
        "TCP_KEEPCNT": 6,
        "TCP_USER_TIMEOUT": 18,
    }.items():
        if sys.platform == "linux":
            assert number == getattr(socket, name)
            assert number in socket_channel.get_tcp_options(timeout, "linux")


def test_what_is_no_message_of_the_other_end_is_not_heard_nor_what_follows(
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
def test_nothing_that_is_said_is_unpickled(
    pair: tuple[SocketChannel, SocketChannel], tmp_path: Path, name: str
) -> None:
    for end in pair:
        end._connection.sendall(nonsense(tmp_path / "unpickled")[name])
        end._connection.shutdown(socket.SHUT_WR)
    for end in pair:
        said, _ = end.receive(10.0)
        is_heard = name == "a message" and end._authenticator is None  # else none of it has a right tag
        assert [type(one.header) for one in said] == is_heard * [bytearray]
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # has threads
def test_a_process_that_is_forked_of_a_worker_does_not_hold_its_end() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(30.0)
    channel = make_worker_channel(theirs)
    waiting, go = os.pipe()
    child = os.fork()
    if not child:
        os.close(go)
        os.read(waiting, 1)
        os._exit(channel.send(Message(TASK_REPLY)))
    channel.close()
    assert ours.recv(1) == b""  # though the child lives
    os.close(go)
    assert os.waitpid(child, 0)[1] == 0
    os.close(waiting)
    ours.close()


# --- who calls whom over TCP ---------------------------------------------------------------------


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        one.settimeout(10.0)
        yield one


def admitted(listening: socket.socket) -> int:
    connection, _ = listening.accept()
    with connection:
        connection.settimeout(10.0)
        return authenticate_worker(connection, KEY)[0]


def test_the_first_address_that_answers_is_taken(listening: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()
    endpoints = [nobody, ("256.256.256.256", 1), listening.getsockname()]
    assert connect_to_driver(endpoints[:-1], KEY, 5) is None
    with ThreadPoolExecutor() as pool:
        found = pool.submit(admitted, listening)
        channel = connect_to_driver(endpoints, KEY, 5)
        assert found.result() == 5
    assert channel is not None
    channel.close()


def test_who_says_nothing_is_no_driver(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_channel, "CONNECT_TIMEOUT", 0.2)
    assert connect_to_driver([listening.getsockname()], KEY, 5) is None
    listening.accept()[0].close()


def test_a_process_with_many_open_files_connects_and_hears(listening: socket.socket) -> None:
    resource = pytest.importorskip("resource")
    most = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(most, before[0]), before[1]))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]  # select() knows 1024
    try:
        with ThreadPoolExecutor() as pool:
            found = pool.submit(admitted, listening)
            channel = connect_to_driver([listening.getsockname()], KEY, 5)
            assert channel is not None
            assert found.result() == 5
            assert channel.receive(10.0) == ([], False)
            channel.close()
    finally:
        for one in taken:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# --- who is at the other end ----------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Of a connection: the driver's and the worker's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10.0)
        theirs.settimeout(10.0)
        yield ours, theirs


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def test_both_sides_prove_it_and_agree_on_their_seals(ends: Any, background: Any) -> None:
    found = background(authenticate_driver, ends[1], KEY, 123)
    number, seals = authenticate_worker(ends[0], KEY)
    assert number == 123
    theirs = found.result()
    for sent, heard in ((seals.outgoing, theirs.incoming), (theirs.outgoing, seals.incoming)):
        for message in ((b"one",), (b"o", b"ne"), (b"",)):
            assert heard.compute_tag(message) == sent.compute_tag(message)


def test_no_two_connections_have_the_same_seals(background: Any) -> None:
    tags = set()
    for _ in range(3):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            found = background(authenticate_driver, theirs, KEY, 1)
            _, seals = authenticate_worker(ours, KEY)
            tags |= {seals.outgoing.compute_tag([b"x"]), seals.incoming.compute_tag([b"x"])}
            found.result()
    assert len(tags) == 6


def answered(nonce: bytes) -> bytes:
    """What a worker that has the key answers to a nonce; it is told nothing more."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor() as pool:
        proof = pool.submit(authenticate_driver, theirs, KEY, 1)
        ours.sendall(nonce)
        said = ours.recv(PROOF_BYTES)
        ours.close()
        with pytest.raises(ConnectionError):
            proof.result()
    return said


def with_another_number(said: bytes) -> bytes:
    changed = bytearray(said)
    changed[NONCE_BYTES + WORKER_ID_BYTES - 1] ^= 2
    return bytes(changed)


@pytest.mark.parametrize(
    "said",
    [
        lambda nonce: with_another_number(answered(nonce)),  # changed on its way
        lambda nonce: answered(os.urandom(NONCE_BYTES)),  # that somebody has listened to earlier
        lambda nonce: nonce + bytes(WORKER_ID_BYTES) + nonce,  # all that is known without the key
    ],
)
def test_a_worker_is_who_it_says_and_answers_now_and_itself(
    said: Callable[[bytes], bytes], ends: Any, background: Any
) -> None:
    found = background(authenticate_worker, ends[0], KEY)
    ends[1].sendall(said(ends[1].recv(NONCE_BYTES)))
    with pytest.raises(FrameError, match="a worker without the key"):
        found.result()


@pytest.mark.parametrize("proof", [lambda answer: os.urandom(MAC_BYTES), lambda answer: answer[-MAC_BYTES:]])
def test_a_driver_that_makes_up_a_proof_or_sends_back_the_workers_is_refused(
    proof: Callable[[bytes], bytes], ends: Any, background: Any
) -> None:
    found = background(authenticate_driver, ends[1], KEY, 1)
    ends[0].sendall(os.urandom(NONCE_BYTES))
    ends[0].sendall(proof(ends[0].recv(PROOF_BYTES)))
    with pytest.raises(FrameError, match="a driver without the key"):
        found.result()


def test_a_driver_that_says_it_a_byte_at_a_time_is_refused_after_a_while(
    ends: Any, background: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_channel, "CONNECT_TIMEOUT", 0.2)
    is_over, sent = threading.Event(), list[int]()

    def trickle() -> None:
        while not is_over.wait(0.05):
            sent.append(ends[0].send(b"."))

    found = background(trickle)
    try:
        with pytest.raises(TimeoutError):
            authenticate_driver(ends[1], KEY, 1)
        assert len(sent) < NONCE_BYTES
    finally:
        is_over.set()
        found.result()
