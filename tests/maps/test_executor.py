"""polarmap.Executor: calls of any function as futures, on each kind of underlying executor."""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import weakref
from collections.abc import Iterable, Iterator
from concurrent import futures
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask_executors import dask_executor
from mapped_functions import linger, touch
from plain import process_pool
from pool_processes import descendants, runs, starts_threads_at_exit, until

import polarmap
from polarmap import Executor, Pool
from polarmap.driver.calls import MappedCalls
from polarmap.errors import CodeError, ExecutorError, FunctionExitError, WorkerLostError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

PATIENCE = 60.0


KINDS = {
    "default": lambda stack: Executor(),
    "workers": lambda stack: Executor(workers=2),
    "pool": lambda stack: Executor(stack.enter_context(Pool(workers=3))),
    "threads": lambda stack: Executor(stack.enter_context(futures.ThreadPoolExecutor(3))),
    "processes": lambda stack: Executor(stack.enter_context(process_pool(3))),
    "Lithops": lambda stack: Executor("localhost", workers=2),
    "Dask": lambda stack: Executor(stack.enter_context(dask_executor(2))),
    "replay": lambda stack: Executor(ReplayExecutor()),
}


# "workers" and "pool" are left out: calls reach every pool of local processes in the same way.
TESTED_KINDS = [kind for kind in KINDS if kind not in ("workers", "pool")]


@pytest.fixture(scope="module", params=TESTED_KINDS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with ExitStack() as stack, KINDS[request.param](stack) as executor:
        yield executor


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Executor]:
    with Executor(workers=2) as executor:
        yield executor


# --- results of calls --------------------------------------------------------------------------------


def test_calls_return_the_values_of_their_functions(executor: Executor) -> None:
    def add(block: np.ndarray) -> np.ndarray:
        block += 1  # a function may modify its arguments
        return block

    values = [None, "text", {1, 2}, {"a": [None, np.arange(3)]}, 2**80, Path("x"), np.float32(1.5)]
    futures = [executor.submit(lambda *a, **k: (a, k), value, self=1) for value in values]
    for value, future in zip(values, futures, strict=True):
        (argument,), named = future.result(PATIENCE)
        assert type(argument) is type(value)
        assert pickle.dumps(argument) == pickle.dumps(value)
        assert named == {"self": 1}
    assert list(executor.map(pow, range(5), range(5))) == [1, 1, 4, 27, 256]
    assert executor.submit(add, np.zeros(300_000)).result(PATIENCE)[-1] == 1.0


def test_exception_of_a_call_has_the_traceback_of_the_worker(executor: Executor) -> None:
    class OddError(Exception):  # cannot be unpickled, because its `args` differ from its arguments
        def __init__(self, first: int, second: int) -> None:
            super().__init__(f"{first} and {second}")

    def fail(error: BaseException) -> None:
        raise error

    for error in (KeyError("x"), SystemExit(3), StopIteration(1)):
        raised = executor.submit(fail, error).exception(PATIENCE)
        if not isinstance(error, KeyError):  # a bare SystemExit or StopIteration would affect the caller
            assert isinstance(raised, FunctionExitError)
            raised = raised.__cause__
        assert type(raised) is type(error)
        assert raised.args == error.args
        assert "in fail" in "".join(traceback.format_exception(raised))
    raised = executor.submit(json.loads, "x").exception(PATIENCE)
    assert isinstance(raised, json.JSONDecodeError)
    text = "".join(traceback.format_exception(raised))
    assert "raise JSONDecodeError(" in text  # a source line of the module on the worker
    assert "1 and 2" in str(executor.submit(lambda: fail(OddError(1, 2))).exception(PATIENCE))
    for call in ((threading.Lock,), (id, threading.Lock())):
        with pytest.raises((TypeError, pickle.PicklingError), match="pickle"):
            executor.submit(*call).result(PATIENCE)
    assert executor.submit(int).result(PATIENCE) == 0


def test_arguments_are_pickled_when_they_are_submitted(two_workers: Executor) -> None:
    large, small = np.zeros(1_000_000), [0]
    futures = [two_workers.submit(lambda a, b: (a.sum(), b), large, small) for _ in range(8)]
    large += 1
    small.append(1)
    assert [future.result(PATIENCE) for future in futures] == [(0.0, [0])] * 8


# --- map ---------------------------------------------------------------------------------------------


def test_map_returns_results_in_order_for_any_chunksize(two_workers: Executor) -> None:
    for chunksize in (1, 3, 40, 50):
        for buffersize in (None, 1, 7):
            results = two_workers.map(pow, range(40), range(50), chunksize=chunksize, buffersize=buffersize)
            assert list(results) == [pow(number, number) for number in range(40)]
    assert list(two_workers.map(abs, [])) == list(two_workers.map(abs, [], chunksize=5)) == []


def test_map_reads_no_further_than_its_buffer(two_workers: Executor) -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    results = two_workers.map(abs, numbers(), buffersize=4)
    assert len(read) == 4
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(read) == 7
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("patience", [3600.0, 0.0], ids=["results are at hand", "results are used slowly"])
def test_calls_of_a_map_with_a_buffer_are_submitted_in_groups(
    monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    executor, groups, mapped = Executor(ReplayExecutor()), list[list[int]](), list[MappedCalls]()

    def submit(calls: MappedCalls, item_indices: Iterable[int]) -> None:
        groups.append(list(item_indices))
        mapped.append(calls)

    monkeypatch.setattr(executor._call_queue, "submit", submit)
    monkeypatch.setattr("polarmap.maps.executor.MAX_GROUP_SECONDS", patience)
    results = executor.map(abs, range(10), buffersize=4)
    assert groups == [[0, 1, 2, 3]]
    for number in range(4):
        mapped[0].set_result(number, [number])
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert groups[1:] == ([] if patience else [[4], [5], [6]])
    assert next(results) == 3
    assert groups[1:] == ([[4, 5, 6, 7]] if patience else [[4], [5], [6], [7]])
    for number in (5, 6, 7):  # Item 4 is missing.
        mapped[0].set_result(number, [number])
    submit_and_answer = executor._call_queue.submit

    def submit_while_waiting(calls: MappedCalls, item_indices: Iterable[int]) -> None:
        submit_and_answer(calls, item_indices)  # type: ignore[arg-type]
        for number in (4, *groups[-1]):
            calls.set_result(number, [number])

    monkeypatch.setattr(executor._call_queue, "submit", submit_while_waiting)
    assert list(results) == list(range(4, 10))
    assert sorted(number for group in groups for number in group) == list(range(10))


@pytest.mark.parametrize("patience", [3600.0, 0.0], ids=["results arrive soon", "results are late"])
def test_short_calls_of_a_map_with_a_buffer_are_submitted_after_the_results_that_arrive_soon(
    monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    executor, groups, mapped = Executor(ReplayExecutor()), list[list[int]](), list[MappedCalls]()

    def set_results() -> None:
        for number in reversed(range(4)):
            mapped[0].set_result(number, [number])

    def submit(calls: MappedCalls, item_indices: Iterable[int]) -> None:
        groups.append(list(item_indices))
        mapped.append(calls)
        if len(groups) > 1:
            set_results()

    monkeypatch.setattr(executor._call_queue, "submit", submit)
    monkeypatch.setattr("polarmap.maps.executor.MAX_GROUP_SECONDS", 3600.0)
    monkeypatch.setattr("polarmap.maps.executor.TARGET_BATCH_SECONDS", patience)
    results = executor.map(abs, range(20), buffersize=4)
    policy = executor._call_queue._policy
    policy._allow_batches = True
    policy._record_run_time(mapped[0].item_class, 1e-5)
    if patience:
        threading.Timer(0.05, set_results).start()
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert groups == ([[0, 1, 2, 3]] if patience else [[0, 1, 2, 3], [4]])
    assert next(results) == 3
    assert groups[1:] == ([[4, 5, 6, 7]] if patience else [[4]])


@pytest.mark.parametrize("cancels", [False, True])
def test_calls_that_a_map_with_a_buffer_has_read_are_submitted_before_a_shutdown(
    monkeypatch: pytest.MonkeyPatch, cancels: bool
) -> None:
    monkeypatch.setattr("polarmap.maps.executor.MAX_GROUP_SECONDS", 3600.0)
    executor, n_read = Executor(ReplayExecutor()), 7
    results = executor.map(abs, range(10), buffersize=4)
    executor._call_queue.wait_for_all_calls()
    assert [next(results) for _ in range(n_read - 4)] == [0, 1, 2]
    executor.shutdown(cancel_futures=cancels)
    with pytest.raises(RuntimeError, match="after shutdown"):
        next(results)
    executor = Executor(ReplayExecutor())
    results = executor.map(abs, range(n_read), buffersize=4)
    executor._call_queue.wait_for_all_calls()
    assert [next(results) for _ in range(n_read - 4)] == [0, 1, 2]
    for _ in range(2):
        executor.shutdown(cancel_futures=cancels)
    if cancels:
        assert next(results) == 3
        with suppress(futures.CancelledError):  # unless the thread of the calls has been faster
            assert list(results) == [4, 5, 6]
    else:
        assert list(results) == [3, 4, 5, 6]


@pytest.mark.parametrize("mode", [0o700, 0o777, None], ids=["private", "open to others", "no folder"])
def test_large_function_of_a_map_is_stored_in_a_private_folder(
    two_workers: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int | None
) -> None:
    folder, removed = tmp_path / "folder", threading.Event()
    if mode is None:
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(mode)
    monkeypatch.setattr("polarmap.maps.executor.make_temp_folder", lambda: folder)
    monkeypatch.setattr(
        "polarmap.maps.executor.remove_owned_folder", lambda path: path == folder and removed.set()
    )
    large = np.ones(100_000)
    assert list(two_workers.map(lambda number: number + large.sum(), range(3))) == [1e5, 1e5 + 1, 1e5 + 2]
    assert (mode == 0o700) == (folder / "calls/function").exists()
    assert removed.wait(PATIENCE)


def test_map_with_a_buffer_keeps_its_executor_alive() -> None:
    for chunksize in (1, 3):
        results = Executor(ReplayExecutor()).map(abs, range(20), chunksize=chunksize, buffersize=2)
        assert list(results) == list(range(20))


def test_lateness_is_tracked_per_function_and_chunksize() -> None:
    with Executor(ReplayExecutor()) as executor:
        for f in (abs, float):
            for chunksize in (1, 2):
                list(executor.map(f, range(4), chunksize=chunksize))
        assert len(executor._call_queue._policy._trackers_by_class) == 4


def test_unpicklable_call_of_a_map_fails_alone(two_workers: Executor) -> None:
    items: list[Any] = [1, threading.Lock(), np.arange(10_000.0), 3]
    results = two_workers.map(np.sum, items)
    assert next(results) == 1
    with pytest.raises(TypeError, match="pickle"):
        next(results)
    assert list(two_workers.map(np.sum, items[2:])) == [49995000.0, 3]
    with pytest.raises(TypeError, match="pickle"):
        list(two_workers.map(partial(id, items[1]), [1]))


def test_shutdown_cancels_queued_calls_of_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One call runs, one is assigned to the worker in advance, some wait in the pool, and the rest have
    # not been submitted to the pool yet.
    monkeypatch.setattr("polarmap.maps.executor.MAX_QUEUED_CALLS", 40)
    with Executor(workers=1) as executor:
        results = executor.map(linger, [tmp_path] * 90, map(str, range(90)))
        assert until((tmp_path / "0 began").exists)
        executor.shutdown(wait=False, cancel_futures=True)
        for number in range(90):
            touch(tmp_path, f"{number} may end")
        assert next(results) == "0"
        with pytest.raises(futures.CancelledError):
            list(results)


def test_a_map_that_times_out_or_raises_cancels_the_rest(tmp_path: Path) -> None:
    with Executor(workers=2) as executor:
        with pytest.raises(futures.TimeoutError):
            list(executor.map(linger, [tmp_path] * 30, map(str, range(30)), timeout=0.5))
        for number in range(30):
            touch(tmp_path, f"{number} may end")
    assert 1 <= len(list(tmp_path.glob("* began"))) < 10


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"chunksize": 0}, "chunksize must be >= 1"),
        ({"buffersize": 0}, "buffersize must be None or > 0"),
        ({"buffersize": "1"}, "buffersize must be an integer or None"),
    ],
)
def test_options_of_map_are_checked(two_workers: Executor, wrong: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        two_workers.map(abs, [1], **wrong)


# --- futures -----------------------------------------------------------------------------------------


def test_a_thousand_futures_take_one_thread(two_workers: Executor) -> None:
    before = threading.active_count()
    futures = [two_workers.submit(abs, -number) for number in range(1000)]
    assert threading.active_count() <= before + 3  # one thread of the executor and two of its pool
    assert [future.result(PATIENCE) for future in futures] == list(range(1000))


def test_callbacks_may_submit_more(two_workers: Executor) -> None:
    seen: futures.Future[int] = futures.Future()

    def more(future: futures.Future[int]) -> None:
        again = two_workers.submit(abs, -future.result())
        again.add_done_callback(lambda future: seen.set_result(future.result()))

    two_workers.submit(int, "-7").add_done_callback(more)
    assert seen.result(PATIENCE) == 7


def test_finished_calls_are_released(two_workers: Executor) -> None:
    class Thing:
        def method(self) -> Thing:
            return self

    thing = Thing()
    reference = weakref.ref(thing)
    two_workers.submit(thing.method).result(PATIENCE)
    del thing
    gc.collect()
    assert reference() is None


def test_finished_calls_are_released_while_others_run(two_workers: Executor, tmp_path: Path) -> None:
    first = two_workers.submit(linger, tmp_path, "first")
    sizes = []
    # The first round fills the history of durations, which keeps a bounded number of calls.
    for _ in range(3):
        list(two_workers.map(abs, range(1200)))
        gc.collect()
        sizes.append(len(gc.get_objects()))
    assert first.running()
    touch(tmp_path, "first may end")
    assert abs(sizes[2] - sizes[1]) < 100


# --- late and lost calls -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pool", "threads", "processes"])
def test_workers_that_hang_do_not_block_other_calls(kind: str, tmp_path: Path) -> None:
    # Eight calls sleep forever on three workers, while another call keeps the executor busy.

    def asleep_at_first(number: int) -> int:
        if number % 10 == 5 and not (tmp_path / f"{number} began").exists():
            linger(tmp_path, str(number))
        return number

    with ExitStack() as stack, KINDS[kind](stack) as executor:
        first = executor.submit(linger, tmp_path, "first")
        for turn in range(8):
            numbers = range(10 * turn, 10 * turn + 10)
            assert list(executor.map(asleep_at_first, numbers, timeout=PATIENCE)) == list(numbers)
        assert first.running()
        for number in ("first", *range(5, 80, 10)):
            touch(tmp_path, f"{number} may end")


def test_backups_0_starts_no_backups(tmp_path: Path) -> None:
    def note(number: int) -> None:
        (tmp_path / f"{number} {time.monotonic_ns()}").touch()
        time.sleep(1.0 if number == 19 else 0.02)

    with Executor(workers=2, backups=0) as executor:
        list(executor.map(note, range(20)))
    assert len(list(tmp_path.iterdir())) == 20


def test_call_of_a_lost_worker_is_restarted(executor: Executor, tmp_path: Path) -> None:
    name = executor._call_queue._executor.name
    if name.startswith(("ThreadPool", "ProcessPool", "replay", "persistent workers on Dask")):
        pytest.skip("its workers are this process, or all are lost with one")

    def die_once(path: Path) -> int:
        if not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 7

    later_futures = [executor.submit(abs, -1) for _ in range(5)]
    assert executor.submit(die_once, tmp_path / "died").result(PATIENCE) == 7
    with pytest.raises(WorkerLostError, match="lost 2 times") as raised:
        executor.submit(os._exit, 3).result(PATIENCE)
    assert isinstance(raised.value, futures.BrokenExecutor)
    assert [future.result(PATIENCE) for future in later_futures] == [1] * 5
    assert executor.submit(int).result(PATIENCE) == 0


def test_lost_call_is_restarted_after_the_retry_delay() -> None:
    executor = FaultyExecutor(ReplayExecutor(), {1: Fault("kill")})
    with Executor(executor, retry_delay=30.0) as delayed:
        begun = time.monotonic()
        assert list(delayed.map(abs, [-1, -2, -3])) == [1, 2, 3]
    assert time.monotonic() - begun < 20.0  # the delay of 30 s passes on a virtual clock


def test_faults_strike_calls_by_number() -> None:
    faults = {0: Fault("kill"), 1: Fault("raise"), 2: Fault("kill", attempts=2), 3: Fault("sleep", 0.1)}
    with Executor(FaultyExecutor(ReplayExecutor(), faults)) as executor:
        futures = [executor.submit(abs, -number) for number in range(5)]
        assert [futures[number].result(PATIENCE) for number in (0, 3, 4)] == [0, 3, 4]
        assert futures[1].exception(PATIENCE) is not None
        assert isinstance(futures[2].exception(PATIENCE), WorkerLostError)


def test_call_with_infinite_run_time_is_lost() -> None:
    with Executor(ReplayExecutor({0: float("inf")})) as executor:
        assert isinstance(executor.submit(int).exception(PATIENCE), WorkerLostError)
        assert executor.submit(int).result(PATIENCE) == 0


# --- shutdown, exit and forks ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_executor_after_shutdown_accepts_no_calls_and_leaves_nothing(kind: str) -> None:
    before = set(threading.enumerate())
    with ExitStack() as stack:
        executor = KINDS[kind](stack)
        futures = [executor.submit(abs, -1) for _ in range(5)]
        executor.shutdown(wait=False)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(int)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(id, threading.Lock())
        executor.shutdown()
        executor.shutdown(cancel_futures=True)
        assert [future.result(0) for future in futures] == [1] * 5
        new = set(threading.enumerate()) - before
        assert not [thread for thread in new if thread.name == "polarmap-executor"]


def test_shutdown_ends_own_workers_but_not_those_of_a_pool() -> None:
    before = descendants()
    with Pool(workers=1) as pool:
        with Executor(pool) as executor:
            process = executor.submit(os.getpid).result(PATIENCE)
        assert runs(process)
        with Executor(workers=1) as executor:
            process = executor.submit(os.getpid).result(PATIENCE)
        assert until(lambda: not runs(process))
    dropped = Executor(workers=1)
    future = dropped.submit(time.sleep, 0.2)
    del dropped
    assert future.result(PATIENCE) is None
    assert until(lambda: not (descendants() - before))


def test_closing_a_pool_fails_only_its_calls(tmp_path: Path) -> None:
    with Pool(workers=1) as pool, Executor(pool) as executor:
        running = executor.submit(linger, tmp_path, "first")
        assert until((tmp_path / "first began").exists)
        pool.close()
        with pytest.raises(ExecutorError):
            running.result(PATIENCE)
        with pytest.raises(ExecutorError, match="closed"):
            executor.submit(int).result(PATIENCE)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"workers": 0}, CodeError, "workers must be a positive integer, not 0"),
        ({"backups": -1}, CodeError, "backups must be 0 or more"),
        ({"retries": 1.5}, CodeError, "retries must be 0 or more"),
        ({"retry_delay": -1}, CodeError, "retry_delay must be a finite number of seconds >= 0, got -1"),
        ({"executor": "threads"}, ExecutorError, "neither 'localhost' nor a file"),
        ({"executor": ReplayExecutor(), "workers": 2}, ExecutorError, "leave workers= out"),
        ({"executor": Executor}, ExecutorError, "is a class"),
    ],
)
def test_options_are_checked(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Executor(**arguments)


def script(text: str) -> subprocess.Popen[str]:
    lines = "import os, sys, time\nimport polarmap\n" + textwrap.dedent(text)
    return subprocess.Popen(
        [sys.executable, "-c", lines], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@starts_threads_at_exit
def test_the_interpreter_waits_for_its_calls_before_it_exits() -> None:
    with script(
        """
        executor = polarmap.Executor(workers=2)
        executor.submit(time.sleep, 0.5).add_done_callback(lambda future: print("done", future.result()))
        def late():
            try:
                executor.submit(int)
            except RuntimeError as error:
                print(error)
        import atexit; atexit.register(late)
        """
    ) as process:
        out, errors = process.communicate(timeout=PATIENCE)
    assert out == "done None\ncannot schedule new futures after interpreter shutdown\n"
    assert errors == ""


def test_forked_child_has_separate_threads_and_workers() -> None:
    with script(
        """
        executor = polarmap.Executor(workers=2)
        before = executor.submit(os.getpid).result()
        waiting = executor.submit(time.sleep, 1)
        child = os.fork()
        if not child:
            print(executor.submit(os.getpid).result() != before, flush=True)
            executor.shutdown()
            os._exit(0)
        os.waitpid(child, 0)
        print(waiting.result(), executor.submit(os.getpid).result() == before)
        """
    ) as process:
        out, errors = process.communicate(timeout=PATIENCE)
    assert errors == "" or "fork" in errors  # some Python versions warn about forking with threads
    assert out == "True\nNone True\n"


# --- libraries that accept an executor ---------------------------------------------------------------


def test_dask_computes_on_it(two_workers: Executor) -> None:
    import dask

    halves = [dask.delayed(sum)(range(start, start + 50)) for start in (0, 50)]
    with dask.config.set(scheduler="threads", pool=two_workers):
        assert dask.delayed(sum)(halves).compute() == 4950


def test_coded_map_runs_on_the_underlying_executor(executor: Executor) -> None:
    data = np.arange(12.0).reshape(6, 2)
    options: dict[str, Any] = {"executor": executor, "timeout": PATIENCE}
    result = polarmap.coded_map(np.sum, data, blocks=3, tasks=4, **options)
    assert [round(float(total), 9) for total in result] == [6.0, 22.0, 38.0]
    assert result.report.executor == executor._executor.name
    assert list(polarmap.hedged_map(str, range(3), **options)) == ["0", "1", "2"]


def test_map_on_an_executor_after_shutdown_is_refused() -> None:
    executor = Executor(ReplayExecutor())
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        polarmap.coded_map(np.sum, np.ones(6), blocks=3, executor=executor)
