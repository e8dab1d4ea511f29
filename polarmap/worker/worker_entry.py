"""Entry points of the persistent workers that Lithops, Dask and Ray start.

Each worker connects to its driver by a socket or, if that is impossible, by objects in a storage. The worker
then serves the driver until its lifetime ends or the driver disconnects. This module runs on workers, so it
imports at most numpy.
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
    """The address of a driver, and settings for the persistent workers that connect to it.

    Attributes
    ----------
    endpoints : tuple of (host, port)
        The addresses on which the driver listens. The worker tries them in this order.
    key : bytes
        The secret with which driver and worker authenticate each other.
    bucket, prefix : str
        Where driver and worker exchange messages as objects if the worker cannot connect to any of the
        endpoints: the bucket, and the prefix of the keys. If `bucket` is None, only the endpoints are tried.
    cache_bytes : int
        The maximum size of a worker's block cache, in bytes.
    n_threads : int
        The maximum number of threads that linear algebra libraries use.
    tcp_timeout : float
        The number of seconds without a response after which the connection counts as lost.
    fetch_timeout : float
        The maximum time for reading a data block from a storage, in seconds.
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
    """Return the function that Lithops calls to run a persistent worker.

    Lithops calls it with a pair: the worker's id, and its lifetime in seconds. The function is a closure, so
    that cloudpickle includes the modules that it uses.
    """
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
    """Run a persistent worker in a process that runs nothing else.

    The worker connects to the driver and runs its tasks until the driver disconnects or the lifetime ends. If
    the driver disconnects during a task, the process exits.

    Parameters
    ----------
    address : DriverAddress
        The address of the driver, and settings of the worker.
    worker_id : int
        The id of this worker. It must be unique among the workers of the driver.
    lifetime_seconds : float
        The lifetime of the worker in seconds. A task that is running when it ends is completed.
    storage : lithops.Storage or None
        The client for the storage with data blocks and messages; None if there is no storage.
    label, machine_address : str
        The names of the worker and of its machine, as for `PersistentWorker`.
    """
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


# The block caches of this process, by the secret key of the driver. Workers that run on several threads of
# this process, but for the same driver, share a cache.
_shared_caches = WeakValueDictionary[bytes, BlockCache]()


def serve_driver_on_thread(
    address_fields: tuple[Any, ...],
    worker_id: int,
    lifetime_seconds: float,
    label: str = "",
    machine_address: str = "",
) -> None:
    """Run a persistent worker on a thread of a process that also runs other code.

    Unlike `serve_driver`, this function does not interrupt a running task if the driver disconnects. It
    limits the threads of linear algebra libraries only during tasks, and no longer than the driver is
    connected. Workers on several threads of this process share a block cache if they have the same driver.
    """
    address = DriverAddress(*address_fields)
    block_cache = _shared_caches.setdefault(address.key, BlockCache(0))
    deadline = time.monotonic() + lifetime_seconds
    limit_stack, lock = ExitStack(), threading.Lock()

    def lift_thread_limit() -> None:
        # Two threads may call this function at the same time, if the driver disconnects as a task ends.
        with lock:
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
    """Connect a worker to its driver, and return the channel over which they exchange messages.

    The channel is a socket or, if the driver cannot be reached through a socket, a storage. Raises
    ConnectionError if neither is available, and ProtocolMismatchError if the driver uses another version of
    the protocol.
    """
    channel = connect_to_driver(address.endpoints, address.key, worker_id, address.tcp_timeout)
    if channel is not None:
        return channel
    if address.bucket is None:
        endpoints_text = ", ".join(f"{host}:{port}" for host, port in address.endpoints)
        advice = "pass an address that workers can reach as Pool(listen='host:port')"
        raise ConnectionError(
            f"the driver does not answer {socket.gethostname()} at {endpoints_text}: {advice}"
        )
    return StorageChannel(storage, address.bucket, address.prefix, worker_id)
