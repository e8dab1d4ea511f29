"""WorkerListener: the driver accepts connections only from its own workers."""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from queue import Queue
from typing import Any

import pytest
from pool_processes import code_of_child

from polarmap.errors import CodeError
from polarmap.executors import worker_listener
from polarmap.executors.storage_channels import WorkerChannel
from polarmap.executors.worker_listener import WorkerListener, check_endpoint, list_local_addresses
from polarmap.worker.handshake import GREETING_BYTES, RESPONSE_BYTES, connect_to_driver
from polarmap.worker.polling import wait_until_ready

KEY = bytes(range(32))


class Crowd:
    """Collects the workers that have joined."""

    def __init__(self) -> None:
        self.joined: Queue[tuple[int, WorkerChannel, str]] = Queue()

    def join(self, number: int, link: WorkerChannel, channel: str) -> None:
        self.joined.put((number, link, channel))

    def pop_joined(self) -> tuple[int, str]:
        number, link, channel = self.joined.get(timeout=10.0)
        link.close()
        return number, channel


@pytest.fixture
def crowd() -> Crowd:
    return Crowd()


@pytest.fixture
def listener(crowd: Crowd) -> Iterator[WorkerListener]:
    listener = WorkerListener(KEY, crowd.join, local_only=True)
    yield listener
    listener.close()


def connect_without_key(listener: WorkerListener) -> socket.socket:
    """Connect to the listener without a key, as any process that knows the address can."""
    return socket.create_connection(listener.endpoints[-1], 10.0)


def test_local_workers_connect_to_a_local_address(listener: WorkerListener, crowd: Crowd) -> None:
    ((host, port),) = listener.endpoints
    assert host == "127.0.0.1"
    for other in {*list_local_addresses(), "127.0.0.2"} - {host}:
        with socket.socket() as client_socket:
            assert client_socket.connect_ex((other, port))
    open_to_all = WorkerListener(KEY, crowd.join, local_only=False)
    assert [host for host, _ in open_to_all.endpoints] == list_local_addresses()
    open_to_all.close()


def test_connection_without_the_key_receives_only_a_nonce(listener: WorkerListener, crowd: Crowd) -> None:
    for request in (b"", b"GET / HTTP/1.1\r\n\r\n" + bytes(100), os.urandom(10_000)):
        with connect_without_key(listener) as stranger:
            received = b""
            # The listener may close the connection before it has read or received all bytes.
            with suppress(OSError):
                stranger.sendall(request)
                stranger.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                while more := stranger.recv(1000):
                    received += more
            assert len(received) in (0, GREETING_BYTES)
    assert connect_to_driver(listener.endpoints, os.urandom(32), 1) is None
    assert crowd.joined.empty()


def test_nonces_are_unique(listener: WorkerListener) -> None:
    nonces = set()
    for _ in range(5):
        with connect_without_key(listener) as stranger:
            nonces.add(stranger.recv(GREETING_BYTES, socket.MSG_WAITALL))
    assert len(nonces) == 5


def test_silent_connections_do_not_delay_workers(
    listener: WorkerListener, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_listener, "MAX_UNAUTHENTICATED", 8)
    with ExitStack() as stack:
        silent = [stack.enter_context(connect_without_key(listener)) for _ in range(30)]
        for number in range(5):
            channel = connect_to_driver(listener.endpoints, KEY, number)
            assert channel is not None
            assert crowd.pop_joined()[0] == number
            channel.close()
        silent[0].recv(GREETING_BYTES)
        assert silent[0].recv(1) == b""  # the oldest silent connection was closed


def test_connection_without_a_free_thread_is_closed_and_later_ones_work(
    listener: WorkerListener, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(call: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(worker_listener, "run_in_daemon_thread", refuse)
        with connect_without_key(listener) as stranger:
            assert stranger.recv(1) == b""
    channel = connect_to_driver(listener.endpoints, KEY, 7)
    assert channel is not None
    assert crowd.pop_joined() == (7, "TCP")
    channel.close()


@pytest.mark.parametrize("says", [b"", b"."])
def test_silent_and_slow_connections_are_closed_after_a_timeout(
    says: bytes, listener: WorkerListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polarmap.worker.handshake.PROOF_TIMEOUT", 0.2)
    sent = 0
    with connect_without_key(listener) as stranger:
        assert len(stranger.recv(GREETING_BYTES)) == GREETING_BYTES
        with suppress(ConnectionError):
            sent += stranger.send(says)
            while not wait_until_ready([stranger], select.POLLIN, 0.05):
                sent += stranger.send(says)
            assert stranger.recv(1) == b""
    assert len(says) <= sent < RESPONSE_BYTES


def test_many_workers_can_join_at_once(listener: WorkerListener, crowd: Crowd) -> None:
    numbers = range(100)
    with ThreadPoolExecutor(len(numbers)) as pool:
        channels = list(pool.map(lambda number: connect_to_driver(listener.endpoints, KEY, number), numbers))
    assert all(channels)
    assert sorted(crowd.pop_joined() for _ in numbers) == [(number, "TCP") for number in numbers]
    for channel in channels:
        assert channel is not None
        channel.close()


def test_workers_connect_to_the_given_address_or_a_forwarding_machine(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            WorkerListener(KEY, crowd.join, local_only=False, endpoint=("127.0.0.1", port))
    for host in ("127.0.0.1", "192.0.2.77", "no.such.host.invalid"):
        listener = WorkerListener(KEY, crowd.join, local_only=False, endpoint=(host, port))
        assert listener.endpoints == ((host, port),)
        channel = connect_to_driver([("127.0.0.1", port)], KEY, 1)
        assert channel is not None
        assert crowd.pop_joined() == (1, "TCP")
        channel.close()
        if host == "127.0.0.1":
            with socket.socket() as server:  # Other addresses are not listened on.
                assert server.connect_ex(("127.0.0.2", port))
        listener.close()


@pytest.mark.parametrize(
    "address", ["8800", ":8800", "head:", "head:x", "head:0", "head:65536", "head:\u0663"]
)
def test_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(CodeError, match="host:port"):
        check_endpoint(address)


def test_closed_listener_leaves_no_threads_and_sockets(crowd: Crowd) -> None:
    before = descriptors()
    listener = WorkerListener(KEY, crowd.join, local_only=False)
    port = listener.endpoints[0][1]
    listener.close()
    with socket.socket() as client_socket:
        assert client_socket.connect_ex(("127.0.0.1", port))
    assert descriptors() == before
    assert not any(thread.name == "polarmap-listener" for thread in threading.enumerate())


def test_forked_child_releases_the_listener(listener: WorkerListener, crowd: Crowd) -> None:
    assert code_of_child(listener.after_fork, []) == 0
    channel = connect_to_driver(listener.endpoints, KEY, 1)
    assert channel is not None
    assert crowd.pop_joined() == (1, "TCP")
    channel.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="Windows knows its own name")
def test_own_addresses_ask_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_names(host: str, *args: Any, **options: Any) -> Any:
        ipaddress.ip_address(host)  # raises ValueError for a name, which a slow name server would resolve
        return look_up(host, *args, **options)

    look_up, addresses = socket.getaddrinfo, list_local_addresses()
    monkeypatch.setattr(socket, "getaddrinfo", without_names)
    assert list_local_addresses() == addresses


def test_own_addresses_are_known_without_a_default_route(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = list_local_addresses()
    monkeypatch.setattr("polarmap.executors.worker_listener.find_local_address_towards", lambda host: "")
    assert set(list_local_addresses()) == set(addresses)


def test_own_addresses_are_those_of_this_machine() -> None:
    addresses = list_local_addresses()
    assert addresses[-1] == "127.0.0.1"
    assert len(set(addresses)) == len(addresses)
    for address in addresses:
        with socket.socket() as server:
            server.bind((address, 0))  # Only an address of this machine can be bound.
