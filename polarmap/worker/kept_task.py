"""The task of Lithops or Dask that stays: it connects to its driver, and does what that says.

Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

from polarmap.worker.channels import Channel, Endpoint, connected
from polarmap.worker.io_channel import ChannelIO, serve_tasks
from polarmap.worker.liveness import LIVENESS_SECONDS, exit_when
from polarmap.worker.object_channel import ObjectChannel
from polarmap.worker.threads import ThreadLimits, limiting_variables, limits


class DriverAddress(NamedTuple):
    """How a worker reaches its driver. Plain data.

    endpoints : where it listens, all of which are tried first.
    key : that both sides prove to have.
    bucket, prefix : in the storage, which is used where no socket is reached; None: where there is none.
    memory : bytes of blocks that the worker may keep.
    threads : that its libraries for linear algebra may use.
    """

    endpoints: tuple[Endpoint, ...]
    key: bytes
    bucket: str | None
    prefix: str
    memory: int
    threads: int


def make_kept_task(address: DriverAddress) -> Callable[..., None]:
    """The function Lithops maps over (number, seconds); a closure, so that its modules travel with it."""
    fields: tuple[Any, ...] = tuple(address)

    def task(worker: tuple[int, float], storage: Any) -> None:
        number, seconds = worker
        stay(DriverAddress(*fields), number, seconds, storage)

    return task


def stay(address: DriverAddress, number: int, seconds: float, storage: Any) -> None:
    """Serve the driver for so long, in a process that has nothing else to do and ends with its driver."""
    until = time.monotonic() + seconds
    os.environ.update(limiting_variables(address.threads))
    limited = partial(ThreadLimits().of_process, address.threads)
    with closing(channel_to(address, number, storage)) as channel:
        exit_when(channel.is_closed)
        serve_tasks(ChannelIO(channel, storage, address.memory, limited, is_alone=True), until)


def stay_on_thread(fields: tuple[Any, ...], number: int, seconds: float) -> None:
    """The same on a thread of a process that others use, too: it ends between two tasks only.

    What others may use of the cores is theirs again as soon as the driver is gone.
    """
    address = DriverAddress(*fields)
    until = time.monotonic() + seconds
    with closing(channel_to(address, number, None)) as channel, _limited_while_open(channel) as limited:
        serve_tasks(ChannelIO(channel, None, address.memory, partial(limited, address.threads)), until)


@contextlib.contextmanager
def _limited_while_open(
    channel: Channel,
) -> Iterator[Callable[[int], contextlib.AbstractContextManager[None]]]:
    """What limits the threads of a task until it ends, or the channel is closed."""
    limit, lock, is_over = contextlib.ExitStack(), threading.Lock(), threading.Event()

    def lift() -> None:
        with lock:  # the task may end in this moment
            limit.close()

    @contextlib.contextmanager
    def limited(threads: int) -> Iterator[None]:
        limit.enter_context(limits.of_process(threads))
        try:
            yield
        finally:
            lift()

    def lift_when_closed() -> None:
        while not is_over.wait(LIVENESS_SECONDS):
            if channel.is_closed():
                lift()

    watcher = threading.Thread(target=lift_when_closed, daemon=True)
    watcher.start()
    try:
        yield limited
    finally:
        is_over.set()
        watcher.join()  # it may look at the channel, which is closed next


def channel_to(address: DriverAddress, number: int, storage: Any) -> Channel:
    """The best channel that works from here; ConnectionError if none does."""
    channel: Channel | None = connected(address.endpoints, address.key, number)
    if channel is not None:
        return channel
    if address.bucket is None:
        raise ConnectionError(f"the driver cannot be reached from here at {list(address.endpoints)}")
    return ObjectChannel(storage, address.bucket, address.prefix, number)
