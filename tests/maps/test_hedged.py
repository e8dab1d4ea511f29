"""hedged_map: a plain map of any function, with backup attempts for stragglers.

Most tests replay run times on a virtual clock. The oracles are the plain map and the simulation of plans.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import printed

from polarmap import hedged_map, submit
from polarmap.driver.lateness import make_backup_lateness_rule
from polarmap.errors import CodedTimeoutError, CodeError, NotDecodableError, WorkerLostError
from polarmap.executors.interface import JobSpec
from polarmap.executors.replay import ReplaySession
from polarmap.planning import FailureProne, Pareto, completion_time, simulate_backups
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from polarmap.types import CodedResult

DATA = np.random.default_rng(0).standard_normal((50, 3))


def summary(block: np.ndarray) -> dict[str, Any]:
    """Return results whose shapes depend on the block and whose dtypes cannot be encoded."""
    return {"sorted": np.sort(block[block > 0]), "any": (block > 2).any(), "name": np.array("abc")}


def assert_equal(results: CodedResult, k: int) -> None:
    edges = [len(DATA) * turn // k for turn in range(k + 1)]
    assert len(results) == k
    for result, low, high in zip(results, edges, edges[1:]):
        expected = summary(DATA[low:high])
        assert result.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(result[key], value)
            assert type(result[key]) is type(value)


# --- on a virtual clock ------------------------------------------------------------------------


def test_without_stragglers_every_task_is_started_once() -> None:
    result = hedged_map(summary, DATA, blocks=12, executor=ReplayExecutor())
    assert_equal(result, 12)
    report = result.report
    assert (report.n, report.k, report.needed, report.recovered) == (12, 12, 12, ())
    assert (report.code, report.verified) == ("no code, backup tasks", "not needed")
    assert report.error_bound == report.amplification == 0
    assert [task.attempts for task in report.tasks] == [1] * 12


def test_stragglers_get_a_backup_once_they_are_late() -> None:
    faulty = FaultyExecutor(ReplayExecutor(), {5: Fault("sleep", 500), 7: Fault("sleep", 3.5)})
    result = hedged_map(summary, DATA, blocks=12, executor=faulty)
    assert_equal(result, 12)
    assert result.report.seconds == pytest.approx(2.1)  # backup at 1.1 x 1 s, which takes another 1 s
    assert [task.attempts for task in result.report.tasks] == [2 if i in (5, 7) else 1 for i in range(12)]


def test_a_first_attempt_that_beats_its_backup_counts() -> None:
    calls: list[int] = []
    faulty = FaultyExecutor(ReplayExecutor(), {1: Fault("sleep", 0.5), 3: Fault("sleep", 9)})
    result = hedged_map(lambda block: calls.append(1) or len(calls), DATA, blocks=4, executor=faulty)
    assert result[1] == 3  # the first attempt ends after 1.5 s, its backup after 2.1 s
    assert result.report.tasks[1].arrived == 1.5


def test_a_failed_attempt_waits_for_the_backup_that_runs() -> None:
    # The first attempt of task 2 fails after its backup has started.
    executor = FaultyExecutor(ReplayExecutor({2: 1.5}), {2: Fault("raise")})
    result = hedged_map(summary, DATA, blocks=4, executor=executor, backups=1, retries=0)
    assert_equal(result, 4)
    task = result.report.tasks[2]
    assert (task.attempts, task.state, task.arrived) == (2, "arrived", pytest.approx(2.6))
    assert task.failures == ("RuntimeError: injected fault",)


def test_failed_tasks_are_retried_as_in_a_coded_map() -> None:
    faulty = FaultyExecutor(ReplayExecutor(), {0: Fault("kill"), 1: Fault("raise")})
    result = hedged_map(summary, DATA, blocks=4, executor=faulty)
    assert_equal(result, 4)
    assert [task.attempts for task in result.report.tasks] == [2, 2, 1, 1]
    faulty = FaultyExecutor(ReplayExecutor(), {1: Fault("raise", attempts=9)})
    with pytest.raises(RuntimeError, match="injected fault\nitem 1 of 4 raised this"):
        hedged_map(summary, DATA, blocks=4, executor=faulty)


@given(k=st.integers(1, 9), seed=st.integers(0, 99), late=st.floats(0, 30, exclude_min=True))
@settings(max_examples=30)
def test_any_run_times_give_the_plain_map(k: int, seed: int, late: float) -> None:
    rng = np.random.default_rng(seed)
    faults = {int(i): Fault("sleep", late) for i in rng.permutation(k)[: k // 2]}
    executor = FaultyExecutor(ReplayExecutor(dict(enumerate(rng.uniform(1, 2, k)))), faults)
    result = hedged_map(summary, DATA, blocks=k, executor=executor)
    assert_equal(result, k)
    # At least half of the tasks return within 2 s. The lateness threshold is at most 2.58 x the spread of 1 s
    # between the fastest task and the median, and a backup takes at most 2 s.
    assert result.report.seconds <= 2 + 2.58 + 2 + 0.5
    assert all(task.state == "arrived" for task in result.report.tasks)


# --- agreement with the simulation that plans use ----------------------------------------------


class Table(ReplayExecutor):
    """An executor that replays given run times, an array of shape (attempts, tasks)."""

    def __init__(self, seconds: np.ndarray) -> None:
        super().__init__()
        self._table = seconds

    def open(self, job_spec: JobSpec) -> ReplaySession:
        return TableSession(self._table, job_spec)


class TableSession(ReplaySession):
    def __init__(self, table: np.ndarray, job_spec: JobSpec) -> None:
        super().__init__({}, job_spec)
        self._table = table

    def submit(self, attempts: Sequence[tuple[int, int]]) -> None:
        for task, attempt in attempts:
            self._arrival_seconds = {task: float(self._table[attempt, task])}
            super().submit([(task, attempt)])


@pytest.mark.parametrize("backups", [0, 1, 2, 3])
# In the unit 0.01 the minimum delay of a backup (0.1 s) matters, in the unit 30 the delay without any result
# (60 s).
@pytest.mark.parametrize("unit", [1.0, 0.01, 30.0])
def test_map_agrees_with_simulation(backups: int, unit: float) -> None:
    rng = np.random.default_rng(0)
    distribution, limit = FailureProne(Pareto(unit, 1.0), 0.1), 100 * unit
    for k in [1, 2, 3, 5, 12, 24] * 4:
        seconds = distribution.sample(rng, (backups + 1, k))
        further = iter(seconds[1:, np.newaxis])
        jobs = simulate_backups(
            seconds[:1],
            lambda late, further=further: next(further)[late],
            make_backup_lateness_rule(k),
            backups,
        )
        try:
            result = hedged_map(
                summary, DATA, blocks=k, executor=Table(seconds), backups=backups, timeout=limit
            )
        except CodedTimeoutError:
            assert jobs.completion_times[0] > limit
        else:
            assert_equal(result, k)
            assert result.report.seconds == pytest.approx(jobs.completion_times[0], abs=1e-6)
            assert sum(task.attempts for task in result.report.tasks) == jobs.n_tasks_started[0]


def test_the_planner_simulates_the_defaults_of_hedged_map() -> None:
    # If an attempt fails with probability 1/5, a task with two backups fails with probability 1/125.
    # With the single backup of cubed, it fails with probability 1/25.
    distribution = FailureProne(Pareto(1.0, 9.0), 0.2)
    never = completion_time(20, 20, "backup", distribution, n_trials=20_000).failure_probability
    assert never == pytest.approx(1 - (1 - 0.2**3) ** 20, abs=0.02)
    cubed = completion_time(20, 20, "backup-cubed", distribution, n_trials=20_000).failure_probability
    assert cubed == pytest.approx(1 - (1 - 0.2**2) ** 20, abs=0.02)


# --- data and results of any type --------------------------------------------------------------


def test_returned_exceptions_are_results() -> None:
    result = hedged_map(lambda item: ValueError(item), ["a"], executor=ReplayExecutor())
    assert type(result[0]) is ValueError and result[0].args == ("a",)


def fail_on_b(item: Any) -> Any:
    if item == "b":
        raise LookupError(f"no {item}")
    return item


@pytest.mark.parametrize("items", ["ba", "abcd", "b", "bbbb"])
def test_exception_of_f_names_its_item(items: str) -> None:
    # The error must not be a NotDecodableError that only counts the missing results.
    executor = ReplayExecutor(dict.fromkeys(range(1, 4), math.inf) if items == "bbbb" else None)
    with pytest.raises(LookupError, match="no b") as caught:
        hedged_map(fail_on_b, list(items), executor=executor, retries=0)
    assert type(caught.value) is LookupError
    assert caught.value.__notes__ == [f"item {items.index('b')} of {len(items)} raised this"]


def test_failing_item_does_not_wait_for_late_items() -> None:
    executor = ReplayExecutor({0: math.inf, 2: math.inf})
    for options in ({"retries": 0}, {}):
        with pytest.raises(LookupError, match="item 1 of 4 raised this"):
            hedged_map(fail_on_b, list("abcd"), executor=executor, backups=0, **options)


def test_f_that_fails_everywhere_is_not_retried() -> None:
    calls: list[str] = []

    def fail(item: str) -> None:
        calls.append(item)
        raise LookupError("nothing is there")

    with pytest.raises(
        LookupError, match="f fails everywhere: each of the first 2 of 4 tasks to end raised this"
    ):
        hedged_map(fail, list("abcd"), executor=ReplayExecutor({2: 9.0, 3: 9.0}), retries=5)
    assert len(calls) <= 3


def test_return_exceptions_stores_exceptions_as_results() -> None:
    result = hedged_map(fail_on_b, list("abcb"), executor=ReplayExecutor(), retries=0, return_exceptions=True)
    assert [result[0], result[2]] == ["a", "c"]
    for index in (1, 3):
        error: Any = result[index]
        assert isinstance(error, LookupError)
        assert (str(error), error.__notes__) == ("no b", [f"item {index} of 4 raised this"])
    report = result.report
    assert (report.tasks_in_state("arrived"), report.tasks_in_state("failed"), report.is_final) == (
        [0, 2],
        [1, 3],
        True,
    )


def test_each_item_is_retried_before_its_exception_is_stored() -> None:
    result = hedged_map(
        fail_on_b, ["b"] * 6, executor=ReplayExecutor(), retries=2, return_exceptions=True, timeout=60
    )
    assert [type(error) for error in result] == [LookupError] * 6
    assert [task.attempts for task in result.report.tasks] == [3] * 6
    faulty = FaultyExecutor(ReplayExecutor(), {0: Fault("raise")})
    assert list(hedged_map(str, [7], executor=faulty, return_exceptions=True)) == ["7"]


def test_lost_workers_and_unpicklable_results_are_stored_as_exceptions() -> None:
    class StubbornError(Exception):  # cannot be unpickled, because its `args` differ from its arguments
        def __init__(self, first: int, two: int) -> None:
            super().__init__("message")

    executor = FaultyExecutor(ReplayExecutor({2: math.inf}), {0: Fault("kill", attempts=9)})
    options: dict[str, Any] = {"executor": executor, "backups": 0}
    result = hedged_map(lambda item: StubbornError(1, 2), list("abc"), **options, return_exceptions=True)
    assert [type(error) for error in result] == [WorkerLostError, NotDecodableError, WorkerLostError]
    assert "cannot be unpickled here" in str(result[1])
    with pytest.raises(
        NotDecodableError, match="the result of item 0 of 1 cannot be unpickled here: TypeError"
    ):
        hedged_map(lambda item: StubbornError(1, 2), ["a"], executor=ReplayExecutor())


def test_blocks_of_a_future_return_stored_exceptions() -> None:
    options: dict[str, Any] = {"executor": ReplayExecutor(), "retries": 0, "return_exceptions": True}
    future = submit(hedged_map, fail_on_b, list("abc"), **options)
    result = future.result(30)
    assert isinstance(result[1], LookupError)
    assert [block.result(30) for block in future.blocks] == list(result)


def test_arguments_of_a_call() -> None:
    def arguments_of(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    options: dict[str, Any] = {"executor": ReplayExecutor()}
    pairs = [("a", 1), ("b", None)]
    assert list(hedged_map(arguments_of, pairs, **options)) == [((pair,), {}) for pair in pairs]
    assert list(hedged_map(arguments_of, pairs, star=True, **options)) == [(pair, {}) for pair in pairs]
    result = hedged_map(
        arguments_of, zip("ab", "cd"), star=True, args=(Path("x"), 2), kwargs={"y": {3}}, **options
    )
    assert list(result) == [((*pair, Path("x"), 2), {"y": {3}}) for pair in zip("ab", "cd")]
    with_array = hedged_map(arguments_of, DATA, blocks=2, args=[1], **options)
    np.testing.assert_array_equal(with_array[1][0][0], DATA[25:])
    assert with_array[0][0][1] == 1


def test_iterators_sets_and_ranges() -> None:
    options: dict[str, Any] = {"executor": ReplayExecutor()}
    assert list(hedged_map(str, range(3), **options)) == ["0", "1", "2"]
    assert list(hedged_map(len, (letter * 2 for letter in "abc"), **options)) == [2] * 3
    assert list(hedged_map(str, {5}, **options)) == ["5"]
    assert list(hedged_map(str, range(3), blocks=3, **options)) == ["0", "1", "2"]


@pytest.mark.parametrize("blocks", [1, 2, 3, 6, 7])
def test_sequence_in_fewer_blocks_returns_one_result_per_item(blocks: int) -> None:
    pairs = [(number, 2) for number in range(5)] + [(None, 2), ([0] * 200, 2)]
    result = hedged_map(lambda a, b: (a, b), pairs, star=True, blocks=blocks, executor=ReplayExecutor())
    assert list(result) == pairs
    assert (result.report.n, len(result.report.tasks)) == (blocks, blocks)


def test_future_has_one_result_for_each_item_of_a_block() -> None:
    future = submit(hedged_map, str, range(7), blocks=3, executor=ReplayExecutor())
    assert [block.result() for block in future.blocks] == list(future.result()) == list("0123456")


@pytest.mark.parametrize("data", [[], (), iter(()), range(0), {}.items()], ids=printed)
def test_empty_data_returns_an_empty_result(data: Any) -> None:
    result = hedged_map(str, data, executor=ReplayExecutor())
    assert list(result) == []
    report = result.report
    assert (report.n, report.k, report.tasks, report.is_final) == (0, 0, (), True)
    assert "0 of 0" in str(report)
    with pytest.raises(CodeError, match="at least one result"):
        result.concatenate()


class RecordingExecutor(ReplayExecutor):
    """An executor that records the blocks of the last map in the form in which workers receive them."""

    def open(self, job_spec: JobSpec) -> ReplaySession:
        self.blocks = job_spec.blocks
        return super().open(job_spec)


def test_arrays_are_sent_unchanged_and_other_values_pickled() -> None:
    executor = RecordingExecutor()
    for data in (DATA, [np.zeros(3), np.ones(4)], [np.zeros(3), np.ones(4, "i4")]):
        hedged_map(lambda item: None, data, executor=executor)
        assert [leaf.dtype for leaf in executor.blocks.block_leaves(0)] == [np.dtype("f8")]
        assert data is not DATA or np.shares_memory(executor.blocks.block_leaves(0)[0], DATA)
    values: list[Any] = [[{"x": DATA, "n": 1}] * 2, ["a", "bc"], [(1, 2.0)]]
    values += [[np.zeros(3), "a"], [None], [Path("a")], [{"x": DATA}, {"y": DATA}], np.array([None, 1])]
    for data in values:
        hedged_map(lambda item: None, data, executor=executor)
        assert [leaf.dtype for leaf in executor.blocks.block_leaves(0)] == [np.dtype("u1")]


# --- arguments ---------------------------------------------------------------------------------


def test_sequences_of_any_shapes_and_a_default_of_24_blocks() -> None:
    blocks = [{"x": np.arange(i + 1), "on": True} for i in range(5)]
    result = hedged_map(lambda block: block["x"].tolist(), blocks, executor=ReplayExecutor())
    assert list(result) == [list(range(i + 1)) for i in range(5)]
    assert len(hedged_map(len, DATA, executor=ReplayExecutor())) == 24
    joined = hedged_map(np.exp, DATA, blocks=7, executor=ReplayExecutor()).concatenate()
    np.testing.assert_array_equal(joined, np.exp(DATA))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backups": -1}, "backups must be 0 or more"),
        ({"backups": 1.5}, "backups must be"),
        ({"blocks": 51}, "cannot be cut into 51 parts"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CodeError, match=words):
        hedged_map(summary, DATA, executor=ReplayExecutor(), **options)


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (list(np.eye(3)), {"blocks": 4}, "blocks=4, but the sequence has 3 items: use blocks <= 3"),
        (
            [threading.Lock(), 1, 2],
            {"blocks": 2},
            "item 0 of data, a _thread.lock, cannot be sent to workers: TypeError",
        ),
        ("text", {}, r"data is a str, a single value: use \[data\], or list\(data\)"),
        (b"text", {}, r"data is a bytes, a single value: use \[data\]"),
        ({"a": 1}, {}, r"data is a dict: use list\(data\), list\(data.values\(\)\), or .*star=True"),
        (3, {}, r"not an int: use \[data\]"),
        (None, {}, r"not None: use \[data\]"),
        (np.zeros(()), {}, "cannot be cut into 1 parts"),
        (scipy.sparse.eye(4, format="coo"), {}, r"a scipy\.sparse.*, which cannot be cut into rows"),
        (np.eye(3), {"star": True}, "data is an array: use a sequence of tuples"),
        ([(1, 2), 3], {"star": True}, r"item 1 is an int: use \(item,\)"),
        ([1], {"star": "yes"}, "star must be True or False"),
        ([1], {"args": 3}, r"args must be a tuple, as in args=\(value,\), not an int"),
        ([1], {"kwargs": {3: 1}}, "kwargs must be a dict with names"),
        ([1], {"kwargs": [1]}, "kwargs must be a dict with names"),
        (
            [1, threading.Lock()],
            {},
            "item 1 of data, a _thread.lock, cannot be sent to workers: TypeError: cannot pickle",
        ),
    ],
    ids=printed,
)
def test_bad_data_is_refused(data: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(CodeError, match=words):
        hedged_map(str, data, executor=ReplayExecutor(), **options)


def test_failing_item_does_not_affect_other_items_of_its_block() -> None:
    results = hedged_map(fail_on_b, list("abcd"), blocks=2, executor=ReplayExecutor(), return_exceptions=True)
    assert [results[0], *results[2:]] == ["a", "c", "d"]
    assert (str(results[1]), results[1].__notes__) == ("no b", ["item 1 of 4 raised this"])
    with pytest.raises(LookupError, match="no b") as caught:
        hedged_map(fail_on_b, list("abcd"), blocks=2, executor=ReplayExecutor())
    assert caught.value.__notes__ == ["item 1 of 4 raised this"]


# --- on_result= --------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocks", "order"), [(None, [1, 2, 3, 0]), (2, [2, 3, 0, 1])])
def test_on_result_receives_items_in_order_of_arrival(blocks: int | None, order: list[int]) -> None:
    calls: dict[int, Any] = {}
    executor = ReplayExecutor({0: 9.0, 1: 1.0, 2: 2.0, 3: 3.0})
    result = hedged_map(
        abs, [-1, -2, -3, -4], blocks=blocks, executor=executor, backups=0, on_result=calls.__setitem__
    )
    assert list(calls) == order
    assert [calls[index] for index in range(4)] == list(result) == [1, 2, 3, 4]


def test_on_result_receives_stored_exceptions() -> None:
    calls: dict[int, Any] = {}
    options: dict[str, Any] = {"executor": ReplayExecutor(), "return_exceptions": True, "retries": 0}
    result = hedged_map(int, ["1", "two"], on_result=calls.__setitem__, **options)
    assert calls[1] is result[1] and isinstance(calls[1], Exception)


def test_on_result_receives_batched_items_on_the_thread_of_the_map() -> None:
    calls, threads = dict[int, int](), set[int]()

    def note(index: int, result: int) -> None:
        assert index not in calls
        calls[index] = result
        threads.add(threading.get_ident())

    hedged_map(abs, range(0, -2000, -1), on_result=note)
    assert calls == {index: index for index in range(2000)}
    assert threads == {threading.get_ident()}
    calls.clear()
    submit(hedged_map, abs, range(0, -200, -1), on_result=note).result(60)
    assert calls == {index: index for index in range(200)}
    assert len(threads) == 2
