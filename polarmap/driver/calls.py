"""The calls of an executor: one call and its future, or the calls of one `map` and their results."""

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
    """Calls of one function with separate results. An item is a call, or a chunk of calls.

    `claim_items`, `select_claimed_items` and `cancel` must be called under one lock. Items that are claimed
    stay so, and a cancelled item is never claimed.
    """

    @abstractmethod
    def cancel(self) -> None:
        """Cancel all items that are not claimed."""

    @abstractmethod
    def describe_item(self, item_index: int) -> str:
        """Return the words by which an error names an item."""

    @abstractmethod
    def set_result(self, item_index: int, value: Any) -> None:
        """Set the result of an item."""

    @abstractmethod
    def set_exception(self, item_index: int, error: BaseException) -> None:
        """Set the exception of an item, in place of a result."""


class SubmittedCall(CallGroup):
    """One call and its future.

    Parameters
    ----------
    future : Future
        Gets the result.
    function_key : hashable
        The key of the function, as `get_function_key` returns it.
    block : bytes or array
        The function and its arguments, as they are sent.
    """

    def __init__(self, future: Future[Any], function_key: Hashable, block: bytes | Array) -> None:
        super().__init__(function_key, blocks=[block])
        self.future, self._is_cancelled = future, False

    def claim_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """Return the call unless its future is cancelled; from now on it cannot be."""
        if not (self._is_cancelled or self.future.running()):
            self._is_cancelled = not self.future.set_running_or_notify_cancel()
        return [] if self._is_cancelled else item_indices

    def select_claimed_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """Return the call if it is claimed."""
        return item_indices if self.future.running() else []

    def cancel(self) -> None:
        """Cancel the call unless it is claimed."""
        if not self._is_cancelled and self.future.cancel():
            self._is_cancelled = True
            self.future.set_running_or_notify_cancel()  # Wakes threads that wait for the future.

    def describe_item(self, item_index: int) -> str:
        """Return the words by which an error names the call."""
        return f"a call of {_get_function_name(self.item_class)}"

    def set_result(self, item_index: int, value: Any) -> None:
        """Set the result of the future, unless it has one."""
        with suppress(InvalidStateError):  # the caller has set it
            self.future.set_result(value)

    def set_exception(self, item_index: int, error: BaseException) -> None:
        """Set the exception of the future, unless it has a result."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class MappedCalls(CallGroup):
    """The calls of one `map`, in chunks. Results are taken in the order of the calls.

    Parameters
    ----------
    function_key : hashable
        The key of the function, as `get_function_key` returns it.
    chunksize : int
        The number of calls of an item, which returns the list of their results.
    """

    def __init__(self, function_key: Hashable, chunksize: int = 1) -> None:
        super().__init__((function_key, chunksize))
        self._function_key, self._chunksize = function_key, chunksize
        self._is_cancelled = False
        self._claimed = set[int]()
        self._outcomes: dict[int, tuple[bool, Any]] = {}  # (has returned, result or exception), until taken
        self._awaited_index, self._changed = -1, threading.Condition()

    def claim_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """Return the items that are not cancelled. From now on they cannot be cancelled."""
        if self._is_cancelled:
            return self.select_claimed_items(item_indices)
        self._claimed.update(item_indices)
        return item_indices

    def select_claimed_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """Return the items that are claimed."""
        return [item_index for item_index in item_indices if item_index in self._claimed]

    def cancel(self) -> None:
        """Cancel all items that are not claimed."""
        self._is_cancelled = True
        with self._changed:
            self._changed.notify_all()

    def describe_item(self, item_index: int) -> str:
        """Return the words by which an error names the calls of an item."""
        first_call, name = item_index * self._chunksize, _get_function_name(self._function_key)
        if self._chunksize == 1:
            return f"call {first_call} of map({name})"
        return f"one of calls {first_call} to {first_call + self._chunksize - 1} of map({name})"

    def set_result(self, item_index: int, value: Any) -> None:
        """Keep the results of an item until they are taken."""
        self._store_item_outcome(item_index, (True, value))

    def set_exception(self, item_index: int, error: BaseException) -> None:
        """Keep the exception of an item until it is raised."""
        self._store_item_outcome(item_index, (False, error))

    def _store_item_outcome(self, item_index: int, outcome: tuple[bool, Any]) -> None:
        self._outcomes[item_index], self.blocks[item_index] = outcome, b""
        if item_index == self._awaited_index:
            with self._changed:
                self._changed.notify_all()

    def iterate_results(
        self, deadline: float | None, submissions: Iterator[object], on_close: Callable[[], object]
    ) -> Iterator[Any]:
        """Yield the results of all calls in their order, and keep none of them.

        Parameters
        ----------
        deadline : float or None
            The time, on the monotonic clock, after which TimeoutError is raised if the next result has not
            arrived.
        submissions : iterator
            Advanced once for each item whose results are taken; may add items.
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

    def _pop_result(self, item_index: int, deadline: float | None) -> list[Any]:
        """Wait for the results of an item and remove them, or raise its exception."""
        if item_index not in self._outcomes:
            with self._changed:
                self._awaited_index = item_index
                while item_index not in self._outcomes:
                    if self._is_cancelled and item_index not in self._claimed:
                        raise CancelledError
                    if not self._changed.wait(None if deadline is None else deadline - time.monotonic()):
                        raise TimeoutError
        has_returned, value = self._outcomes.pop(item_index)
        if has_returned:
            return value  # type: ignore[no-any-return]
        try:
            raise value
        finally:
            del value  # Its traceback holds this frame, which would hold it.


def get_function_key(f: Callable[..., Any]) -> Hashable:
    """Return a key that is equal for calls of one function: its code if it is written in Python.

    >>> get_function_key(min) == get_function_key(max)
    False
    >>> get_function_key("a".join) == get_function_key("b".join)
    True
    """
    unwrapped: Any = getattr(f, "func", f)  # of a partial
    code = getattr(getattr(unwrapped, "__func__", unwrapped), "__code__", None)
    if code is not None:
        return code  # type: ignore[no-any-return]
    owner = unwrapped if hasattr(unwrapped, "__qualname__") else type(unwrapped)
    return getattr(owner, "__module__", None), owner.__qualname__


def _get_function_name(function_key: Hashable) -> str:
    """Return the name of the function that has this key.

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
