"""The calls that users submit to a `polarmap.Executor`, with their results.

`SubmittedCall` is one call of `submit` and its future. `MappedCalls` are all calls of one `map`.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError, TimeoutError
from contextlib import suppress
from typing import Any

from polarmap.driver.batches import ItemSequence
from polarmap.worker.pytree import Array


class CallGroup(ItemSequence, ABC):
    """A group of calls of one function. Each item is a single call or a chunk of calls sent together.

    An item is claimed when it is about to be sent to a worker. A claimed item cannot be cancelled, and a
    cancelled item cannot be claimed. Callers of `claim_items`, `select_claimed_items` and `cancel` must hold
    the same lock.
    """

    @abstractmethod
    def cancel(self) -> None:
        """Cancel all items that have not been sent to a worker."""

    @abstractmethod
    def describe_item(self, item_index: int) -> str:
        """Return a description of an item for error messages."""

    @abstractmethod
    def set_result(self, item_index: int, value: Any) -> None:
        """Set the result of an item."""

    @abstractmethod
    def set_exception(self, item_index: int, error: BaseException) -> None:
        """Set the exception of an item in place of a result."""


class SubmittedCall(CallGroup):
    """A single submitted call and its future.

    Parameters
    ----------
    future : Future
        Receives the result or the exception.
    function_key : hashable
        The function's key from `get_function_key`.
    block : bytes or array
        The function and its arguments, serialized to be sent to a worker.
    """

    def __init__(self, future: Future[Any], function_key: Hashable, block: bytes | Array) -> None:
        super().__init__(function_key, blocks=[block])
        self.future, self._is_cancelled = future, False

    def claim_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """Claim the call and return its index, unless its future has been cancelled.

        A claimed call can no longer be cancelled.
        """
        if not (self._is_cancelled or self.future.running()):
            self._is_cancelled = not self.future.set_running_or_notify_cancel()
        return [] if self._is_cancelled else item_indices

    def select_claimed_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """Return the index of the call if it has been claimed and so can no longer be cancelled."""
        return item_indices if self.future.running() else []

    def cancel(self) -> None:
        """Cancel the call unless it has been sent to a worker."""
        if not self._is_cancelled and self.future.cancel():
            self._is_cancelled = True
            self.future.set_running_or_notify_cancel()  # Wake threads that wait for the future.

    def describe_item(self, item_index: int) -> str:
        """Return a description of the call for error messages."""
        return f"a call of {_get_function_name(self.item_class)}"

    def set_result(self, item_index: int, value: Any) -> None:
        """Set the result of the future unless it is already done."""
        with suppress(InvalidStateError):  # The user may have set a result.
            self.future.set_result(value)

    def set_exception(self, item_index: int, error: BaseException) -> None:
        """Set the exception of the future unless it is already done."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class MappedCalls(CallGroup):
    """All calls of one `Executor.map`, in chunks. Results are yielded in the order of the calls.

    Parameters
    ----------
    function_key : hashable
        The function's key from `get_function_key`.
    chunksize : int
        The number of calls per item. The result of an item is the list of its calls' results.

    Attributes
    ----------
    collected_chunks : list of list
        The arguments of chunks that have been read from the iterables but not yet submitted.
    """

    def __init__(self, function_key: Hashable, chunksize: int = 1) -> None:
        super().__init__((function_key, chunksize))
        self._function_key, self._chunksize = function_key, chunksize
        self.collected_chunks, self._is_cancelled = list[list[Any]](), False
        self._claimed = set[int]()
        # Item index -> (True, its result) or (False, its exception).
        self._outcomes: dict[int, tuple[bool, Any]] = {}
        self._awaited_index, self._changed = -1, threading.Condition()

    def claim_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """Claim the items that have not been cancelled, and return them. They can no longer be cancelled."""
        if self._is_cancelled:
            return self.select_claimed_items(item_indices)
        self._claimed.update(item_indices)
        return item_indices

    def select_claimed_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """Return which of these items have been claimed, so that they can no longer be cancelled."""
        return [item_index for item_index in item_indices if item_index in self._claimed]

    def cancel(self) -> None:
        """Cancel all items that have not been sent to a worker yet."""
        self._is_cancelled = True
        with self._changed:
            self._changed.notify_all()

    def describe_item(self, item_index: int) -> str:
        """Return a description of the calls in an item for error messages."""
        first_call, name = item_index * self._chunksize, _get_function_name(self._function_key)
        if self._chunksize == 1:
            return f"call {first_call} of map({name})"
        return f"one of calls {first_call} to {first_call + self._chunksize - 1} of map({name})"

    def set_result(self, item_index: int, value: Any) -> None:
        """Store the results of an item until `iterate_results` yields them."""
        self._store_item_outcome(item_index, (True, value))

    def set_exception(self, item_index: int, error: BaseException) -> None:
        """Store the exception of an item until `iterate_results` raises it."""
        self._store_item_outcome(item_index, (False, error))

    def must_submit_more(self, item_index: int) -> bool:
        """Return whether more items must be submitted before this one is yielded.

        This is the case if the caller has to wait because the item has no result yet, or if it is the last
        item that has been submitted.
        """
        return item_index not in self._outcomes or item_index + 1 == len(self.blocks)

    def _store_item_outcome(self, item_index: int, outcome: tuple[bool, Any]) -> None:
        self._outcomes[item_index], self.blocks[item_index] = outcome, b""
        if item_index == self._awaited_index:
            with self._changed:
                self._changed.notify_all()

    def iterate_results(
        self, deadline: float | None, submissions: Iterator[object], on_close: Callable[[], object]
    ) -> Iterator[Any]:
        """Yield the results of all calls in order, waiting for each.

        No reference to a yielded result is kept.

        Parameters
        ----------
        deadline : float or None
            The `time.monotonic` time after which waiting for a result raises TimeoutError, or None.
        submissions : iterator
            Advanced once before waiting for each item. It may submit further items.
        on_close : callable
            Called with no arguments once the iteration ends.
        """
        item_index = 0
        try:
            while item_index < len(self.blocks):
                next(submissions, None)
                chunk_results = self._pop_result(item_index, deadline)
                item_index += 1
                chunk_results.reverse()
                while chunk_results:
                    yield chunk_results.pop()
        finally:
            on_close()

    def wait_for_outcome(self, item_index: int, deadline: float | None) -> bool:
        """Wait until an item has a result or an exception. Return False at `deadline`.

        `deadline` is a `time.monotonic` time, or None. Raises CancelledError if the item has been cancelled.
        """
        if item_index not in self._outcomes:
            with self._changed:
                self._awaited_index = item_index
                while item_index not in self._outcomes:
                    if self._is_cancelled and item_index not in self._claimed:
                        raise CancelledError
                    if not self._changed.wait(None if deadline is None else deadline - time.monotonic()):
                        return False
        return True

    def _pop_result(self, item_index: int, deadline: float | None) -> list[Any]:
        """Wait for an item. Then remove and return its results, or raise its exception."""
        if item_index not in self._outcomes and not self.wait_for_outcome(item_index, deadline):
            raise TimeoutError
        has_returned, value = self._outcomes.pop(item_index)
        if has_returned:
            return value  # type: ignore[no-any-return]
        try:
            raise value
        finally:
            del value  # Break the reference cycle: exception, traceback, this frame.


def get_function_key(f: Callable[..., Any]) -> Hashable:
    """Return a key for a function: its code object, or its name if it is not written in Python.

    Calls of functions with equal keys are assumed to have similar run times.

    >>> get_function_key(min) == get_function_key(max)
    False
    >>> get_function_key("a".join) == get_function_key("b".join)
    True
    """
    unwrapped: Any = getattr(f, "func", f)  # `functools.partial` has `func`.
    code = getattr(getattr(unwrapped, "__func__", unwrapped), "__code__", None)
    if code is not None:
        return code  # type: ignore[no-any-return]
    owner = unwrapped if hasattr(unwrapped, "__qualname__") else type(unwrapped)
    return getattr(owner, "__module__", None), owner.__qualname__


def _get_function_name(function_key: Hashable) -> str:
    """Return the name of the function with this key.

    >>> _get_function_name(get_function_key(_get_function_name))
    '_get_function_name'
    >>> _get_function_name(get_function_key(str.upper))
    'str.upper'
    """
    name = (
        function_key[1]
        if isinstance(function_key, tuple)
        else getattr(function_key, "co_qualname", function_key)
    )
    return str(name)
