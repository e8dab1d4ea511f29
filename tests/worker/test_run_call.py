"""A call as a worker makes it, and what comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polarmap.worker.pytree import flatten, unflatten
from polarmap.worker.run_call import RaisedError, call_each, returned, run_call, to_call


def called(f: Any, *args: Any, **kwargs: Any) -> Any:
    """What a call gives, its result having travelled."""
    leaves, structure = flatten(run_call(to_call(f, args, kwargs)))
    return returned(unflatten(structure, leaves))


@pytest.mark.parametrize(
    "value", [None, {1}, {"raised": 1}, [np.arange(3), None], (1.5, "a"), 2**70, {}], ids=repr
)
def test_a_call_gives_back_what_it_returned(value: Any) -> None:
    found = called(lambda one, *, two: one, value, two=2)
    assert type(found) is type(value)
    assert repr(found) == repr(value)


class OddError(Exception):
    """Pickle makes one of a single argument."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (lambda: KeyError("x"), KeyError("x")),
        (lambda: SystemExit(3), SystemExit(3)),
        (KeyboardInterrupt, KeyboardInterrupt()),
        (lambda: ValueError(threading.Lock()), RuntimeError()),
        (lambda: OddError(1, 2), RuntimeError()),
    ],
)
def test_what_it_raised_comes_with_its_traceback(
    error: Callable[[], BaseException], found: BaseException
) -> None:
    def fail() -> None:
        raise error()

    with pytest.raises(RaisedError) as raised:
        called(fail)
    assert type(raised.value.error) is type(found)
    assert "in fail" in raised.value.trace
    assert type(error()).__name__ in raised.value.trace
    if type(found) is type(error()):
        assert raised.value.error.args == found.args


def test_what_cannot_be_pickled_is_raised() -> None:
    with pytest.raises(RaisedError) as raised:
        called(threading.Lock)
    assert "pickle" in str(raised.value.error)


def test_several_calls_are_one() -> None:
    assert called(call_each, divmod, [(7, 2), (9, 4)]) == [(3, 1), (2, 1)]
