"""A call as a worker makes it, and what comes back."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polarmap.executors.pickling import pickled_by_value, pickled_with_types
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
    # Lithops, where it is imported, teaches pickle more of exceptions.
    assert type(raised.value.error) in (type(found), type(error()))
    assert "in fail" in raised.value.trace
    assert type(error()).__name__ in raised.value.trace
    if type(found) is type(error()):
        assert raised.value.error.args == found.args


def test_what_cannot_be_pickled_is_raised() -> None:
    with pytest.raises(RaisedError) as raised:
        called(threading.Lock)
    assert "pickle" in str(raised.value.error)


def test_a_worker_needs_no_polarmap(tmp_path: Path) -> None:
    sent = pickled_with_types(run_call, ("array",), "elsewhere", by_value=True).pickled
    with pickled_by_value():
        calls = [to_call(*one) for one in ((partial(call_each, pow), ([(2, 3)],), {}), (int, ("x",), {}))]
    (tmp_path / "sent").write_bytes(pickle.dumps((sent, calls)))
    code = """if 1:
        import pickle, sys
        sys.modules["polarmap"] = None
        sent, calls = pickle.load(open("sent", "rb"))
        run, _ = pickle.loads(sent)
        print(*[type(run(call)).__name__ for call in calls])
    """
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout == "tuple dict\n"


def test_several_calls_are_one() -> None:
    assert called(call_each, divmod, [(7, 2), (9, 4)]) == [(3, 1), (2, 1)]
