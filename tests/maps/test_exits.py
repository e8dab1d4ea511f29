"""Exceptions of f that would end a program, a loop or a generator reach the caller as ordinary errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from plain import executor_of_kind

import polarmap
from polarmap import Executor
from polarmap.errors import FunctionExitError, NotDecodableError, WorkerLostError

DATA = np.arange(24.0).reshape(12, 2)
PATIENCE = 60.0


class OwnExit(BaseException):
    """A subclass of BaseException, as pytest and trio define them."""


EXITS = [
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration(4),
    StopAsyncIteration(),
    OwnExit("own"),
]


def fails(error: BaseException) -> Callable[..., Any]:
    def f(item: Any) -> Any:
        raise error

    return f


def coded_map(f: Any, executor: Any) -> Any:
    return polarmap.coded_map(f, DATA, blocks=2, tasks=3, executor=executor, retries=0, timeout=PATIENCE)


def hedged_map(f: Any, executor: Any) -> Any:
    return list(polarmap.hedged_map(f, range(3), executor=executor, retries=0, timeout=PATIENCE))


def stored_error(f: Any, executor: Any, **options: Any) -> Any:
    """Raise the exception that a hedged map stores as the result of an item."""
    options |= {"executor": executor, "retries": 0, "timeout": PATIENCE, "return_exceptions": True}
    raise list(polarmap.hedged_map(f, range(3), **options))[1]


def stored_error_of_group(f: Any, executor: Any) -> Any:
    return stored_error(f, executor, blocks=2)


def of_a_future(f: Any, executor: Any) -> Any:
    future = polarmap.submit(polarmap.hedged_map, f, range(3), executor=executor, retries=0, timeout=PATIENCE)
    return future.result(PATIENCE)


def submit(f: Any, executor: Any) -> Any:
    with Executor(executor) as calls:
        return calls.submit(f, 1).result(PATIENCE)


def executor_map(f: Any, executor: Any) -> Any:
    with Executor(executor) as calls:
        return list(calls.map(f, range(3), timeout=PATIENCE))


def executor_map_in_chunks(f: Any, executor: Any) -> Any:
    with Executor(executor) as calls:
        return list(calls.map(f, range(3), chunksize=2, timeout=PATIENCE))


NAMED = {
    coded_map: "each of the first . of 3 tasks to end raised",
    hedged_map: "item . of 3 raised|each of the first . of 3 tasks to end raised",
    stored_error: "^item 1 of 3 raised",
    stored_error_of_group: "^item 1 of 3 raised",
    of_a_future: "item . of 3 raised|each of the first . of 3 tasks to end raised",
    submit: "^a call of fails.<locals>.f raised",
    executor_map: r"^call 0 of map\(fails.<locals>.f\) raised",
    executor_map_in_chunks: r"^one of calls 0 to 1 of map\(fails.<locals>.f\) raised",
}


@pytest.fixture(scope="module", params=["default", "threads", "processes", "dask", "localhost", "replay"])
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    with executor_of_kind(request.param, 2) as executor:
        yield executor


@pytest.mark.parametrize("verb", NAMED, ids=lambda verb: verb.__name__)
def test_exits_of_f_raise_an_error_that_names_the_task(verb: Any, executor: Any) -> None:
    is_slow = executor == "localhost"  # each map on localhost starts processes
    for error in EXITS[: 1 if is_slow else None]:
        with pytest.raises(BaseException, match=NAMED[verb]) as raised:
            verb(fails(error), executor)
        assert type(raised.value) is FunctionExitError
        assert str(raised.value).count(f"raised {type(error).__name__}") == 1
        cause = raised.value.__cause__
        assert cause is not None
        assert type(cause) is type(error)
        assert cause.args == error.args


def test_item_that_exits_fails_no_other_item_of_its_block() -> None:
    def f(item: int) -> int:
        return sys.exit(3) if item == 2 else -item

    options: dict[str, Any] = {"blocks": 2, "retries": 0, "return_exceptions": True, "timeout": PATIENCE}
    results = list(polarmap.hedged_map(f, range(6), **options))
    assert isinstance(results[2], FunctionExitError)
    assert results[:2] + results[3:] == [0, -1, -3, -4, -5]


def test_worker_that_exits_without_raising_is_lost() -> None:
    def f(item: Any) -> Any:
        import os

        os._exit(3)

    with pytest.raises(NotDecodableError, match="WorkerLost"):
        coded_map(f, None)
    with pytest.raises(WorkerLostError):
        submit(f, None)


PROGRAM = """
import sys
import polarmap

def f(item):
    sys.exit(3)

if __name__ == "__main__":
    {call}
    print("went on")
"""


@pytest.mark.parametrize(
    "call",
    [
        "polarmap.coded_map(f, [[1.0], [2.0]], blocks=2)",
        "list(polarmap.hedged_map(f, range(3)))",
        "list(polarmap.Executor().map(f, range(3)))",
        "polarmap.Executor().submit(f, 1).result()",
    ],
)
def test_a_program_whose_f_exits_ends_with_a_traceback(call: str, tmp_path: Any) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(call=call))
    run = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=PATIENCE)
    assert (run.returncode, run.stdout) == (1, "")
    assert "FunctionExitError" in run.stderr
    assert "raised SystemExit: 3" in run.stderr
