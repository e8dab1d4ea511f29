"""Tests of the storage channel of a worker, with a dict as the storage."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from memory_storage import DictStorage
from pool_processes import until
from predicates import assert_only_asks

from polarmap.worker import storage_channel
from polarmap.worker.messages import (
    PROTOCOL_VERSION,
    Message,
    MessageKind,
    ProtocolMismatchError,
    encode_frame,
)
from polarmap.worker.storage_channel import ChannelKeys, Mailbox, QueuedMessage, ReplyKey, StorageChannel

KEYS = ChannelKeys("polarmap/pool-1")
NOTHING: tuple[list[Message], bool] = [], True
GONE: tuple[list[Message], bool] = [], False


class Driver:
    """A driver that writes to the storage of the channel."""

    def __init__(self) -> None:
        self.storage, self.beat = DictStorage(), 0

    def put(self, data: Any = None, **messages: Any) -> None:
        """Write a mailbox with (number, message, digest of its payload) for each worker, such as w7 or w8."""
        self.beat += 1
        messages_by_worker = {int(key[1:]): queued for key, queued in messages.items()}
        queues = {
            key: [QueuedMessage(number, encode_frame(message), digest) for number, message, digest in queued]
            for key, queued in messages_by_worker.items()
        }
        self.storage.put_object("b", KEYS.mailbox_key, Mailbox(self.beat, data or {}, queues).encode())

    def read_replies(self) -> list[tuple[ReplyKey, bytes]]:
        keys = self.storage.list_keys("b", KEYS.reply_prefix)
        return [
            (reply_key, self.storage.get_object("b", key))
            for key in keys
            if (reply_key := KEYS.parse_reply_key(key))
        ]


@pytest.fixture
def driver() -> Driver:
    new_driver = Driver()
    new_driver.put()
    return new_driver


@pytest.fixture
def channel(driver: Driver) -> Iterator[StorageChannel]:
    with closing(StorageChannel(driver.storage, "b", KEYS.prefix, 7)) as new_channel:
        yield new_channel


def is_gone_at_next_heartbeat(channel: StorageChannel) -> bool:
    channel._next_heartbeat_at = 0.0
    channel.keep_alive()
    return channel.is_peer_closed()


def receive_messages(channel: StorageChannel) -> list[Message]:
    messages, is_there = channel.receive(1.0)
    assert is_there
    return messages


@pytest.mark.parametrize(
    "reply_key", [ReplyKey(0, 9, 1, 0, 2, 0), ReplyKey(123, 2**32 - 1, 10**11, 45, 44, 10**9)]
)
def test_reply_keys_are_formatted_and_parsed(reply_key: ReplyKey) -> None:
    assert KEYS.parse_reply_key(KEYS.format_reply_key(reply_key)) == reply_key


def test_a_message_is_received_once_and_polled_for_with_pauses(
    driver: Driver, channel: StorageChannel
) -> None:
    assert channel.receive(0.0) == NOTHING
    driver.put(w7=[(4, Message(MessageKind.CANCEL), None)], w8=[(9, Message(MessageKind.TASK), None)])
    assert channel.receive(0.0) == NOTHING  # The channel has only just polled.
    assert until(lambda: channel.receive(0.0) == ([Message(MessageKind.CANCEL)], True))
    assert channel.receive(0.02) == NOTHING
    driver.put(w7=[(4, Message(MessageKind.CANCEL), None)])
    assert channel.receive(0.02) == NOTHING


def test_messages_are_received_in_order_with_their_data(driver: Driver, channel: StorageChannel) -> None:
    calls = [Message(MessageKind.TASK, header=b"%d" % number) for number in range(3)]
    driver.storage.put_object("b", KEYS.make_payload_key(b"large"), b"an object of its own")
    driver.put({b"small": b"f"}, w7=list(zip((1, 2, 5), calls, (b"small", None, b"large"), strict=True)))
    assert receive_messages(channel) == [
        calls[0]._replace(data=b"f"),
        calls[1],
        calls[2]._replace(data=b"an object of its own"),
    ]
    driver.put(w7=[(6, Message(MessageKind.CANCEL), None)])
    assert receive_messages(channel) == [Message(MessageKind.CANCEL)]
    assert driver.read_replies() == []  # A message is acknowledged with the next reply, not earlier.


def test_a_message_whose_payload_was_removed_is_dropped(driver: Driver, channel: StorageChannel) -> None:
    driver.put(w7=[(1, Message(MessageKind.TASK), b"digest")])
    assert channel.receive(0.0) == NOTHING
    assert not channel.is_peer_closed()
    driver.put({b"other": b"newer"}, w7=[(2, Message(MessageKind.TASK), b"other")])
    assert receive_messages(channel) == [Message(MessageKind.TASK, data=b"newer")]


def test_a_driver_that_removes_its_mailbox_counts_as_closed(driver: Driver, channel: StorageChannel) -> None:
    assert not is_gone_at_next_heartbeat(channel)
    driver.storage.delete_object("b", KEYS.mailbox_key)
    assert channel.receive(1.0) == GONE
    assert is_gone_at_next_heartbeat(channel)


@pytest.mark.parametrize("notices", ["receive", "keep_alive"])
def test_a_worker_removes_its_replies_after_its_driver_has_closed(
    driver: Driver, channel: StorageChannel, notices: str
) -> None:
    # A cloud does not kill a worker that runs a task when its pool is closed.
    other = StorageChannel(driver.storage, "b", KEYS.prefix, 71)
    other.send(Message(MessageKind.TASK_REPLY))
    driver.storage.delete_object("b", KEYS.mailbox_key)
    channel.send(Message(MessageKind.TASK_REPLY))
    assert channel.receive(1.0) == GONE if notices == "receive" else is_gone_at_next_heartbeat(channel)
    assert [reply_key.worker_id for reply_key, _ in driver.read_replies()] == [71]


def test_a_worker_keeps_its_replies_while_its_driver_is_alive(
    driver: Driver, channel: StorageChannel
) -> None:
    channel.send(Message(MessageKind.TASK_REPLY))
    driver.put(w8=[])
    assert channel.receive(0.0) == NOTHING
    channel.close()
    assert [reply_key.worker_id for reply_key, _ in driver.read_replies()] == [7]


def test_a_driver_whose_mailbox_does_not_change_counts_as_closed(
    driver: Driver, channel: StorageChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert channel.receive(0.0) == NOTHING
    monkeypatch.setattr(storage_channel, "OUTAGE_SECONDS", 0.02)
    time.sleep(0.05)
    driver.put()
    assert channel.receive(0.0) == NOTHING  # The mailbox has changed.
    time.sleep(0.05)
    assert channel.receive(0.0) == GONE


def test_a_temporary_storage_failure_is_tolerated(driver: Driver, channel: StorageChannel) -> None:
    right = driver.storage.objects["b", KEYS.mailbox_key]
    driver.storage.objects["b", KEYS.mailbox_key] = right[:5]  # an incomplete object
    assert channel.receive(0.0) == NOTHING
    driver.put(w7=[(1, Message(MessageKind.CANCEL), None)])
    assert receive_messages(channel) == [Message(MessageKind.CANCEL)]


# --- heartbeats ----------------------------------------------------------------------


def test_heartbeats_report_progress_and_continue_after_a_storage_failure(
    driver: Driver, channel: StorageChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel.keep_alive()
    assert driver.read_replies() == []  # The next heartbeat is not due yet.
    monkeypatch.setattr(storage_channel, "HEARTBEAT_SECONDS", 0.0)
    channel._next_heartbeat_at, put = 0.0, driver.storage.put_object

    def fail(bucket: str, key: str, data: bytes) -> None:
        raise OSError("away")

    driver.storage.put_object = fail
    channel.keep_alive()
    driver.storage.put_object = put
    channel.keep_alive()
    driver.put(w7=[(1, Message(MessageKind.TASK), None)])
    receive_messages(channel)
    channel.send(Message(MessageKind.TASK_REPLY))
    channel.keep_alive()
    reply_keys = [reply_key for reply_key, _ in driver.read_replies()]
    assert [(key.sequence_number, key.last_received, key.last_sent, key.size > 0) for key in reply_keys] == [
        (2, 0, 0, False),
        (3, 1, 1, True),
        (4, 1, 1, False),
    ]


class Clock:
    """A fake `time` module whose clock advances only in `sleep`."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.03])
def test_the_poll_interval_adapts_to_the_latency_of_the_storage(
    driver: Driver, channel: StorageChannel, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, get = Clock(), driver.storage.get_object
    monkeypatch.setattr(storage_channel, "time", clock)
    channel._mailbox_changed_at = 0.0

    def get_slowly(*arguments: Any, **options: Any) -> bytes:
        clock.now += seconds
        return get(*arguments, **options)

    driver.storage.get_object = get_slowly
    assert channel.receive(1.0) == NOTHING
    first, slow = storage_channel.MIN_POLL_INTERVAL, storage_channel.SLOW_STORAGE_POLL_INTERVAL
    assert clock.pauses[0] == pytest.approx(min(max(seconds, first), slow))
    channel.receive(12.0)  # The poll interval grows to its maximum.
    often = [pause for pause in clock.pauses[:-1] if pause < 0.9 * storage_channel.MAX_POLL_INTERVAL]
    # the number of polls that costs are computed with
    assert seconds < slow or len(often) <= storage_channel.N_POLLS_PER_MESSAGE
    assert max(clock.pauses) == storage_channel.MAX_POLL_INTERVAL


# --- versions ------------------------------------------------------------------------------------


def test_a_worker_names_the_version_of_its_driver(driver: Driver, channel: StorageChannel) -> None:
    later = pickle.dumps((PROTOCOL_VERSION + 1, "whatever", {"a later": "version"}))
    driver.storage.put_object("b", KEYS.mailbox_key, later)
    with pytest.raises(ProtocolMismatchError, match=f"its driver has version {PROTOCOL_VERSION + 1}"):
        channel.receive(1.0)


@pytest.mark.parametrize("fields", ["7", "7-9", "7-9-1-0-2-0", "7-9-1-0-2-0-11-12"])
def test_a_driver_names_the_version_of_a_worker(fields: str) -> None:
    with pytest.raises(ProtocolMismatchError) as error:
        KEYS.parse_reply_key(f"{KEYS.reply_prefix}v{PROTOCOL_VERSION + 1}-{fields}")
    assert (error.value.worker_id, error.value.peer_version) == (7, PROTOCOL_VERSION + 1)


def test_checking_for_a_closed_driver_has_no_side_effect(driver: Driver, channel: StorageChannel) -> None:
    channel._next_heartbeat_at = 0.0
    driver.storage.get_object = driver.storage.put_object = None
    assert_only_asks(channel, channel.is_peer_closed)
