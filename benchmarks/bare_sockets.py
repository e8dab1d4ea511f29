"""The least that a map of coded tasks can be: forked workers, a pair of sockets each, one order, one reply.

polarmap's own code decides which results are enough, and decodes. Blocks stay on workers, f goes once a map
and worker, one order is told ahead. There are no failures, no retries, no reports: a floor, not a rival.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

from benchmarks import one_thread_of_blas
from polarmap.codes import ArrivalTracker, PolarCode

TOLD = 2  # orders that a worker has at most: the one that it is at, and the next
LENGTH = struct.Struct("<q")


class Worker(NamedTuple):
    """Process and socket, orders that have no reply yet, bytes of a reply that is not whole yet."""

    pid: int
    socket: socket.socket
    orders: deque[int]
    unread: bytearray


class BareSockets:
    """Processes that hold the n coded blocks of an array (k, ...)."""

    def __init__(self, blocks: np.ndarray, n: int, workers: int) -> None:
        self._code = PolarCode(n, len(blocks))
        self._poll, self._maps, self._workers = select.poll(), 0, dict[int, Worker]()
        coded = list(self._code.encode(blocks))
        with one_thread_of_blas():  # in workers, which are forked here
            for _ in range(workers):
                ours, theirs = socket.socketpair()
                pid = os.fork()
                if not pid:
                    ours.close()
                    run(theirs, coded)
                theirs.close()
                self._workers[ours.fileno()] = Worker(pid, ours, deque(), bytearray())
                self._poll.register(ours, select.POLLIN)

    def map(self, f: Callable[[Any], np.ndarray]) -> np.ndarray:
        """The results of f, a linear function, of all blocks of data."""
        self._maps += 1
        pickled, decoder, results = cloudpickle.dumps(f), ArrivalTracker(self._code), dict[int, np.ndarray]()
        tasks, unaware = deque(range(self._code.n)), set(self._workers)

        def order(place: int) -> None:
            worker = self._workers[place]
            if tasks and len(worker.orders) < TOLD:
                what = pickled if place in unaware else None
                unaware.discard(place)
                worker.orders.append(tasks.popleft())
                send(worker.socket, (self._maps, worker.orders[-1], what))

        for place in list(self._workers) * TOLD:
            order(place)
        while not decoder.is_ready:
            for place, _ in self._poll.poll():
                worker = self._workers[place]
                for number, task, result in received(worker.socket, worker.unread):
                    worker.orders.popleft()
                    order(place)
                    if number == self._maps:  # else of a map that is over
                        results[task] = result
                        decoder.add(task)
        return self._code.decode(results)

    def __enter__(self) -> BareSockets:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers.values():
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
            worker.socket.close()


def run(driver: socket.socket, blocks: Sequence[Any]) -> None:
    """A worker's program, until it is killed."""
    unread, f = bytearray(), None
    with ExitStack() as stack:
        stack.callback(os._exit, 0)  # nothing of the driver's ends here
        while True:
            for number, task, pickled in received(driver, unread):
                if pickled is not None:
                    f = pickle.loads(pickled)
                assert f is not None
                send(driver, (number, task, f(blocks[task])))


def send(to: socket.socket, message: Any) -> None:
    data = pickle.dumps(message, protocol=5)
    to.sendall(LENGTH.pack(len(data)) + data)


def received(of: socket.socket, unread: bytearray) -> Iterator[Any]:
    """The messages that are whole when some bytes more have come; EOFError if none will."""
    chunk = of.recv(1 << 20)
    if not chunk:
        raise EOFError
    unread += chunk
    while len(unread) >= LENGTH.size:
        end = LENGTH.size + LENGTH.unpack_from(unread)[0]
        if len(unread) < end:
            break
        message = pickle.loads(unread[LENGTH.size : end])
        del unread[:end]
        yield message
