"""Collect the results of a map's items (the inputs of single calls), unpickling each as it arrives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from polarmap.driver.events import BlockReady, EventStream
from polarmap.errors import NotDecodableError, WorkerLostError, annotate_exception
from polarmap.executors.interface import Failure
from polarmap.worker.pickled_values import unpickle_item
from polarmap.worker.pytree import Array


class ItemResults:
    """Stores the result of each item of a map, or an exception in its place.

    Parameters
    ----------
    n_items : int
        The number of items of the map.
    keep_exceptions : bool
        Whether to store an exception as the value of a failed item. If not, a result that cannot be unpickled
        raises an exception.
    events : EventStream or None
        The stream to which a `BlockReady` event is emitted for each value.

    Attributes
    ----------
    values : dict from item index to object
        The results, and exceptions, so far.
    """

    def __init__(self, n_items: int, keep_exceptions: bool, events: EventStream | None) -> None:
        self.n_items, self.keep_exceptions, self._events = n_items, keep_exceptions, events
        self.values: dict[int, Any] = {}

    @property
    def is_complete(self) -> bool:
        """Whether every item has a value."""
        return len(self.values) == self.n_items

    def add_results(self, results: Sequence[tuple[int, bytes | Array]]) -> None:
        """Store the unpickled results of the items that have no value yet.

        If a result cannot be unpickled, a NotDecodableError is raised, or stored if exceptions are kept.
        """
        for item_index, data in results:
            if item_index not in self.values:
                self._add_value(item_index, self._decode_result(item_index, data))

    def add_failure(self, item_indices: Sequence[int], failure: Failure) -> None:
        """Store an exception as the value of these items.

        This is the mapped function's own exception, or a WorkerLostError if the worker was lost.
        """
        error = failure.cause or WorkerLostError(str(failure))
        exception = annotate_exception(self.label_items(item_indices), error)
        for item_index in item_indices:
            self._add_value(item_index, exception)

    def label_items(self, item_indices: Sequence[int]) -> str:
        """Return a label for the items on which an exception was raised.

        >>> results = ItemResults(9, keep_exceptions=False, events=None)
        >>> results.label_items([3]), results.label_items(range(3, 6))
        ('item 3 of 9', 'one of items 3 to 5 of 9')
        """
        if len(item_indices) == 1:
            return f"item {item_indices[0]} of {self.n_items}"
        return f"one of items {item_indices[0]} to {item_indices[-1]} of {self.n_items}"

    def _add_value(self, item_index: int, value: Any) -> None:
        self.values[item_index] = value
        if self._events is not None:
            get_result = partial(self.values.__getitem__, item_index)
            self._events.emit(BlockReady(item_index, get_result, is_final=True))

    def _decode_result(self, item_index: int, data: bytes | Array) -> Any:
        try:
            return unpickle_item(data)
        except Exception as error:
            decoding_error = NotDecodableError(
                f"the result of {self.label_items([item_index])} cannot be unpickled here: "
                f"{type(error).__name__}: {error}"
            )
            decoding_error.__cause__ = error
        if self.keep_exceptions:
            return decoding_error
        raise decoding_error
