"""The simplest possible map of coded tasks: forked workers, one pair of sockets each, one message per task.

polarmap decides which results suffice, and decodes. Workers keep their blocks, receive f once in a map, and
have one task queued ahead. Failures, retries and reports are left out, so the times are a lower bound.
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

from benchmarks import single_blas_thread
from polarmap.codes import ArrivalTracker, PolarCode

MAX_ASSIGNED_TASKS = 2  # Tasks assigned to a worker at a time: one that runs, and one queued.
LENGTH_FORMAT = struct.Struct("<q")


class Worker(NamedTuple):
    """A worker process and its socket, its assigned tasks, and the bytes of an incomplete reply."""

    pid: int
    socket: socket.socket
    assigned_tasks: deque[int]
    read_buffer: bytearray


class SocketPool:
    """A pool of processes that hold the n coded blocks of an array (k, ...)."""

    def __init__(self, blocks: np.ndarray, n: int, n_workers: int) -> None:
        self._code = PolarCode(n, len(blocks))
        self._poller, self._n_maps, self._workers = select.poll(), 0, dict[int, Worker]()
        coded_blocks = list(self._code.encode(blocks))
        with single_blas_thread():  # The limit holds in the workers, which are forked here.
            for _ in range(n_workers):
                driver_end, worker_end = socket.socketpair()
                pid = os.fork()
                if not pid:
                    driver_end.close()
                    serve_tasks(worker_end, coded_blocks)
                worker_end.close()
                self._workers[driver_end.fileno()] = Worker(pid, driver_end, deque(), bytearray())
                self._poller.register(driver_end, select.POLLIN)

    def map(self, f: Callable[[Any], np.ndarray]) -> np.ndarray:
        """Return the results of the linear function f for all data blocks."""
        self._n_maps += 1
        pickled_f, tracker, results = (
            cloudpickle.dumps(f),
            ArrivalTracker(self._code),
            dict[int, np.ndarray](),
        )
        tasks, fds_without_f = deque(range(self._code.n)), set(self._workers)

        def assign_task(worker_fd: int) -> None:
            worker = self._workers[worker_fd]
            if tasks and len(worker.assigned_tasks) < MAX_ASSIGNED_TASKS:
                f_payload = pickled_f if worker_fd in fds_without_f else None
                fds_without_f.discard(worker_fd)
                worker.assigned_tasks.append(tasks.popleft())
                send_message(worker.socket, (self._n_maps, worker.assigned_tasks[-1], f_payload))

        for worker_fd in list(self._workers) * MAX_ASSIGNED_TASKS:
            assign_task(worker_fd)
        while not tracker.is_ready:
            for worker_fd, _ in self._poller.poll():
                worker = self._workers[worker_fd]
                for map_index, task, result in receive_messages(worker.socket, worker.read_buffer):
                    worker.assigned_tasks.popleft()
                    assign_task(worker_fd)
                    if map_index == self._n_maps:  # Late results of an earlier map are dropped.
                        results[task] = result
                        tracker.add(task)
        return self._code.decode(results)

    def __enter__(self) -> SocketPool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers.values():
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
            worker.socket.close()


def serve_tasks(driver_socket: socket.socket, blocks: Sequence[Any]) -> None:
    """Run the tasks that the driver sends, until the process is killed."""
    read_buffer, f = bytearray(), None
    with ExitStack() as stack:
        stack.callback(os._exit, 0)  # Skip the exit handlers inherited from the driver.
        while True:
            for map_index, task, pickled_f in receive_messages(driver_socket, read_buffer):
                if pickled_f is not None:
                    f = pickle.loads(pickled_f)
                assert f is not None
                send_message(driver_socket, (map_index, task, f(blocks[task])))


def send_message(connection: socket.socket, message: Any) -> None:
    data = pickle.dumps(message, protocol=5)
    connection.sendall(LENGTH_FORMAT.pack(len(data)) + data)


def receive_messages(connection: socket.socket, read_buffer: bytearray) -> Iterator[Any]:
    """Read from the socket once and yield every complete message. Raise EOFError if it is closed."""
    chunk = connection.recv(1 << 20)
    if not chunk:
        raise EOFError
    read_buffer += chunk
    while len(read_buffer) >= LENGTH_FORMAT.size:
        end = LENGTH_FORMAT.size + LENGTH_FORMAT.unpack_from(read_buffer)[0]
        if len(read_buffer) < end:
            break
        message = pickle.loads(read_buffer[LENGTH_FORMAT.size : end])
        del read_buffer[:end]
        yield message
