"""Entry points of the persistent workers that Lithops, Dask and Ray start: each connects to its driver.

Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from math import inf
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from polarmap.worker.blas_threads import ThreadLimiter, get_thread_limit_variables, thread_limiter
from polarmap.worker.block_cache import BlockCache
from polarmap.worker.handshake import Endpoint, connect_to_driver
from polarmap.worker.persistent_worker import PersistentWorker
from polarmap.worker.processes import exit_process_when
from polarmap.worker.segments import drop_inherited_connections
from polarmap.worker.socket_channel import TCP_TIMEOUT, SocketChannel
from polarmap.worker.storage_channel import StorageChannel


class DriverAddress(NamedTuple):
    """How a worker reaches its driver. Plain data.

    endpoints : where it listens, all of which are tried first.
    key : that both sides prove to have.
    bucket, prefix : in the storage, which is used where no socket is reached; None: where there is none.
    cache_bytes : bytes of blocks that the worker may keep.
    n_threads : that its libraries for linear algebra may use.
    tcp_timeout : seconds of silence after which the connection is lost.
    fetch_timeout : seconds that reading a block from the storage may take.
    """

    endpoints: tuple[Endpoint, ...]
    key: bytes
    bucket: str | None
    prefix: str
    cache_bytes: int
    n_threads: int
    tcp_timeout: float = TCP_TIMEOUT
    fetch_timeout: float = inf


def make_worker_task(address: DriverAddress) -> Callable[..., None]:
    """The function Lithops maps over (number, seconds); a closure, so that its modules travel with it."""
    fields: tuple[Any, ...] = tuple(address)

    def task(worker: tuple[int, float], storage: Any) -> None:
        worker_id, lifetime_seconds = worker
        serve_driver(DriverAddress(*fields), worker_id, lifetime_seconds, storage)

    return task


def serve_driver(
    address: DriverAddress,
    worker_id: int,
    lifetime_seconds: float,
    storage: Any,
    label: str = "",
    machine_address: str = "",
) -> None:
    """Serve the driver for so long, in a process that has nothing else to do and ends with its driver."""
    deadline = time.monotonic() + lifetime_seconds
    drop_inherited_connections(storage)
    os.environ.update(get_thread_limit_variables(address.n_threads))
    with closing(open_channel(address, worker_id, storage)) as channel, ExitStack() as cleanup:
        cleanup.callback(exit_process_when(channel.is_peer_closed, update=channel.keep_alive))
        with ThreadLimiter().limit_process_threads(address.n_threads):
            block_cache = BlockCache(address.cache_bytes)
            worker = PersistentWorker(
                channel, storage, block_cache, None, label, machine_address, address.fetch_timeout
            )
            worker.serve(deadline)


# Blocks of workers on threads of this process, by the key of their driver.
_shared_caches = WeakValueDictionary[bytes, BlockCache]()


def serve_driver_on_thread(
    address_fields: tuple[Any, ...],
    worker_id: int,
    lifetime_seconds: float,
    label: str = "",
    machine_address: str = "",
) -> None:
    """The same on a thread of a process that others use, too: it ends between two tasks only.

    What others may use of the cores is theirs again when a task ends, or the driver is gone. Workers of one
    driver on threads of one process keep blocks together.
    """
    address = DriverAddress(*address_fields)
    block_cache = _shared_caches.setdefault(address.key, BlockCache(0))
    deadline = time.monotonic() + lifetime_seconds
    limit_stack, lock = ExitStack(), threading.Lock()

    def lift_thread_limit() -> None:
        with lock:  # the task may end in this moment
            limit_stack.close()

    @contextlib.contextmanager
    def limit_threads() -> Iterator[None]:
        limit_stack.enter_context(thread_limiter.limit_process_threads(address.n_threads))
        try:
            yield
        finally:
            lift_thread_limit()

    with closing(open_channel(address, worker_id, None)) as channel, ExitStack() as cleanup:
        cleanup.callback(exit_process_when(channel.is_peer_closed, lift_thread_limit, channel.keep_alive))
        cleanup.enter_context(block_cache.extend_byte_budget(address.cache_bytes))
        PersistentWorker(channel, None, block_cache, limit_threads, label, machine_address).serve(deadline)


def open_channel(address: DriverAddress, worker_id: int, storage: Any) -> SocketChannel | StorageChannel:
    """Return the best channel that works from here; ConnectionError if none does.

    Raises ProtocolMismatchError if the driver uses another version of the protocol.
    """
    channel = connect_to_driver(address.endpoints, address.key, worker_id, address.tcp_timeout)
    if channel is not None:
        return channel
    if address.bucket is None:
        endpoints_text = ", ".join(f"{host}:{port}" for host, port in address.endpoints)
        advice = "say in Pool(listen='host:port') where it does"
        raise ConnectionError(f"no driver answers {socket.gethostname()} at {endpoints_text}: {advice}")
    return StorageChannel(storage, address.bucket, address.prefix, worker_id)
