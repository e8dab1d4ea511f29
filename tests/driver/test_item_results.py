"""Tests of the results of items, which are decoded as they arrive and may be exceptions."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from polarmap.driver.events import BlockReady, EventStream, JobEvent, Observer
from polarmap.driver.item_results import ItemResults
from polarmap.errors import NotDecodableError, WorkerLostError
from polarmap.executors.interface import Failure
from polarmap.worker.pickled_values import pickle_to_array

BROKEN = b"no pickle"


class ArrivalRecorder(Observer):
    """An observer that records the value of each item as it arrives."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, Any]] = []

    def on_event(self, event: JobEvent) -> None:
        assert isinstance(event, BlockReady)
        assert event.is_final
        self.seen.append((event.index, event.get_result()))


def test_each_item_gets_its_first_result_and_observers_receive_it_immediately() -> None:
    arrivals = ArrivalRecorder()
    results = ItemResults(2, False, EventStream([arrivals]))
    results.add_results([(1, pickle.dumps("one"))])
    assert not results.is_complete
    results.add_results([(1, pickle.dumps("late")), (0, pickle_to_array(np.arange(3)))])
    assert results.is_complete
    assert results.values[1] == "one"
    assert results.values[0].tolist() == [0, 1, 2]
    assert [index for index, _ in arrivals.seen] == [1, 0]


def test_items_that_fail_together_share_an_exception_that_names_them() -> None:
    results = ItemResults(9, True, None)
    results.add_failure([3, 4], Failure("raised", "KeyError", "x", KeyError("x")))
    assert results.values[3] is results.values[4]
    assert results.values[3].__notes__ == ["one of items 3 to 4 of 9 raised this"]
    results.add_failure([5], Failure("lost", "WorkerLost", "gone"))
    assert isinstance(results.values[5], WorkerLostError)


def test_a_result_that_cannot_be_unpickled_here_is_an_error_or_its_value() -> None:
    message = "the result of item 1 of 2 cannot be unpickled here: UnpicklingError"
    with pytest.raises(NotDecodableError, match=message):
        ItemResults(2, False, None).add_results([(1, BROKEN)])
    results = ItemResults(2, True, None)
    results.add_results([(1, BROKEN)])
    assert message in str(results.values[1])
    assert isinstance(results.values[1].__cause__, pickle.UnpicklingError)
