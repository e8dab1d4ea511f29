"""A call as a worker makes it, and what comes back."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polarmap.executors.pickling import pickled, pickled_by_value
from polarmap.worker.any_value import from_result
from polarmap.worker.pytree import flatten, unflatten
from polarmap.worker.run_call import call_each, run_call, to_call


def called(f: Any, *args: Any, **kwargs: Any) -> Any:
    """What a call gives, its result having travelled."""
    leaves, structure = flatten(run_call(to_call(f, args, kwargs)))
    return from_result(unflatten(structure, leaves))


@pytest.mark.parametrize(
    "value", [None, {1}, {"raised": 1}, [np.arange(3), None], (1.5, "a"), 2**70, {}], ids=repr
)
def test_a_call_gives_back_what_it_returned(value: Any) -> None:
    found = called(lambda one, *, two: one, value, two=2)
    assert type(found) is type(value)
    assert repr(found) == repr(value)


def test_what_it_raises_is_raised() -> None:
    for error in (KeyError("x"), SystemExit(3), KeyboardInterrupt()):

        def fail(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as raised:
            run_call(to_call(fail, (), {}))
        assert raised.value.args == error.args


def test_what_cannot_be_pickled_is_raised() -> None:
    with pytest.raises(TypeError, match="pickle"):
        called(threading.Lock)


def test_a_worker_needs_no_polarmap(tmp_path: Path) -> None:
    sent = pickled((run_call, ("array",)), "elsewhere", by_value=True)
    with pickled_by_value():
        calls = [to_call(*one) for one in ((partial(call_each, pow), ([(2, 3)],), {}), (str, ({1},), {}))]
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
    assert run.stdout == "tuple tuple\n"


def test_several_calls_are_one() -> None:
    assert called(call_each, divmod, [(7, 2), (9, 4)]) == [(3, 1), (2, 1)]
