"""A call that an executor of any function was given, and when a call is late."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, InvalidStateError
from typing import Any

from polarmap.errors import hide_our_frames
from polarmap.planning.lateness import LateAttempts, LatenessRule
from polarmap.worker.any_value import Array

LEAST_SECONDS = 0.1  # no call is late before
REMEMBERED = 256  # durations of each function


class Call:
    """A call and what became of its attempts.

    function : what tells calls of one function from those of others.
    attempts, backups, losses : how often it was started, started because it was late, and lost.
    running : attempts that have not ended.
    began : of each attempt that was seen to run, on the clock of its run.
    file : with the function that several calls share, kept as long as any of them.
    """

    def __init__(self, future: Future[Any], function: Hashable, block: Array, file: Any = None) -> None:
        self.future, self.function, self.file = future, function, file
        self._block: Array | None = block
        self.attempts = self.backups = self.losses = 0
        self.running: set[int] = set()
        self.began: dict[int, float] = {}

    def take_block(self) -> Array:
        """The call as it travels, once: others keep it from now on."""
        block, self._block = self._block, None
        assert block is not None
        return block

    def start(self) -> int:
        """One more attempt: its number."""
        self.running.add(self.attempts)
        self.attempts += 1
        return self.attempts - 1

    def return_(self, value: Any) -> None:
        """Its result is there."""
        with contextlib.suppress(InvalidStateError):  # somebody else has set it
            self.future.set_result(value)

    def fail(self, error: BaseException, is_of_f: bool = False) -> None:
        """It has none; `is_of_f`: the error is what f raised."""
        hide_our_frames(error, is_of_f)
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


def function_of(f: Callable[..., Any]) -> Hashable:
    """What is the same for calls of one function: the code of what is written in Python.

    >>> function_of(min) == function_of(max), function_of("a".join) == function_of("b".join)
    (False, True)
    """
    inner: Any = getattr(f, "func", f)  # of a partial
    code = getattr(getattr(inner, "__func__", inner), "__code__", None)
    if code is not None:
        return id(code)
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return getattr(named, "__module__", None), named.__qualname__


class LateCalls(LateAttempts[tuple[int, int]]):
    """The attempts at calls of one function that run, by task and attempt: a job without an end.

    durations : of earlier calls; those of new ones are added.
    """

    def __init__(self, durations: deque[float]) -> None:
        super().__init__(LatenessRule(1, min_seconds=LEAST_SECONDS))
        self._remembered = durations
        for took in durations:
            super().learn(took)

    def learn(self, took: float, is_later: bool = False) -> None:
        """One has returned after so many seconds."""
        super().learn(took, is_later)
        self._remembered.append(took)

    def late_after(self) -> float:
        """Seconds after which the oldest that is not late yet is, in a job of what is known and runs."""
        tasks = len(self._durations) + len(self._later) + len(self._running)
        self._rule = LatenessRule(max(1, tasks), min_seconds=LEAST_SECONDS)
        return super().late_after()
