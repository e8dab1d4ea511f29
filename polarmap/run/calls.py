"""The calls of an executor as tasks of its runs, which come while a schedule runs, and the thread of both."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError, TimeoutError
from contextlib import closing, suppress
from math import inf
from typing import Any

from polarmap.errors import WorkerLostError, hide_our_frames, replace_exit
from polarmap.executors import collect_injected_faults
from polarmap.executors.interface import JobSpec, MapExecutor, Outcome, Session
from polarmap.run.batches import Batches, Items, go_together, value_of
from polarmap.run.loop import Need, Stopwatch, schedule
from polarmap.run.map_threads import call_before_exit
from polarmap.run.tasks import TaskTable
from polarmap.worker.pytree import Array
from polarmap.worker.task_functions import execute_call

LINGER_SECONDS = 0.05  # without calls, before a run is closed


class Call(Items):
    """A call, and the future of what it gives."""

    def __init__(self, future: Future[Any], function: Hashable, block: bytes | Array) -> None:
        super().__init__(function, blocks=[block])
        self.future, self._is_cancelled = future, False

    def begins(self, numbers: Sequence[int]) -> Sequence[int]:
        """It, if it may begin, or has: nobody has cancelled it, and nobody can any more."""
        has_begun = self.future.running()
        may_begin = has_begun or (not self._is_cancelled and self.future.set_running_or_notify_cancel())
        return numbers if may_begin else []

    def begun(self, numbers: Sequence[int]) -> Sequence[int]:
        """It, if it has."""
        return numbers if self.future.running() else []

    def cancel(self) -> None:
        """Cancel it, unless it has begun."""
        if not self._is_cancelled and self.future.cancel():
            self._is_cancelled = True
            self.future.set_running_or_notify_cancel()  # which tells who waits for it

    def name_of(self, number: int) -> str:
        """Return the words by which an error names it."""
        return f"a call of {_name_of_function(self.kind)}"

    def return_(self, number: int, value: Any) -> None:
        """Its result is there."""
        with suppress(InvalidStateError):  # somebody else has set it
            self.future.set_result(value)

    def fail(self, number: int, error: BaseException) -> None:
        """It has none."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class CallsOfMap(Items):
    """Calls of one function whose results are asked for in their order, each of a list."""

    def __init__(self, function: Hashable, chunksize: int = 1) -> None:
        super().__init__((function, chunksize))
        self._function, self._chunksize = function, chunksize
        self._is_cancelled = False
        self._begun = set[int]()
        self._ends: dict[int, tuple[bool, Any]] = {}  # that nobody has asked for yet
        self._awaited, self._told = -1, threading.Condition()

    def begins(self, numbers: Sequence[int]) -> Sequence[int]:
        """Those of these that may begin, or have."""
        if self._is_cancelled:
            return self.begun(numbers)
        self._begun.update(numbers)
        return numbers

    def begun(self, numbers: Sequence[int]) -> Sequence[int]:
        """Those of these that have."""
        return [number for number in numbers if number in self._begun]

    def cancel(self) -> None:
        """Cancel those that have not begun."""
        self._is_cancelled = True
        with self._told:
            self._told.notify_all()

    def name_of(self, number: int) -> str:
        """Return the words by which an error names one of them, which may be several calls of the caller."""
        first, name = number * self._chunksize, _name_of_function(self._function)
        if self._chunksize == 1:
            return f"call {first} of map({name})"
        return f"one of calls {first} to {first + self._chunksize - 1} of map({name})"

    def return_(self, number: int, value: Any) -> None:
        """A result is there."""
        self._end(number, (True, value))

    def fail(self, number: int, error: BaseException) -> None:
        """One has none."""
        self._end(number, (False, error))

    def _end(self, number: int, end: tuple[bool, Any]) -> None:
        self._ends[number], self.blocks[number] = end, b""
        if number == self._awaited:
            with self._told:
                self._told.notify_all()

    def results(
        self, until: float | None, more: Iterator[object], close: Callable[[], object]
    ) -> Iterator[Any]:
        """The items of all results, in their order, none of which is kept.

        until : when the next result raises TimeoutError if it is not there, on the monotonic clock.
        more : brings one more call for each whose result is taken.
        close : is called at the end.
        """
        number = 0
        try:
            while number < len(self.blocks):
                next(more, None)
                items = self._taken(number, until)
                number += 1
                items.reverse()
                while items:
                    yield items.pop()
        finally:
            close()

    def _taken(self, number: int, until: float | None) -> list[Any]:
        """A result for which nobody else waits."""
        if number not in self._ends:
            with self._told:
                self._awaited = number
                while number not in self._ends:
                    if self._is_cancelled and number not in self._begun:
                        raise CancelledError
                    if not self._told.wait(None if until is None else until - time.monotonic()):
                        raise TimeoutError
        has_returned, value = self._ends.pop(number)
        if has_returned:
            return value  # type: ignore[no-any-return]
        try:
            raise value
        finally:
            del value  # an exception shall not keep itself


Calling = Call | CallsOfMap


class Calls(Batches, Need):
    """The calls of an executor: what its schedules start and need, the blocks of its runs, and its thread.

    A run is open while there are calls, and no longer; the watch is that of the run. Numbers of tasks go on
    from run to run.

    Parameters
    ----------
    executor : MapExecutor
    close : called once, when it was shut down and all calls have ended.
    most : calls that a run is given at a time.
    backups : that a late call may get.
    retries : of one whose worker was lost.
    """

    def __init__(
        self, executor: MapExecutor, close: Callable[[], None], most: int, backups: int, retries: int
    ) -> None:
        self._executor, self._close = executor, close
        joins = go_together(executor, backups, retries)
        self._options, self._retries = (joins, most, backups, collect_injected_faults(executor)), retries
        self._is_shut_down = False
        self.forget()
        _of_executors.add(self)

    def forget(self) -> None:
        """Begin anew, in a process that was forked of the one that has the thread."""
        Need.__init__(self, TaskTable(0), Stopwatch(time.monotonic))
        Batches.__init__(self, *self._options)
        self._open: dict[Calling, int] = {}  # how many of them are not over
        # One call is not to begin while another thread cancels it; an executor may be dropped at any moment.
        self._lock = threading.RLock()
        self._run: Session | None = None
        self._thread: threading.Thread | None = None  # the latest
        self._is_served = False

    # -- by any thread -------------------------------------------------------------------------

    def put(self, calls: Calling, numbers: Sequence[int]) -> None:
        """There are more, these of some that come together; RuntimeError after `shut_down`."""
        with self._lock:
            self.check_open()
            if not numbers:
                return
            if not self._open:
                calls.begins([numbers[0]])  # nothing stands between it and a worker
            self._open[calls] = self._open.get(calls, 0) + len(numbers)
            is_awaited = not self._waiting  # else the run looks up as soon as there is room for more
            self.append(calls, numbers)
            if not self._is_served:
                self._thread = threading.Thread(target=self._drive, name="polarmap-executor", daemon=True)
                self._thread.start()
                self._is_served = True
        if is_awaited:
            self._wake()

    def check_open(self) -> None:
        """RuntimeError after `shut_down`."""
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _is_exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def shut_down(self, cancel_futures: bool = False) -> None:
        """Take no more calls; `cancel_futures`: cancel those that no worker was given."""
        self._is_shut_down = True
        if cancel_futures:
            self.cancel(list(self._open))
        self._wake()
        self._close_if_over()

    def join(self) -> None:
        """Wait until all calls have ended."""
        self._wake()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _wake(self) -> None:
        """Let the run look up, if one is open."""
        run = self._run
        if run is not None:
            run.wake()

    def cancel(self, some: Sequence[Calling]) -> None:
        """Cancel those of these that no worker was given."""

        def not_begun(calls: Calling, numbers: Sequence[int]) -> Collection[int]:
            return set(numbers).difference(calls.begun(numbers)) if calls in some else ()

        with self._lock:
            for calls in some:
                calls.cancel()
            self._taken(not_begun)

    def _taken(self, is_over: Callable[[Any, Sequence[int]], Collection[int]]) -> list[tuple[Any, list[int]]]:
        """Those that wait and are over with this."""
        taken, waiting, self._waiting = list[tuple[Any, list[int]]](), self._waiting, deque()
        for calls, numbers in waiting:
            over = is_over(calls, numbers)
            taken.append((calls, list(over)))
            self._are_over(calls, len(over))
            if len(over) < len(numbers):
                self._waiting.append((calls, [number for number in numbers if number not in over]))
        return [(calls, numbers) for calls, numbers in taken if numbers]

    def _are_over(self, calls: Any, count: int) -> None:
        """So many of these are."""
        with self._lock:
            left = self._open.pop(calls, 0) - count
            if left > 0:
                self._open[calls] = left

    def _close_if_over(self) -> None:
        with self._lock:
            if self._is_served or not self._is_shut_down:
                return
            close, self._close = self._close, lambda: None
        close()

    # -- on its thread -------------------------------------------------------------------------

    def _drive(self) -> None:
        """The life of the thread: runs, until one has ended and no call has come."""
        is_served = True
        while is_served:
            self._serve()
            with self._lock:
                is_served = self._is_served = bool(self._open)
        self._close_if_over()

    def _serve(self) -> None:
        """Do calls on a run of the executor, until none has come for a while."""
        try:
            with closing(self._executor.open(JobSpec(execute_call, self))) as run:
                self._run, self.watch = run, Stopwatch(run.now)
                for outcomes in schedule(run, self, self._retries, self):
                    is_news = bool(outcomes)
                    while outcomes:  # nothing of them is kept
                        self.add(outcomes.pop(0))
                    if self.step() and not is_news:
                        break
        except BaseException as error:
            self._end_run(error)
        else:
            self._end_run()
        finally:
            self._run = None

    def _end_run(self, error: BaseException | None = None) -> None:
        """What is left waits for the next; an error of this one ends the calls that have begun, or all."""
        with self._lock:  # others may come in this moment
            left = [one for one in (*self.batches.values(), *self._alone) if one[1]]
            self._waiting.extendleft(reversed(left))
            self._alone.clear()
            for index in self.tasks.known():
                self.forget_task(self.tasks, index)
            self.tasks.unwanted.clear()
            if error is None:
                return
            begun = self._taken(lambda calls, numbers: calls.begun(numbers))
            failed = begun or self._taken(lambda calls, numbers: numbers)
        for calls, numbers in failed:
            for number in calls.begins(numbers):
                self._fail(calls, number, error)

    # -- as blocks and policy of a run ----------------------------------------------------------

    def _block(self, index: int) -> Array:
        with self._lock:
            calls, before = self.batches.get(index) or (None, [])
            try:
                return super()._block(index)
            finally:
                if calls is not None:  # of which nobody waits for some
                    self._are_over(calls, len(before) - len(self.batches[index][1]))

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """Calls that have come; late ones, if none waits for a worker that a backup would take."""
        with self._lock:
            return super().due(tasks, need, now)

    # -- as its need ---------------------------------------------------------------------------

    def add(self, outcome: Outcome) -> None:
        """The first attempt that returns or raises is the end of a call."""
        with self._lock:
            ends, failure = self.ended(self.tasks, outcome), outcome.failure
        if ends is None:
            return
        if failure is None or failure.kind == "raised":
            self.forget_task(self.tasks, outcome.task)
        calls: Any
        calls, found, failures = ends
        over = [one for one in failures if outcome.failure is None or one[1].kind == "raised"]
        self._are_over(calls, len(found) + len(over))
        for number, raised in over:
            error = replace_exit(calls.name_of(number), raised.cause or RuntimeError(str(raised)))
            self._fail(calls, number, error, is_of_f=True)
        for number, data in found:
            try:
                value = value_of(data)
            except BaseException as error_:
                self._fail(calls, number, replace_exit(f"the result of {calls.name_of(number)}", error_))
            else:
                calls.return_(number, value)

    def _fail(self, calls: Calling, number: int, error: BaseException, is_of_f: bool = False) -> None:
        """A call has no result; `is_of_f`: the error is what f raised."""
        hide_our_frames(error, is_of_f)
        calls.fail(number, error)

    def step(self) -> bool:
        """Whether no call is under way, once those have failed that were lost too often."""
        for index in sorted(self.tasks.failed):
            task = self.tasks[index]
            if task.own_attempts > self._retries and task.last_failure is not None:
                calls: Any
                calls, [number] = self.batches[index]
                text = f"a call was lost {task.attempts} times, with its worker: {task.last_failure.message}"
                self.forget_task(self.tasks, index)
                self._are_over(calls, 1)
                self._fail(calls, number, WorkerLostError(text))
        return not self._open

    @property
    def is_met(self) -> bool:
        """Whether no call has to be started again, as its worker was lost."""
        return not self.tasks.failed

    def look_seconds(self) -> float:
        """Nothing else is waited for; for other calls not for long while none is under way."""
        if not self._open:
            return LINGER_SECONDS
        return inf if len(self.tasks) else 0.0

    def settle_for_less(self) -> None:
        """Each call has had its end when its outcome was noted."""


def function_of(f: Callable[..., Any]) -> Hashable:
    """What is the same for calls of one function: the code of what is written in Python.

    >>> function_of(min) == function_of(max), function_of("a".join) == function_of("b".join)
    (False, True)
    """
    inner: Any = getattr(f, "func", f)  # of a partial
    code = getattr(getattr(inner, "__func__", inner), "__code__", None)
    if code is not None:
        return code  # type: ignore[no-any-return]
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return getattr(named, "__module__", None), named.__qualname__


def _name_of_function(function: Hashable) -> str:
    """Return the name of a function of which `function_of` told.

    >>> _name_of_function(function_of(_name_of_function)), _name_of_function(function_of(str.upper))
    ('_name_of_function', 'str.upper')
    """
    name = function[1] if isinstance(function, tuple) else getattr(function, "co_qualname", function)
    return str(name)


_of_executors: weakref.WeakSet[Calls] = weakref.WeakSet()
_is_exiting = False


def _finish_all() -> None:
    """At exit: all calls come to their end, as those of other executors do."""
    global _is_exiting
    _is_exiting = True
    for calls in list(_of_executors):
        calls.join()


def _forget_all() -> None:
    for calls in list(_of_executors):
        calls.forget()


call_before_exit(_finish_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
