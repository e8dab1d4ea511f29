"""polarmap.submit: maps as futures on real executors, with early blocks, cancellation, exits and forks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from pool_processes import runs, starts_threads_at_exit, until

import polarmap
from polarmap.driver import coded_future
from polarmap.errors import CodeError, ExecutorError
from polarmap.maps.coded import CodedMapOptions
from polarmap.testing import ReplayExecutor
from polarmap.types import CodedFuture

SECONDS = 60.0
A = np.arange(48.0).reshape(16, 3)


class Gate:
    """A function for thread pools that blocks for some or all blocks until it is opened."""

    def __init__(self, *held: float) -> None:
        self._held, self._open, self.waiting = held, threading.Event(), threading.Semaphore(0)

    def __call__(self, block: np.ndarray) -> np.ndarray:
        if not self._held or block.flat[0] in self._held:
            self.waiting.release()
            assert self._open.wait(SECONDS)
        return 2 * block

    def open(self) -> None:
        self._open.set()


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as pool:
        yield pool


def sleeping(folder: Path) -> Callable[[Any], Any]:
    """Return a function that writes a file named after its process id, and then sleeps."""

    def f(block: np.ndarray) -> np.ndarray:
        import os
        import time

        open(f"{folder}/{os.getpid()}", "w").close()
        time.sleep(100)
        return block

    return f


def test_the_result_is_that_of_coded_map() -> None:
    future = polarmap.submit(
        polarmap.coded_map, np.negative, A, blocks=4, tasks=6, executor=ReplayExecutor({1: np.inf})
    )
    result = future.result(SECONDS)
    assert isinstance(future, CodedFuture)
    np.testing.assert_allclose(result.concatenate(), -A, rtol=1e-12)
    shares = [np.shares_memory(block.result(), rows) for block, rows in zip(future.blocks, result)]
    assert shares == [True] * 4
    assert future.report is result.report
    assert future.done()
    assert not future.running()
    assert not future.cancel()
    assert future.exception() is None


def test_early_blocks_and_progress_are_available_during_the_map(
    threads: ThreadPoolExecutor,
) -> None:
    # Three of four data blocks are late, so two parity blocks do not suffice to decode them.
    f = Gate(A[4, 0], A[8, 0], A[12, 0])
    future = polarmap.submit(polarmap.coded_map, f, A, blocks=4, tasks=6, executor=threads)
    first = future.blocks[0].result(SECONDS)
    np.testing.assert_array_equal(first, 2 * A[:4])
    with pytest.raises(ValueError, match="read-only"):
        first += 1
    assert [block.done() for block in future.blocks] == [True, False, False, False]
    assert future.running()
    done, undone = wait([future, *future.blocks], timeout=0)
    assert (len(done), len(undone)) == (1, 4)
    for _ in range(3):
        assert f.waiting.acquire(timeout=SECONDS)
    report = future.report
    assert report is not None
    assert (report.n, report.k, report.needed, report.is_final) == (6, 4, 4, False)
    assert 0 in report.tasks_in_state("arrived")
    assert {1, 2, 3} <= set(report.tasks_in_state("running"))
    assert "are needed" in str(report)
    f.open()
    order = [future.blocks.index(block) for block in as_completed(future.blocks, timeout=SECONDS)]
    assert sorted(order) == [0, 1, 2, 3]
    result = future.result(SECONDS)
    np.testing.assert_allclose(result.concatenate(), 2 * A, atol=1e-12)
    assert result.report.is_final


def test_wrong_early_blocks_raise_a_warning() -> None:
    garbage = polarmap.testing.FaultyExecutor(
        ReplayExecutor({0: 0.5}), {0: polarmap.testing.Fault("garbage", attempts=9)}
    )
    warning = r"future.blocks returned wrong results for blocks \[0\], as a check has found since"

    def done() -> CodedFuture[Any]:
        future = polarmap.submit(
            polarmap.coded_map, np.negative, A, blocks=4, tasks=8, executor=garbage, verify=True
        )
        wait([future], SECONDS)
        return future

    with pytest.warns(RuntimeWarning, match=warning):
        future = done()
    np.testing.assert_allclose(future.result().concatenate(), -A, atol=1e-12)
    assert not np.allclose(future.blocks[0].result(), -A[:4])


def test_the_last_block_of_padded_data_is_cut(threads: ThreadPoolExecutor) -> None:
    future = polarmap.submit(polarmap.coded_map, np.negative, A[:15], blocks=4, executor=threads)
    assert [len(block.result(SECONDS)) for block in future.blocks] == [4, 4, 4, 3]


def test_a_failed_map_fails_its_blocks_and_keeps_its_report() -> None:
    def f(block: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError("no")

    future = polarmap.submit(polarmap.coded_map, f, A, blocks=4, executor=ReplayExecutor())
    with pytest.raises(ZeroDivisionError, match="no"):
        future.result(SECONDS)
    assert isinstance(future.exception(), ZeroDivisionError)
    assert all(block.exception(SECONDS) is future.exception() for block in future.blocks)
    report = future.report
    assert report is not None
    assert report.tasks_in_state("failed")
    assert "ZeroDivisionError: no" in str(report)


@pytest.mark.parametrize("kind", ["pool", "localhost"])
def test_cancelling_stops_the_workers(kind: str, tmp_path: Path) -> None:
    with polarmap.Pool(workers=3) as pool:
        executor: Any = pool if kind == "pool" else kind
        future = polarmap.submit(polarmap.coded_map, sleeping(tmp_path), A, blocks=4, executor=executor)
        assert until(lambda: len(os.listdir(tmp_path)) >= 2, SECONDS)
        assert future.cancel()
        assert until(lambda: not any(runs(int(name)) for name in os.listdir(tmp_path)), 20.0)
        later = polarmap.submit(polarmap.coded_map, np.negative, A, blocks=4, executor=executor)
        np.testing.assert_allclose(later.result(SECONDS).concatenate(), -A, atol=1e-12)


class HeldExecutor(ReplayExecutor):
    """An executor that opens a session only when the test allows it, and records the submitted attempts."""

    def __init__(self, began: threading.Event, go: threading.Event) -> None:
        super().__init__()
        self._began, self._go, self.submitted = began, go, list[Any]()

    def open(self, job_spec: Any) -> Any:
        self._began.set()
        assert self._go.wait(SECONDS)
        run = super().open(job_spec)
        run.submit = self.submitted.extend  # type: ignore[method-assign]
        return run


def test_map_cancelled_while_its_session_opens_starts_nothing() -> None:
    began, go = threading.Event(), threading.Event()
    executor = HeldExecutor(began, go)
    future = polarmap.submit(polarmap.coded_map, np.negative, A, blocks=4, executor=executor)
    map_ = future._background_map
    assert began.wait(SECONDS)
    assert future.cancel()
    go.set()
    assert map_._finished.wait(SECONDS)
    assert executor.submitted == []


def test_awaiting(threads: ThreadPoolExecutor) -> None:
    f = Gate()

    async def main() -> None:
        result = await polarmap.submit(polarmap.coded_map, np.negative, A, blocks=4, executor=threads)
        np.testing.assert_allclose(result.concatenate(), -A, atol=1e-12)
        both = await asyncio.gather(
            *(
                polarmap.submit(polarmap.coded_map, np.negative, number * A, executor=threads)
                for number in (1.0, 2.0)
            )
        )
        np.testing.assert_allclose(both[1].concatenate(), -2 * A, atol=1e-12)
        future = polarmap.submit(polarmap.coded_map, np.negative, A, blocks=4, executor=threads)
        np.testing.assert_allclose(await future.blocks[1], -A[4:8], atol=1e-12)
        future_held = polarmap.submit(polarmap.coded_map, f, A, blocks=4, executor=threads)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(future_held, 0.2)  # type: ignore[arg-type]
        assert future_held.cancelled()
        future_held = polarmap.submit(polarmap.coded_map, f, A, blocks=4, executor=threads)
        task = asyncio.ensure_future(asyncio.wrap_future(future_held))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)  # the cancellation is delivered in the next iteration of the event loop
        assert future_held.cancelled()

    asyncio.run(main())
    f.open()


def test_an_encoding_may_be_cancelled_and_leaves_nothing(tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    class Source:
        shape, dtype = (4_000, 256), np.dtype(float)

        def __getitem__(self, key: Any) -> Any:
            begun.set()
            assert go.wait(SECONDS)
            return np.zeros(self.shape)[key]

    future = polarmap.submit(
        polarmap.encode, Source(), blocks=4, name="a", storage=str(tmp_path), memory=2**20
    )
    assert begun.wait(SECONDS)
    map_ = future._background_map
    assert future.cancel()
    go.set()
    assert map_._finished.wait(SECONDS)
    assert polarmap.arrays.list_coded(str(tmp_path)) == []


def test_results_that_stay_in_storage(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    out = polarmap.arrays.Stored("y", str(tmp_path))
    future = polarmap.submit(polarmap.coded_map, np.negative, A, blocks=4, out=out, executor=threads)
    map_ = future._background_map
    assert future.blocks == ()
    del future
    gc.collect()  # the map must go on without its future, because its result is stored
    assert map_._finished.wait(SECONDS)
    np.testing.assert_allclose(polarmap.open_coded("y", str(tmp_path))[:], -A, atol=1e-12)


def test_wrong_arguments_raise_immediately() -> None:
    with pytest.raises(TypeError, match=r"coded_map\(\) missing 1 required positional argument: 'data'"):
        polarmap.submit(polarmap.coded_map, np.negative)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"coded_map\(\) got an unexpected keyword argument 'block'"):
        polarmap.submit(polarmap.coded_map, np.negative, A, block=4)  # type: ignore[call-overload]
    with pytest.raises(CodeError, match="blocks"):
        polarmap.submit(polarmap.coded_map, np.negative, A, blocks=0)
    with pytest.raises(CodeError, match="f must be callable"):
        polarmap.submit(polarmap.coded_map, 3, A)  # type: ignore[call-overload]
    with pytest.raises(CodeError, match=r"as submit\(coded_map, f, data\); <built-in function print> is"):
        polarmap.submit(print, A)
    with pytest.raises(CodeError, match="progress"):
        polarmap.submit(polarmap.coded_map, np.negative, A, progress="yes")  # type: ignore[call-overload]
    with pytest.raises(ExecutorError):
        polarmap.submit(polarmap.coded_map, np.negative, A, executor="nowhere")


def test_the_options_are_those_of_coded_map() -> None:
    names = set(inspect.signature(polarmap.coded_map).parameters)
    assert {"f", "data", "out", *CodedMapOptions.__annotations__} == names


def test_warnings_and_the_context_are_those_of_the_caller(threads: ThreadPoolExecutor) -> None:
    with pytest.warns(RuntimeWarning, match="f is not linear"):
        polarmap.submit(polarmap.coded_map, np.square, A, blocks=4, executor=threads).result(SECONDS)


def test_a_forked_process_does_not_wait_for_a_map_of_its_parent(threads: ThreadPoolExecutor) -> None:
    f = Gate()
    future = polarmap.submit(polarmap.coded_map, f, A, blocks=4, executor=threads)
    assert f.waiting.acquire(timeout=SECONDS)
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                future.result(SECONDS)
            except ExecutorError as error:
                code = 0 if "forked" in str(error) else 2
        os._exit(code)
    f.open()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_allclose(future.result(SECONDS).concatenate(), 2 * A, atol=1e-12)


ENDING = """
kept = polarmap.submit(polarmap.coded_map, slow, A, blocks=4)
quick = polarmap.submit(polarmap.coded_map, np.negative, A, blocks=4)
quick.add_done_callback(lambda done: print(done.result()))
polarmap.submit(polarmap.coded_map, np.negative, A, blocks=4, out=polarmap.arrays.Stored('y', sys.argv[1]))
"""
PROGRAM = """
import sys, time
import numpy as np, polarmap
A = np.arange(48.0).reshape(16, 3)
def slow(block):
    time.sleep(100)
    return block
"""


WAITING = """
import concurrent.futures, threading

def in_wait(kept):
    concurrent.futures.wait([kept])

def when_the_main_thread_has_ended(kept):
    threading.main_thread().join()

def check(wait, kept):
    try:
        wait(kept)
        outcome = kept.result()
    except BaseException as error:
        outcome = error
    is_right = outcome is kept.result() and np.allclose(outcome.concatenate(), -A)
    print(f"{is_right}\\n", end="")  # a single write, because another thread also prints

def negative(block):
    time.sleep(0.5)
    return -block

for wait in (in_wait, when_the_main_thread_has_ended):
    kept = polarmap.submit(polarmap.coded_map, negative, A, blocks=4)
    threading.Thread(target=check, args=[wait, kept]).start()
"""


@starts_threads_at_exit
def test_threads_that_the_interpreter_waits_for_get_their_results() -> None:
    # A thread may wait for a future of the standard library while the main thread has already ended. The
    # futures of polarmap must support the same.
    command = [sys.executable, "-c", PROGRAM + WAITING]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\nTrue\n", "")


@pytest.mark.parametrize("raised", ["", "kept.result(0.3)"], ids=["ends", "raises"])
@starts_threads_at_exit
def test_process_waits_at_exit_only_for_useful_futures(raised: str, tmp_path: Path) -> None:
    began = time.monotonic()
    command = [sys.executable, "-c", PROGRAM + ENDING + raised, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert time.monotonic() - began < 30.0
    if raised:
        assert ended.stderr.strip().splitlines()[-1].startswith(("TimeoutError", "concurrent.futures._base"))
    assert (ended.returncode, bool(ended.stderr)) == (bool(raised), bool(raised))
    assert ended.stdout.startswith("<CodedResult of 4 blocks")
    np.testing.assert_allclose(polarmap.open_coded("y", str(tmp_path))[:], -A, atol=1e-12)


# --- data that changes after submit has returned -----------------------------------------------


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Delay the start of submitted maps, and return a function that starts them."""
    starts: list[Callable[[], None]] = []
    monkeypatch.setattr(coded_future.BACKGROUND_THREADS, "submit", starts.append)

    def begin() -> None:
        while starts:
            threading.Thread(target=starts.pop()).start()

    return begin


@pytest.mark.parametrize("make", [polarmap.Pool, polarmap.Executor], ids=["pool", "executor"])
def test_f_is_copied_when_submit_returns(make: Callable[..., Any], held_back: Callable[[], None]) -> None:
    # With an Executor, workers once received the values that f held when the map started.
    weights = np.ones(3)
    with make(workers=2) as executor:
        future = polarmap.submit(polarmap.coded_map, lambda b: b @ weights, A, blocks=4, executor=executor)
        weights.fill(-1)
        held_back()
        np.testing.assert_allclose(future.result(SECONDS).concatenate(), A.sum(axis=1), atol=1e-9)


def test_an_executor_on_threads_shares_f_with_its_caller(
    held_back: Callable[[], None], threads: ThreadPoolExecutor
) -> None:
    lock = threading.Lock()  # cannot be pickled, so f must not be copied

    def f(block: Any) -> Any:
        with lock:
            return -block

    with polarmap.Executor(threads) as executor:
        future = polarmap.submit(polarmap.coded_map, f, A, blocks=4, executor=executor)
        held_back()
        np.testing.assert_allclose(future.result(SECONDS).concatenate(), -A, atol=1e-9)


class Rows:
    """A sequence type that polarmap does not know."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


def fill(array: Any) -> None:
    array[...] = -1


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "array": (lambda: np.arange(48.0).reshape(12, 4), fill),
    "view": (lambda: np.arange(96.0).reshape(12, 8)[:, ::2], lambda data: data.base.fill(-1)),
    "array that does not divide": (lambda: np.arange(44.0).reshape(11, 4), lambda data: data[-1].fill(-1)),
    "list of arrays": (lambda: list(np.arange(24.0).reshape(6, 4)), lambda data: data[3].fill(-1)),
    "nested": (lambda: [{"a": (np.arange(4.0) + i,)} for i in range(6)], lambda data: fill(data[5]["a"][0])),
    "own sequence": (lambda: Rows(np.arange(24.0).reshape(6, 4)), lambda data: fill(data.rows)),
    "frame": (lambda: pd.DataFrame({"a": np.arange(12.0)}), lambda data: data.loc.__setitem__((3, "a"), -1)),
    "sparse": (
        lambda: scipy.sparse.csr_array(np.arange(48.0).reshape(12, 4)),
        lambda data: data.data.fill(-1),
    ),
}


def plus(block: Any) -> Any:
    return block @ np.eye(block.shape[1]) if scipy.sparse.issparse(block) else block


@pytest.mark.parametrize("verb", [polarmap.coded_map, polarmap.hedged_map, polarmap.coded_sum])
@pytest.mark.parametrize("kind", KINDS)
def test_data_is_copied_when_submit_returns(
    kind: str, verb: Callable[..., Any], held_back: Callable[[], None]
) -> None:
    make, change = KINDS[kind]
    if (kind, verb) in {("sparse", polarmap.coded_sum), ("own sequence", polarmap.coded_sum)}:
        pytest.skip("is not taken by this verb")
    lost = {} if verb is polarmap.hedged_map else {1: float("inf")}
    options = {"executor": ReplayExecutor(lost)} | ({"blocks": 6} if verb is polarmap.coded_map else {})
    data = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # f may warn about padding
        expected = verb(plus, make(), **options)
        future = polarmap.submit(verb, plus, data, **options)
        change(data)
        held_back()
        value = future.result(SECONDS)
    if verb is polarmap.coded_sum:
        value, expected = [value.value], [expected.value]
    for actual, other in zip(value, expected, strict=True):
        while isinstance(actual, (dict, tuple)):
            actual, other = (next(iter(x.values())) if isinstance(x, dict) else x[0] for x in (actual, other))
        actual, other = (x.toarray() if scipy.sparse.issparse(x) else x for x in (actual, other))
        np.testing.assert_allclose(actual, other, atol=1e-9)


def test_factors_points_and_arrays_to_store_are_copied(held_back: Callable[[], None], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    A, B, w, x = rng.standard_normal((12, 5)), rng.standard_normal((5, 3)), rng.random(12), rng.random(6)
    late = ReplayExecutor({1: float("inf")})
    options: dict[str, Any] = {"executor": late}
    futures = [
        polarmap.submit(polarmap.coded_matmul, A, B, blocks=6, tasks=8, method="rows", **options),
        polarmap.submit(polarmap.coded_gram, A, w, blocks=4, **options),
        polarmap.submit(polarmap.coded_gradient, lambda z: np.sum(z**3), x, blocks=6, tasks=8, **options),
        polarmap.submit(polarmap.encode, A, blocks=6, tasks=8, name="taken", storage=tmp_path),
    ]
    expected = [A @ B, A.T @ (w[:, None] * A), 3 * x**2, A.copy()]
    for array in (A, B, w, x):
        array.fill(-1)
    held_back()
    product, gram, gradient, stored = (future.result(SECONDS) for future in futures)
    for array, other in zip([product.array, gram.array, gradient.gradient, stored[:]], expected):
        np.testing.assert_allclose(array, other, atol=1e-6)


def test_f_is_copied_for_processes_and_shared_with_threads(
    held_back: Callable[[], None], threads: ThreadPoolExecutor
) -> None:
    for executor, factor in ((None, 2.0), (threads, 3.0)):
        x = np.full(3, 2.0)
        f = lambda block, x=x: block * x  # noqa: E731
        future = polarmap.submit(polarmap.coded_map, f, A, blocks=4, tasks=6, executor=executor)
        x.fill(3)
        held_back()
        np.testing.assert_allclose(future.result(SECONDS).concatenate(), factor * A, atol=1e-9)
