"""Tests that a worker opens the best channel to its driver, sets up its process, and exits in time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from memory_storage import DictStorage
from servers import Server

from polarmap.executors.lithops import delete_objects_below
from polarmap.executors.lithops_invocations import open_lithops_storage
from polarmap.executors.pickling import pickle_worker_code_by_value
from polarmap.executors.worker_listener import WorkerListener
from polarmap.worker import worker_entry
from polarmap.worker.blas_threads import THREAD_LIMIT_VARIABLES
from polarmap.worker.messages import Message, MessageKind
from polarmap.worker.socket_channel import BlockingSocketChannel
from polarmap.worker.storage_channel import ChannelKeys, Mailbox, StorageChannel
from polarmap.worker.worker_entry import (
    DriverAddress,
    make_worker_task,
    open_channel,
    serve_driver,
    serve_driver_on_thread,
)

KEY = bytes(range(32))


def nobody() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        host, port = gone.getsockname()
        return host, port


def address(*endpoints: Any, bucket: str | None = None) -> DriverAddress:
    return DriverAddress(endpoints, KEY, bucket, "polarmap/pool-1", 1000, 1)


@pytest.fixture
def connected_workers() -> Queue[Any]:
    """Return the queue of workers that have connected: id, link and channel of each."""
    return Queue()


@pytest.fixture
def endpoints(connected_workers: Queue[Any]) -> Iterator[Any]:
    """Start a listener that puts each connected worker into `joined`, and yield its endpoints."""
    lock, is_over = threading.Lock(), threading.Event()

    def join(number: int, link: Any, channel: str) -> None:
        with lock:
            connected_workers.put((number, link, channel))
            if is_over.is_set():  # The test has ended and cannot close this connection itself.
                link.close()

    listener = WorkerListener(KEY, join, local_only=True)
    yield listener.endpoints
    listener.close()
    with lock:
        is_over.set()
        while not connected_workers.empty():
            connected_workers.get()[1].close()


def test_the_best_channel_that_works_is_taken(endpoints: Any) -> None:
    expected = [
        (address(*endpoints, bucket="b"), BlockingSocketChannel),
        (address(nobody(), bucket="b"), StorageChannel),
        (address(bucket="b"), StorageChannel),
    ]
    for where, kind in expected:
        with closing(open_channel(where, 1, DictStorage())) as channel:
            assert type(channel) is kind


@pytest.mark.parametrize("seconds", [0.2, 600.0])
def test_a_worker_on_a_thread_ends_at_its_time_limit_or_when_its_connection_closes(
    seconds: float, endpoints: Any, connected_workers: Queue[Any]
) -> None:
    thread = threading.Thread(target=serve_driver_on_thread, args=[tuple(address(*endpoints)), 3, seconds])
    thread.start()
    _, link, _ = connected_workers.get(timeout=30.0)
    if seconds > 1.0:
        link.close()
    thread.join(30.0)
    assert not thread.is_alive()
    link.close()


def test_the_task_runs_without_the_installed_package(
    endpoints: Any, connected_workers: Queue[Any], tmp_path: Path
) -> None:
    # A cloud function has only the standard library, NumPy and Lithops.
    with pickle_worker_code_by_value():
        import cloudpickle

        data = cloudpickle.dumps(make_worker_task(address(*endpoints)))
    (tmp_path / "task").write_bytes(data)
    code = (
        "import pickle, sys; task = pickle.load(open(sys.argv[1], 'rb'))\n"
        "assert 'polarmap' not in sys.modules, 'it came along by name'\n"
        "task((5, 60.0), None)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "task")]) as worker:
        number, link, channel = connected_workers.get(timeout=30.0)
        assert (number, channel) == (5, "TCP")
        messages, is_there = link.receive(30.0)
        whereabouts = f"\n{socket.gethostname()}\n".encode()
        hello = Message(MessageKind.HELLO, header=str(worker.pid).encode(), data=whereabouts)
        assert (messages, is_there) == ([hello], True)
        link.close()
        assert worker.wait(10.0) == 0


def test_libraries_that_are_loaded_later_respect_the_thread_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = DictStorage()
    orders = Mailbox(1, {}, {}).encode()
    storage.put_object("b", ChannelKeys("polarmap/pool-1").mailbox_key, orders)
    monkeypatch.setattr(worker_entry, "exit_process_when", lambda *_, **_options: lambda: None)
    for name in THREAD_LIMIT_VARIABLES:
        monkeypatch.setenv(name, "9")
    serve_driver(address(bucket="b")._replace(n_threads=3), 1, 0.01, storage)
    assert {os.environ[name] for name in THREAD_LIMIT_VARIABLES} == {"3"}


def test_a_worker_opens_new_connections_to_the_storage(
    monkeypatch: pytest.MonkeyPatch, s3_server: Server, tmp_path: Path
) -> None:
    # Since Lithops 3.8, the parent of a worker continues to use the connections that the worker inherits.
    monkeypatch.setattr(worker_entry, "exit_process_when", lambda *_, **_options: lambda: None)
    storage = open_lithops_storage(s3_server.config(tmp_path / "s3.yaml"))
    keys = ChannelKeys("polarmap/pool-1")
    storage.put_object(storage.bucket, keys.mailbox_key, Mailbox(1, {}, {}).encode())
    inherited = get_local_ports(storage)
    try:
        serve_driver(address(bucket=storage.bucket), 1, 0.01, storage)
        used = get_local_ports(storage)
        assert [
            keys.parse_reply_key(key).worker_id
            for key in storage.list_keys(storage.bucket, keys.reply_prefix)
        ] == [1]
    finally:  # Other tests of the session expect an empty bucket.
        delete_objects_below(storage, [f"{keys.prefix}/"])
    assert inherited and used and not inherited & used


def get_local_ports(storage: Any) -> set[int]:
    """Return the local ports of the connections that the S3 client of `storage` keeps open."""
    pools = storage.get_client()._endpoint.http_session._manager.pools
    connections = [connection for key in list(pools.keys()) for connection in pools[key].pool.queue]
    return {
        connection.sock.getsockname()[1]
        for connection in connections
        if connection is not None and connection.sock is not None
    }
