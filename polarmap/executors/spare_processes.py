"""Processes that stand in for those of a broken pool.

When a process of a ProcessPoolExecutor dies, Python fails every task of the pool, also those that
had not begun, and the pool takes no more. What is lost with it is one process: the other tasks go
on here, each process a pool of its own, so that a further death costs the one task it ran.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any


def has_initializer(pool: Any) -> bool:
    """Whether the processes of a pool begin with a call of the caller's."""
    return isinstance(pool, ProcessPoolExecutor) and _of(pool)._initializer is not None


def _of(pool: ProcessPoolExecutor) -> Any:
    """Its inside: how to start a process as it does is known to nobody else."""
    return pool


class SpareProcesses:
    """As many single processes as a broken pool had, started as tasks come."""

    def __init__(self, broken: ProcessPoolExecutor) -> None:
        inside = _of(broken)
        self._count = int(inside._max_workers)
        self._context, self._initializer = inside._mp_context, inside._initializer
        self._initargs = inside._initargs
        self._lock = threading.Lock()
        self._free: list[ProcessPoolExecutor] = []
        self._all: list[ProcessPoolExecutor] = []
        self._broken: list[ProcessPoolExecutor] = []
        self._waiting: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """The future of a call, which waits for a free process."""
        future: Future[Any] = Future()
        with self._lock:
            self._waiting.append((future, call, arguments))
        self._next()
        return future

    def stop(self) -> None:
        """Kill them; what waits is cancelled."""
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
            pools = self._all + self._broken
            self._all, self._free, self._broken, self._count = [], [], [], 0
        for future, _, _ in waiting:
            if future.cancel():
                future.set_running_or_notify_cancel()  # else whoever waits for it goes on waiting
        for pool in pools:
            for process in list((_of(pool)._processes or {}).values()):
                with contextlib.suppress(Exception):
                    process.kill()
            pool.shutdown(wait=True, cancel_futures=True)

    def _next(self) -> None:
        """Hand waiting calls to free processes."""
        while True:
            with self._lock:
                if not self._waiting or not (self._free or len(self._all) < self._count):
                    return
                future, call, arguments = self._waiting.popleft()
                pool = self._free.pop() if self._free else self._started()
            if future.set_running_or_notify_cancel():
                self._run(pool, future, call, arguments)
            else:
                self._done(pool, None)

    def _started(self) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(1, self._context, self._initializer, self._initargs)
        self._all.append(pool)
        return pool

    def _run(
        self, pool: ProcessPoolExecutor, future: Future[Any], call: Callable[..., Any], arguments: Any
    ) -> None:
        try:
            inner = pool.submit(call, *arguments)
        except Exception as error:
            self._done(pool, error)
            future.set_exception(error)
            return

        def pass_on(done: Future[Any]) -> None:
            error = None if done.cancelled() else done.exception()
            self._done(pool, error)
            if done.cancelled() or error is not None:
                future.set_exception(error or RuntimeError("its process was stopped"))
            else:
                future.set_result(done.result())

        inner.add_done_callback(pass_on)

    def _done(self, pool: ProcessPoolExecutor, error: BaseException | None) -> None:
        """A process is free again, or gone.

        A pool that breaks says so while it holds its own lock: nothing may be asked of it here.
        """
        with self._lock:
            if pool in self._all:
                is_gone = isinstance(error, BrokenProcessPool)
                if is_gone:
                    self._all.remove(pool)
                (self._broken if is_gone else self._free).append(pool)
        self._next()
