"""Tests that a persistent worker restores its process between jobs, sends results and reads segments."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_storage import DictStorage
from predicates import assert_only_asks
from stored_calls import Bomb, orders_of

from polarmap.worker.environment import ProcessEnvironment
from polarmap.worker.locations import BucketLocation
from polarmap.worker.messages import (
    MAX_INLINE_BYTES,
    ChannelAuthenticators,
    Message,
    MessageAuthenticator,
    MessageKind,
    encode_frame,
)
from polarmap.worker.persistent_worker import PersistentWorker
from polarmap.worker.segments import Segment
from polarmap.worker.socket_channel import SocketChannel, make_worker_channel
from polarmap.worker.task_records import BlockRef, to_plain_tuple

# The environments recorded by `change`. The function is pickled by name, so it runs with this list.
seen: list[Any] = []


def change(block: Any) -> Any:
    environment = os.getcwd(), sorted(os.environ), list(sys.path)
    os.chdir("/")
    os.environ["HOSTILE"] = "1"
    sys.path.append("/hostile")
    seen.append(environment)
    return block


def test_changes_of_the_environment_are_undone_for_the_next_task_on_a_foreign_thread(tmp_path: Path) -> None:
    seen.clear()
    around = ProcessEnvironment.capture()
    driver_end, worker_end = socket.socketpair()
    with driver_end, worker_end:
        io = PersistentWorker(make_worker_channel(worker_end), limit_threads=nullcontext)
        try:
            for number in range(3):
                assert all(map(io.handle_message, orders_of(change, tmp_path, number=number)))
        finally:
            around.apply_to_process()
    assert seen == 3 * [(around.working_directory, sorted(around.variables), list(around.sys_path))]


def test_polling_for_cancellation_does_not_consume_messages() -> None:
    driver_end, worker_end = socket.socketpair()
    with driver_end, worker_end:
        worker = PersistentWorker(make_worker_channel(worker_end), limit_threads=nullcontext)
        driver_end.sendall(encode_frame(Message(MessageKind.CANCEL, (worker.job_id, 0, 0))))
        assert_only_asks(worker, worker.is_cancelled)
        assert not worker.is_cancelled()
        worker.receive_pending_messages()
        assert_only_asks(worker, worker.is_cancelled)
        assert worker.is_cancelled()


def go_deeper(block: Any) -> Any:
    sys.setrecursionlimit(sys.getrecursionlimit() + 7)
    return block


def test_changes_of_f_are_undone_when_its_map_ends(tmp_path: Path) -> None:
    # The process is restored when the job ends, before any other job starts.
    before = sys.getrecursionlimit()
    driver_end, worker_end = socket.socketpair()
    with driver_end, closing(make_worker_channel(worker_end)) as channel:
        io, orders = PersistentWorker(channel), orders_of(go_deeper, tmp_path)
        try:
            assert all(map(io.handle_message, orders))
            assert sys.getrecursionlimit() == before + 7
            assert io.handle_message(Message(MessageKind.CANCEL, orders[-1].attempt_key))
            assert sys.getrecursionlimit() == before
        finally:
            sys.setrecursionlimit(before)


@pytest.mark.parametrize("has_key", [False, True])
def test_only_messages_of_a_sender_with_the_key_are_unpickled(tmp_path: Path, has_key: bool) -> None:
    driver_end, worker_end = socket.socketpair()
    seals = ChannelAuthenticators(MessageAuthenticator(b"to driver"), MessageAuthenticator(b"to worker"))
    with driver_end, closing(make_worker_channel(worker_end, seals)) as channel:
        call = Message(MessageKind.TASK, header=pickle.dumps(Bomb(tmp_path / "unpickled")))
        driver_end.sendall(
            encode_frame(call, MessageAuthenticator(b"to worker" if has_key else b"another key"))
        )
        with pytest.raises(TypeError) if has_key else nullcontext():  # The unpickled object is not a task.
            PersistentWorker(channel).serve()
    assert (tmp_path / "unpickled").exists() == has_key


def test_a_large_result_is_sent_over_the_channel_if_no_folder_can_store_it(tmp_path: Path) -> None:
    driver_end, worker_end = socket.socketpair()
    result = np.arange(float(MAX_INLINE_BYTES))
    with driver_end, closing(make_worker_channel(worker_end)) as channel, ThreadPoolExecutor() as other:
        orders = orders_of(lambda block: result, tmp_path, tmp_path / "block")  # This path is a file.
        io = PersistentWorker(channel)
        done = other.submit(lambda: all(map(io.handle_message, orders)))
        messages: list[Message] = []
        link = SocketChannel(driver_end)
        while not messages:
            messages, is_there = link.receive(30.0)
            assert is_there
        assert done.result()
    assert (messages[0].kind, messages[0].is_file) == (MessageKind.TASK_REPLY, False)
    np.testing.assert_array_equal(np.frombuffer(messages[0].data), result)


drivers: list[SocketChannel] = []


def give_up_and_return_much(block: Any) -> Any:
    drivers[0].send(Message(MessageKind.CANCEL, (0, 0, 0)))
    return np.arange(float(MAX_INLINE_BYTES))


def be_left_and_return_much(block: Any) -> Any:
    drivers[0].disconnect()
    return np.arange(float(MAX_INLINE_BYTES))


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_large_result_of_a_cancelled_task_leaves_no_files(tmp_path: Path, is_gone: bool) -> None:
    # The driver has removed the folders of the map and of its pool. The worker must not create them again.
    driver_end, worker_end = socket.socketpair()
    with driver_end, closing(make_worker_channel(worker_end)) as channel:
        drivers[:] = [SocketChannel(driver_end)]
        f = be_left_and_return_much if is_gone else give_up_and_return_much
        orders = orders_of(f, tmp_path, tmp_path / "pool" / "map", tmp_path / "other" / "map")
        with pytest.raises(ConnectionError) if is_gone else nullcontext():
            assert all(map(PersistentWorker(channel).handle_message, orders))
        if not is_gone:
            assert [message.kind for message in drivers[0].receive(30.0)[0]] == [MessageKind.CANCELLED]
        assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_bucket_that_hangs_ends_the_task_and_the_worker(tmp_path: Path) -> None:
    class Hanging(DictStorage):
        def get_object(self, bucket: str, key: str, **options: Any) -> bytes:
            threading.Event().wait()
            raise AssertionError

    job, task = orders_of(np.negative, tmp_path)
    block = BlockRef(BucketLocation("b", "minio"), (Segment("x", 8),), (("<f8", (1,)),))
    driver_end, worker_end = socket.socketpair()
    with driver_end, closing(make_worker_channel(worker_end)) as channel:
        worker = PersistentWorker(channel, Hanging(), fetch_timeout=0.05)
        assert worker.handle_message(job)
        assert not worker.handle_message(task._replace(header=pickle.dumps(to_plain_tuple(block))))
        [reply], _ = SocketChannel(driver_end).receive(30.0)
    assert reply.kind == MessageKind.FINAL_REPLY
    error_type, text, *_ = pickle.loads(reply.header)[0]
    assert error_type == "UnusableWorkerError"
    assert (
        "block 0 was not read within 0.05 s, as minio bucket 'b' has not returned x: check the storage"
        in text
    )


class ScriptedChannel:
    """A channel on which all messages of the driver arrive in the first receive."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)

    def send(self, message: Message) -> bool:
        return True

    def receive(self, timeout: float | None = 0.0) -> tuple[list[Message], bool]:
        messages, self._messages = self._messages, []
        return messages, bool(messages) or timeout == 0.0


def test_a_segment_that_arrived_before_its_map_ended_is_kept() -> None:
    # Otherwise a worker that is late because it waits for its block would be late in every map.
    order, part = (-1, -1, -1), Segment("x/7", 3, None, 5)
    cancel, sent = Message(MessageKind.CANCEL, order), Message(MessageKind.SEGMENT, order, b"5 3 x/7", b"abc")
    channel: Any = ScriptedChannel(sent, cancel)
    assert bytes(PersistentWorker(channel).fetch_from_driver(part)) == b"abc"
    other_range = Message(MessageKind.SEGMENT, order, b"8 3 x/7", b"def")
    for messages in ([cancel], [other_range, cancel], [Message(MessageKind.NO_SEGMENT, order, b"5 3 x/7")]):
        channel = ScriptedChannel(*messages)
        with pytest.raises(InterruptedError):
            PersistentWorker(channel).fetch_from_driver(part)
