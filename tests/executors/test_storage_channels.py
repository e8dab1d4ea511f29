"""Channels over an object storage: messages arrive exactly once, despite losses and outages."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from memory_storage import DictStorage
from pool_processes import until
from stored_calls import NONSENSE, nonsense

from polarmap.errors import ExecutorError
from polarmap.executors import storage_channels
from polarmap.executors.storage_channels import DriverStorageChannel, StorageChannelServer, WorkerChannel
from polarmap.worker.messages import PROTOCOL_VERSION, Message, MessageKind, encode_frame
from polarmap.worker.polling import wait_until_ready
from polarmap.worker.retries import retry_request
from polarmap.worker.storage_channel import (
    HEARTBEAT_SECONDS,
    N_POLLS_PER_MESSAGE,
    ChannelKeys,
    Mailbox,
    ReplyKey,
    StorageChannel,
)


def call(number: int, f: bytes = b"") -> Message:
    """Return the message that sends a task to a worker."""
    return Message(MessageKind.TASK, (number, 0, 0), b"header", f)


def task_reply(number: int, data: bytes = b"") -> Message:
    """Return the message that a worker sends about its task."""
    return Message(MessageKind.TASK_REPLY, (0, number, 0), b"", data)


class Side:
    """The driver's side of storage channels and their workers, with a dict as the storage."""

    def __init__(self) -> None:
        self.storage, self.prefix = DictStorage(), "polarmap/pool-1"
        self.links: dict[int, WorkerChannel] = {}
        self.channels: list[StorageChannel] = []
        self.all = StorageChannelServer(self.storage, self.prefix, self.join)

    def join(self, number: int, link: WorkerChannel, channel: str) -> None:
        self.links[number] = link

    def orders(self) -> Mailbox:
        """Return the mailbox that is stored for the workers."""
        return Mailbox.decode(self.storage.get_object("b", ChannelKeys(self.prefix).mailbox_key))

    def has_stored_all(self) -> bool:
        """Return whether all messages to workers are stored and no write is running."""
        if self.all._has_unwritten or not self.all._mailbox_lock.acquire(blocking=False):
            return False
        self.all._mailbox_lock.release()
        return not self.all._has_unwritten

    def stored_keys(self) -> list[str]:
        return self.storage.list_keys("b", self.prefix)

    def worker(self, number: int) -> StorageChannel:
        """Open the channel of a worker, wait until it has joined, and return the channel."""
        channel = StorageChannel(self.storage, "b", self.prefix, number)
        self.channels.append(channel)
        channel.send(Message(MessageKind.HELLO, header=b"%d" % number))
        assert until(lambda: number in self.links)
        return channel

    def send_to_worker(self, number: int, message: Message) -> None:
        link = self.links[number]
        assert link.send(message)
        self.all.flush_messages()
        entry = link.n_sent, encode_frame(message._replace(data=b""))
        assert until(lambda: entry in [stored[:2] for stored in self.orders().messages.get(number, ())])

    def receive_from_worker(self, number: int, count: int = 1) -> list[Any]:
        """Receive and return at least `count` messages of a worker. The first one contains its process id."""
        messages: list[Any] = []

        def listen() -> bool:
            messages.extend(self.links[number].receive()[0])
            return len(messages) >= count

        assert until(listen), messages
        return messages

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        self.all.close()
        for link in self.links.values():
            link.close()


@pytest.fixture
def side() -> Iterator[Side]:
    side = Side()
    yield side
    side.close()
    assert ChannelKeys(side.prefix).mailbox_key not in side.stored_keys()
    assert not any(thread.name.startswith("polarmap-objects") for thread in threading.enumerate())


def receive_from_driver(worker: StorageChannel, count: int = 1) -> list[Message]:
    """Receive and return at least `count` messages of the driver."""
    messages: list[Message] = []

    def listen() -> bool:
        messages.extend(worker.receive(0.5)[0])
        return len(messages) >= count

    assert until(listen), messages
    return messages


def test_messages_stay_in_order_until_acknowledged(
    side: Side,
) -> None:
    worker = side.worker(0)
    side.receive_from_worker(0)
    messages = [call(1, b"f"), call(2, b"g"), Message(MessageKind.CANCEL), call(3, b"f")]
    for message in messages:
        side.send_to_worker(0, message)
    assert receive_from_driver(worker, 4) == messages
    assert len(side.orders().messages[0]) == 4
    worker.send(task_reply(1))
    side.receive_from_worker(0)
    side.all._write_mailbox()
    assert side.orders().messages == {0: []}
    assert side.orders().payloads == {}


@pytest.mark.parametrize("is_closed", [False, True])
def test_disconnected_worker_receives_no_messages_and_ends(side: Side, is_closed: bool) -> None:
    # One object contains the messages to all workers. It must not grow with each worker that is replaced.
    worker, other = side.worker(0), side.worker(1)
    side.send_to_worker(0, call(1, b"f"))
    receive_from_driver(worker)
    if is_closed:
        side.links[0].close()
    else:  # the map notices the lost worker and releases it
        side.all.disconnect(0)
        assert not side.links[0].send(call(2))
    side.all._write_mailbox()
    assert side.orders().messages == {1: []}
    assert side.orders().payloads == {}
    assert worker.receive(5.0) == ([], False)
    worker.send(task_reply(1))
    other.send(task_reply(2))
    assert side.receive_from_worker(1, 2)[1] == task_reply(2)
    assert is_closed == (0 not in side.all._channels)
    side.send_to_worker(1, call(3))  # the remaining worker still receives messages
    assert receive_from_driver(other) == [call(3)]


def test_restarted_worker_joins_again(side: Side) -> None:
    first = side.worker(0)
    old = side.links[0]
    side.send_to_worker(0, call(1))
    receive_from_driver(first)
    again = StorageChannel(side.storage, "b", side.prefix, 0)
    again.send(Message(MessageKind.HELLO, header=b"0"))
    assert until(lambda: side.links[0] is not old)
    old.close()
    side.send_to_worker(0, call(2))
    assert receive_from_driver(again) == [call(2)]
    first.send(task_reply(1))
    again.send(task_reply(2))
    assert side.receive_from_worker(0, 2) == [Message(MessageKind.HELLO, header=b"0"), task_reply(2)]


def test_message_written_twice_is_received_once(side: Side) -> None:
    worker = side.worker(0)
    worker._last_sent -= 1  # simulates that the response to a write was lost, so the worker repeats it
    worker.send(Message(MessageKind.HELLO, header=b"0"))
    worker.send(task_reply(1))
    assert side.receive_from_worker(0, 2) == [Message(MessageKind.HELLO, header=b"0"), task_reply(1)]


def test_messages_lost_by_the_storage_are_written_again(side: Side) -> None:
    worker = side.worker(0)
    key = ChannelKeys(side.prefix).mailbox_key
    before = side.storage.get_object("b", key)
    side.send_to_worker(0, call(1))
    side.storage.put_object("b", key, before)
    assert worker.receive(0.0) == ([], True)
    side.all._next_heartbeat_at = 0.0
    side.all._posted.set()
    assert receive_from_driver(worker) == [call(1)]


def test_worker_with_a_lost_reply_is_disconnected(side: Side) -> None:
    worker = side.worker(0)
    side.receive_from_worker(0)
    link = side.all._channels[0]
    worker._last_sent += 1
    worker.send(task_reply(1))
    assert side.receive_from_worker(0) == [task_reply(1)]
    sign = ReplyKey(0, link.worker_instance, 9, 0, link.n_received, 0)
    for lost in (0, 1):
        side.all._handle_reply(sign._replace(last_sent=link.n_received + lost), b"")
    assert link.is_connected  # a listing may show the heartbeat before the reply
    worker.send(Message(MessageKind.CANCELLED))
    assert side.receive_from_worker(0) == [Message(MessageKind.CANCELLED)]
    for _ in range(2):
        assert link.is_connected
        side.all._handle_reply(sign._replace(last_sent=link.n_received + 1), b"")
    assert side.links[0].receive() == ([], False)


def test_only_workers_without_heartbeat_are_disconnected(side: Side) -> None:
    side.worker(0)
    side.worker(1)
    side.all._channels[0].last_heartbeat_at -= 600.0
    side.all._disconnect_silent_workers()
    assert not side.links[0].receive()[1]
    assert side.links[1].receive()[1]


def test_outage_of_the_storage_disconnects_no_worker(side: Side) -> None:
    side.worker(0)
    link, since = side.all._channels[0], time.monotonic() - 600.0
    list_keys = side.storage.list_keys

    def away(bucket: str, prefix: str) -> list[str]:
        raise ConnectionError("away")

    side.storage.list_keys = away
    link.last_heartbeat_at = since
    assert until(lambda: link.last_heartbeat_at > since)
    side.storage.list_keys = list_keys
    side.all._disconnect_silent_workers()
    assert side.links[0].receive()[1]


def test_lasting_outage_raises_one_clear_error(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_channels, "retry_request", lambda request: retry_request(request, 0.1))
    side.worker(0)

    def away(*args: Any) -> None:
        raise ConnectionError("away")

    put, side.storage.put_object = side.storage.put_object, away
    assert side.links[0].send(call(1))
    side.all.flush_messages()  # returns without waiting for the storage
    assert until(lambda: side.all._failure is not None)
    with pytest.raises(
        ExecutorError, match="cannot be sent to the workers through the storage: ConnectionError: away"
    ):
        side.all.flush_messages()
    side.storage.put_object = put
    side.send_to_worker(0, call(2))
    side.all.flush_messages()


def test_hanging_storage_does_not_block_the_driver(side: Side) -> None:
    worker, goes_on = side.worker(0), threading.Event()
    put = side.storage.put_object

    def hanging(*args: Any) -> None:
        assert goes_on.wait(60.0)
        put(*args)

    side.storage.put_object = hanging
    assert side.links[0].send(call(1))
    side.all.flush_messages()
    assert side.links[0].send(call(2))
    side.all.flush_messages()
    side.storage.put_object = put
    goes_on.set()
    assert receive_from_driver(worker, 2) == [call(1), call(2)]


def test_foreign_objects_are_ignored(side: Side) -> None:
    worker = side.worker(0)
    side.receive_from_worker(0)
    for name in (
        "",
        "x",
        "v",
        "v1",
        "v1-",
        "v1-x",
        "v1-1-2",
        "v1-1-2-3-1-1-1.tmp-9",
        "1-2",
        "1-2-3-4-x-1",
        "1-2-3-1-1-1.tmp-9",
        "1-2-3-4-5",
        "----",
        "...",
    ):
        side.storage.put_object("b", f"polarmap/pool-1/replies/{name}", b"x")
    worker.send(task_reply(1))
    assert side.receive_from_worker(0) == [task_reply(1)]


def test_worker_of_another_version_is_reported_once(side: Side) -> None:
    worker = side.worker(0)
    side.receive_from_worker(0)
    side.storage.put_object("b", f"{side.prefix}/replies/v{PROTOCOL_VERSION + 1}-7-9-1-0-1-3", b"any")
    worker.send(task_reply(1))
    assert side.receive_from_worker(0) == [task_reply(1)]
    assert until(lambda: side.all.mismatches)
    assert 7 not in side.links
    worker.send(task_reply(2))
    assert side.receive_from_worker(0) == [task_reply(2)]
    assert [(error.worker_id, error.peer_version) for error in side.all.mismatches] == [
        (7, PROTOCOL_VERSION + 1)
    ]


def test_partly_written_reply_is_read_when_complete(side: Side) -> None:
    # A storage of files lists a file before all its bytes are written.
    worker = side.worker(0)
    side.receive_from_worker(0)
    storage, put, list_keys = side.storage, side.storage.put_object, side.storage.list_keys
    listed, go, looks = threading.Event(), threading.Event(), list[int]()

    def list_and_count(bucket: str, prefix: str) -> list[str]:
        looks.append(1)
        keys: list[str] = list_keys(bucket, prefix)
        return keys

    def put_slowly(bucket: str, key: str, data: bytes) -> None:
        if data and "/replies/" in key:
            for part in (b"", data[:7]):
                put(bucket, key, part)
                before = len(looks)
                assert until(lambda before=before: len(looks) > before + 2)
            listed.set()
            assert go.wait(10.0)
        put(bucket, key, data)

    storage.put_object, storage.list_keys = put_slowly, list_and_count
    side.send_to_worker(0, call(0, b"f"))
    with ThreadPoolExecutor(1) as other:
        sending = other.submit(worker.send, task_reply(1))
        assert listed.wait(10.0)
        assert side.links[0].receive() == ([], True)
        go.set()
        sending.result(10.0)
    storage.put_object, storage.list_keys = put, list_keys
    assert side.receive_from_worker(0) == [task_reply(1)]


def test_replies_are_removed_after_they_were_read(side: Side) -> None:
    worker = side.worker(0)
    for number in range(5):
        worker.send(task_reply(number))
    side.receive_from_worker(0, 6)
    assert until(lambda: not any("/replies/" in key for key in side.stored_keys()))


def test_large_function_is_a_separate_object_while_needed(side: Side) -> None:
    workers = [side.worker(number) for number in range(2)]
    large = [bytes([number]) * 10**6 for number in range(3)]
    for f in large:
        for number in range(2):
            assert side.links[number].send(call(1, f))
        side.all.flush_messages()
        assert until(lambda: side.has_stored_all())
        assert len(side.storage.get_object("b", "polarmap/pool-1/orders")) < 10_000
        assert len([key for key in side.stored_keys() if "/data/" in key]) == 1
        for number, worker in enumerate(workers):
            assert receive_from_driver(worker) == [call(1, f)]
            worker.send(task_reply(1))
            side.receive_from_worker(number, 2 if f is large[0] else 1)
    for number in range(2):
        side.send_to_worker(number, call(2, b"small"))
    assert until(lambda: not any("/data/" in key for key in side.stored_keys()))


def test_messages_after_the_end_of_a_pool_are_not_written(side: Side) -> None:
    side.worker(0)
    side.all.close()
    side.links[0].close()
    side.all.flush_messages()
    assert ChannelKeys(side.prefix).mailbox_key not in side.stored_keys()


def test_messages_written_while_a_pool_closes_are_removed(side: Side) -> None:
    side.worker(0)
    is_storing, go, put = threading.Event(), threading.Event(), side.storage.put_object

    def put_slowly(bucket: str, key: str, data: bytes) -> None:
        is_storing.set()
        assert go.wait(30.0)
        put(bucket, key, data)

    side.storage.put_object = put_slowly
    with ThreadPoolExecutor(1) as others:
        assert side.links[0].send(call(1))
        side.all.flush_messages()
        assert is_storing.wait(10.0)
        closing = others.submit(side.all.close)
        assert until(side.all._is_closed.is_set)
        assert not until(closing.done, 0.1)
        go.set()
        closing.result(10.0)
    assert ChannelKeys(side.prefix).mailbox_key not in side.stored_keys()


def test_requests_are_counted(side: Side) -> None:
    worker = side.worker(0)
    worker.send(task_reply(1))
    side.receive_from_worker(0, 2)
    writes, reads = side.all.take_request_counts(100.0)
    assert writes >= 4 + 100.0 / HEARTBEAT_SECONDS  # includes listings and the writes of the worker
    assert reads >= 2 + 100.0
    assert side.all.take_request_counts(0.0)[1] <= 2 * N_POLLS_PER_MESSAGE


# --- the channel of a single worker -------------------------------------------------------------------


@pytest.fixture
def link() -> Iterator[DriverStorageChannel]:
    channel = DriverStorageChannel(0, 0, lambda *_: None)
    yield channel
    channel.close()


def readable(link: DriverStorageChannel) -> bool:
    return bool(wait_until_ready([link], select.POLLIN, 0.0))


def test_delivered_messages_are_received_in_order_before_the_disconnection(
    link: DriverStorageChannel,
) -> None:
    assert not readable(link)
    messages = [task_reply(number, bytes(number)) for number in range(100)]
    for message in messages:
        link.deliver_frames(encode_frame(message))
    assert readable(link)
    assert link.receive() == (messages, True)
    assert link.receive() == ([], True)
    assert not readable(link)
    link.deliver_frames(encode_frame(messages[0]))
    link.disconnect()
    assert readable(link)
    assert link.receive() == (messages[:1], False)


@pytest.mark.parametrize("name", NONSENSE)
def test_invalid_message_disconnects_its_worker_and_is_not_unpickled(
    link: DriverStorageChannel, tmp_path: Path, name: str
) -> None:
    link.deliver_frames(nonsense(tmp_path / "unpickled")[name])
    assert readable(link)
    messages, is_there = link.receive()
    if name == "a message":
        assert [type(message.header) for message in messages] == [bytearray]
    else:
        assert messages == []
    assert is_there == (name in ("a message", "a part of one"))
    assert not (tmp_path / "unpickled").exists()
