"""The task that stays: which channel it takes, what it makes of its process, when it ends."""

from __future__ import annotations

import importlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from memory_storage import DictStorage
from servers import Server
from stored_calls import Bomb, orders_of

from polarmap.executors.lithops import delete_objects_below
from polarmap.executors.lithops_invocations import open_lithops_storage
from polarmap.executors.pickling import pickle_worker_code_by_value
from polarmap.executors.worker_listener import WorkerListener
from polarmap.worker import persistent_worker
from polarmap.worker.blas_threads import THREAD_LIMIT_VARIABLES
from polarmap.worker.environment import ProcessEnvironment
from polarmap.worker.messages import (
    CANCEL,
    CANCELLED,
    HELLO,
    MAX_INLINE_BYTES,
    SEGMENT,
    TASK,
    TASK_REPLY,
    ChannelAuthenticators,
    Message,
    MessageAuthenticator,
    encode_frame,
)
from polarmap.worker.persistent_worker import (
    DriverAddress,
    PersistentWorker,
    SentModuleFinder,
    make_worker_task,
    open_channel,
    serve_driver,
    serve_driver_on_thread,
)
from polarmap.worker.segments import Location, Segment
from polarmap.worker.socket_channel import BlockingSocketChannel, SocketChannel, make_worker_channel
from polarmap.worker.storage_channel import ChannelKeys, Mailbox, StorageChannel

KEY = bytes(range(32))


def nobody() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        host, port = gone.getsockname()
        return host, port


def address(*endpoints: Any, bucket: str | None = None) -> DriverAddress:
    return DriverAddress(endpoints, KEY, bucket, "polarmap/pool-1", 1000, 1)


@pytest.fixture
def joined() -> Queue[Any]:
    """Who has called: number, link and channel of each."""
    return Queue()


@pytest.fixture
def endpoints(joined: Queue[Any]) -> Iterator[Any]:
    """Where the driver listens."""
    lock, is_over = threading.Lock(), threading.Event()

    def join(number: int, link: Any, channel: str) -> None:
        with lock:
            joined.put((number, link, channel))
            if is_over.is_set():  # the end of the test was sooner, and nobody else closes the connection
                link.close()

    listener = WorkerListener(KEY, join, local_only=True)
    yield listener.endpoints
    listener.close()
    with lock:
        is_over.set()
        while not joined.empty():
            joined.get()[1].close()


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
def test_a_worker_on_a_thread_ends_when_its_time_is_over_or_its_connection_closed(
    seconds: float, endpoints: Any, joined: Queue[Any]
) -> None:
    thread = threading.Thread(target=serve_driver_on_thread, args=[tuple(address(*endpoints)), 3, seconds])
    thread.start()
    _, link, _ = joined.get(timeout=30.0)
    if seconds > 1.0:
        link.close()
    thread.join(30.0)
    assert not thread.is_alive()
    link.close()


def test_the_task_travels_without_the_package(endpoints: Any, joined: Queue[Any], tmp_path: Path) -> None:
    """As on a function in a cloud, where nothing but the standard library, numpy and Lithops is there."""
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
        number, link, channel = joined.get(timeout=30.0)
        assert (number, channel) == (5, "TCP")
        said, is_there = link.receive(30.0)
        whereabouts = f"\n{socket.gethostname()}\n".encode()
        told = Message(HELLO, header=str(worker.pid).encode(), data=whereabouts)
        assert (said, is_there) == ([told], True)
        link.close()
        assert worker.wait(10.0) == 0


def test_libraries_that_are_loaded_later_take_as_many_threads_as_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = DictStorage()
    orders = pickle.dumps(tuple(Mailbox(1, {}, {})))
    storage.put_object("b", ChannelKeys("polarmap/pool-1").mailbox_key, orders)
    monkeypatch.setattr(persistent_worker, "exit_process_when", lambda is_over: lambda: None)
    for name in THREAD_LIMIT_VARIABLES:
        monkeypatch.setenv(name, "9")
    serve_driver(address(bucket="b")._replace(n_threads=3), 1, 0.01, storage)
    assert {os.environ[name] for name in THREAD_LIMIT_VARIABLES} == {"3"}


def test_a_worker_opens_connections_of_its_own_to_the_storage(
    monkeypatch: pytest.MonkeyPatch, s3_server: Server, tmp_path: Path
) -> None:
    """Since Lithops 3.8 the process that a worker was forked of goes on to use those that it has."""
    monkeypatch.setattr(persistent_worker, "exit_process_when", lambda is_over: lambda: None)
    storage = open_lithops_storage(s3_server.config(tmp_path / "s3.yaml"))
    keys = ChannelKeys("polarmap/pool-1")
    storage.put_object(storage.bucket, keys.mailbox_key, pickle.dumps(tuple(Mailbox(1, {}, {}))))
    inherited = ports_of(storage)
    try:
        serve_driver(address(bucket=storage.bucket), 1, 0.01, storage)
        used = ports_of(storage)
        assert [
            keys.parse_reply_key(key).worker_id
            for key in storage.list_keys(storage.bucket, keys.reply_prefix)
        ] == [1]
    finally:  # other tests of the session find the bucket empty
        delete_objects_below(storage, [f"{keys.prefix}/"])
    assert inherited and used and not inherited & used


def ports_of(storage: Any) -> set[int]:
    """The ports here of the connections that a client of S3 keeps open."""
    pools = storage.get_client()._endpoint.http_session._manager.pools
    connections = [one for key in list(pools.keys()) for one in pools[key].pool.queue]
    return {one.sock.getsockname()[1] for one in connections if one is not None and one.sock is not None}


# --- tasks -----------------------------------------------------------------------------------------


seen: list[Any] = []  # by `change`, which travels by its name


def change(block: Any) -> Any:
    found = os.getcwd(), sorted(os.environ), list(sys.path)
    os.chdir("/")
    os.environ["HOSTILE"] = "1"
    sys.path.append("/hostile")
    seen.append(found)
    return block


def test_on_a_thread_of_others_what_one_f_changes_around_it_is_set_back_for_the_next(tmp_path: Path) -> None:
    seen.clear()
    around = ProcessEnvironment.capture()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        io = PersistentWorker(make_worker_channel(theirs), limit_threads=nullcontext)
        try:
            for number in range(3):
                assert all(map(io.handle_message, orders_of(change, tmp_path, number=number)))
        finally:
            around.apply_to_process()
    assert seen == 3 * [(around.working_directory, sorted(around.variables), list(around.sys_path))]


def go_deeper(block: Any) -> Any:
    sys.setrecursionlimit(sys.getrecursionlimit() + 7)
    return block


def test_what_f_has_changed_is_set_back_when_its_map_is_over(tmp_path: Path) -> None:
    """While nobody waits: not when the next map does."""
    before = sys.getrecursionlimit()
    ours, theirs = socket.socketpair()
    with ours, closing(make_worker_channel(theirs)) as channel:
        io, orders = PersistentWorker(channel), orders_of(go_deeper, tmp_path)
        try:
            assert all(map(io.handle_message, orders))
            assert sys.getrecursionlimit() == before + 7
            assert io.handle_message(Message(CANCEL, orders[-1].attempt_key))
            assert sys.getrecursionlimit() == before
        finally:
            sys.setrecursionlimit(before)


@pytest.mark.parametrize("has_key", [False, True])
def test_nothing_is_unpickled_that_is_not_of_one_who_has_the_key(tmp_path: Path, has_key: bool) -> None:
    ours, theirs = socket.socketpair()
    seals = ChannelAuthenticators(MessageAuthenticator(b"to driver"), MessageAuthenticator(b"to worker"))
    with ours, closing(make_worker_channel(theirs, seals)) as channel:
        call = Message(TASK, header=pickle.dumps(Bomb(tmp_path / "unpickled")))
        ours.sendall(encode_frame(call, MessageAuthenticator(b"to worker" if has_key else b"another key")))
        with pytest.raises(TypeError) if has_key else nullcontext():  # it is no call
            PersistentWorker(channel).serve()
    assert (tmp_path / "unpickled").exists() == has_key


def test_a_large_result_for_which_no_folder_has_room_goes_over_the_channel(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    result = np.arange(float(MAX_INLINE_BYTES))
    with ours, closing(make_worker_channel(theirs)) as channel, ThreadPoolExecutor() as other:
        orders = orders_of(lambda block: result, tmp_path, tmp_path / "block")  # which is a file
        io = PersistentWorker(channel)
        done = other.submit(lambda: all(map(io.handle_message, orders)))
        said: list[Message] = []
        link = SocketChannel(ours)
        while not said:
            said, is_there = link.receive(30.0)
            assert is_there
        assert done.result()
    assert (said[0].kind, said[0].is_file) == (TASK_REPLY, False)
    np.testing.assert_array_equal(np.frombuffer(said[0].data), result)


drivers: list[SocketChannel] = []


def give_up_and_return_much(block: Any) -> Any:
    drivers[0].send(Message(CANCEL, (0, 0, 0)))
    return np.arange(float(MAX_INLINE_BYTES))


def be_left_and_return_much(block: Any) -> Any:
    drivers[0].disconnect()
    return np.arange(float(MAX_INLINE_BYTES))


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_large_result_for_which_nobody_waits_leaves_nothing(tmp_path: Path, is_gone: bool) -> None:
    """Neither of the map nor of its pool, whose driver has removed what it had."""
    ours, theirs = socket.socketpair()
    with ours, closing(make_worker_channel(theirs)) as channel:
        drivers[:] = [SocketChannel(ours)]
        f = be_left_and_return_much if is_gone else give_up_and_return_much
        orders = orders_of(f, tmp_path, tmp_path / "pool" / "map", tmp_path / "other" / "map")
        with pytest.raises(ConnectionError) if is_gone else nullcontext():
            assert all(map(PersistentWorker(channel).handle_message, orders))
        if not is_gone:
            assert [message.kind for message in drivers[0].receive(30.0)[0]] == [CANCELLED]
        assert not [path for path in tmp_path.iterdir() if path.is_dir()]


# --- modules that only the driver has ---


@pytest.fixture
def sent() -> Iterator[SentModuleFinder]:
    before, path = set(sys.modules), list(sys.meta_path)
    yield SentModuleFinder()
    sys.meta_path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_modules_and_packages_are_imported(sent: SentModuleFinder) -> None:
    sent.add_sources(
        {
            "sent_package": ("from sent_package.inner import two\none = 1", True),
            "sent_package.inner": ("two = 2", False),
            "sent_alone": ("import sent_package\nthree = sent_package.one + sent_package.two", False),
        }
    )
    assert importlib.import_module("sent_alone").three == 3
    assert importlib.import_module("sent_package.inner").two == 2


def test_what_is_installed_comes_first_and_what_was_not_sent_is_not_found(sent: SentModuleFinder) -> None:
    sent.add_sources({"colorsys": ("wrong = True", False), "json.tool": ("wrong = True", False)})
    for name in ("colorsys", "json.tool"):
        assert not hasattr(importlib.import_module(name), "wrong")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("sent_other")


def test_a_module_that_has_changed_is_imported_anew_and_others_are_not(sent: SentModuleFinder) -> None:
    sent.add_sources({"sent_first": ("value = 1", False), "sent_second": ("value = []", False)})
    first, second = map(importlib.import_module, ("sent_first", "sent_second"))
    sent.add_sources({"sent_first": ("value = 2", False), "sent_second": ("value = []", False)})
    assert importlib.import_module("sent_first").value == 2
    assert first.value == 1
    assert importlib.import_module("sent_second") is second


def test_it_is_asked_once_however_often_modules_come(sent: SentModuleFinder) -> None:
    assert sent not in sys.meta_path
    sent.add_sources({})
    assert sent not in sys.meta_path
    for number in range(3):
        sent.add_sources({f"sent_{number}": ("", False)})
    assert sys.meta_path.count(sent) == 1


def test_tracebacks_show_its_lines(sent: SentModuleFinder) -> None:
    sent.add_sources({"sent_wrong": ("def f():\n    raise KeyError('here')  # this line", False)})
    try:
        importlib.import_module("sent_wrong").f()
    except KeyError:
        assert "# this line" in traceback.format_exc()


class Said:
    """A channel over which all that the driver says has come at once."""

    def __init__(self, *said: Message) -> None:
        self._said = list(said)

    def send(self, message: Message) -> bool:
        return True

    def receive(self, timeout: float | None = 0.0) -> tuple[list[Message], bool]:
        said, self._said = self._said, []
        return said, bool(said) or timeout == 0.0


def test_a_part_that_came_before_its_map_ended_is_kept_and_need_not_be_sent_again() -> None:
    """Else a worker that is late, as it waits for its block, is late in each map."""
    order, part = (-1, -1, -1), Segment("x/7", 3)
    cancel, sent = Message(CANCEL, order), Message(SEGMENT, order, b"x/7", b"abc")
    channel: Any = Said(sent, cancel)
    assert bytes(PersistentWorker(channel).read_raw_segment(Location("driver", "x"), part)) == b"abc"
    channel = Said(cancel)
    with pytest.raises(InterruptedError):
        PersistentWorker(channel).read_raw_segment(Location("driver", "x"), part)
