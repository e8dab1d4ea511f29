"""hedged_map: the plain map of any function, stragglers started again."""

from __future__ import annotations

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap import CodedResult, Fault, FaultyExecutor, ReplayExecutor, hedged_map
from polarmap.errors import CodedTimeoutError, CodeError, NotDecodableError
from polarmap.executors.base import Payload
from polarmap.executors.private_folder import named_for_lithops
from polarmap.executors.replay import ReplayRun
from polarmap.planning import Failing, Pareto, completion_time
from polarmap.planning.backups import backup_lateness, simulate_backups

DATA = np.random.default_rng(0).standard_normal((50, 3))


def summary(block: np.ndarray) -> dict[str, Any]:
    """Results of another shape for every block, and of dtypes that no code carries."""
    return {"sorted": np.sort(block[block > 0]), "any": (block > 2).any(), "name": np.array("abc")}


def assert_equal(results: CodedResult, k: int) -> None:
    edges = [len(DATA) * turn // k for turn in range(k + 1)]
    assert len(results) == k
    for result, low, high in zip(results, edges, edges[1:]):
        wanted = summary(DATA[low:high])
        assert result.keys() == wanted.keys()
        for key, value in wanted.items():
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
    assert result.report.seconds == pytest.approx(2.1)  # 1.1 x 1 s, and the backup's second
    assert [task.attempts for task in result.report.tasks] == [2 if i in (5, 7) else 1 for i in range(12)]


def test_a_first_attempt_that_beats_its_backup_counts() -> None:
    calls: list[int] = []
    faulty = FaultyExecutor(ReplayExecutor(), {1: Fault("sleep", 0.5), 3: Fault("sleep", 9)})
    result = hedged_map(lambda block: calls.append(1) or len(calls), DATA, blocks=4, executor=faulty)
    assert result[1] == 3  # the attempt of second 1.5, before the backup of second 2.1
    assert result.report.tasks[1].arrived == 1.5


def test_late_backups_are_backed_up_as_often_as_permitted() -> None:
    faulty = FaultyExecutor(ReplayExecutor(), {0: Fault("sleep", 500, attempts=2)})
    result = hedged_map(summary, DATA, blocks=4, executor=faulty)
    assert result.report.tasks[0].attempts == 3
    assert result.report.seconds == pytest.approx(3.2)
    faulty = FaultyExecutor(ReplayExecutor(), {0: Fault("sleep", 500, attempts=2)})
    result = hedged_map(summary, DATA, blocks=4, executor=faulty, backups=1)
    assert result.report.tasks[0].attempts == 2
    assert result.report.seconds == 501
    faulty = FaultyExecutor(ReplayExecutor(), {0: Fault("sleep", 500)})
    assert hedged_map(summary, DATA, blocks=4, executor=faulty, backups=0).report.seconds == 501


def test_where_fewer_than_half_return_the_others_get_backups_with_caution() -> None:
    faulty = FaultyExecutor(ReplayExecutor(), {i: Fault("sleep", 100) for i in (0, 1, 2)})
    result = hedged_map(summary, DATA, blocks=4, executor=faulty)
    assert result.report.seconds == 7  # three times what two of four would take at the pace of one
    assert [task.attempts for task in result.report.tasks] == [2, 2, 2, 1]


def test_where_nothing_returns_one_backup_tells_for_all() -> None:
    faulty = FaultyExecutor(ReplayExecutor(), {i: Fault("sleep", math.inf) for i in range(4)})
    result = hedged_map(summary, DATA, blocks=4, executor=faulty)
    assert result.report.seconds == pytest.approx(62)  # the first backup after a minute, then all


def test_a_failed_attempt_waits_for_the_backup_that_runs() -> None:
    executor = FaultyExecutor(ReplayExecutor({2: 1.5}), {2: Fault("raise")})  # after its backup has started
    result = hedged_map(summary, DATA, blocks=4, executor=executor, backups=1, retries=0)
    assert_equal(result, 4)
    task = result.report.tasks[2]
    assert (task.attempts, task.state, task.arrived) == (2, "used", pytest.approx(2.6))
    assert task.failures == ("RuntimeError: injected fault",)


def test_failed_tasks_are_retried_as_in_a_coded_map() -> None:
    faulty = FaultyExecutor(ReplayExecutor(), {0: Fault("kill"), 1: Fault("raise")})
    result = hedged_map(summary, DATA, blocks=4, executor=faulty)
    assert_equal(result, 4)
    assert [task.attempts for task in result.report.tasks] == [2, 2, 1, 1]
    faulty = FaultyExecutor(ReplayExecutor(), {1: Fault("raise", attempts=9)})
    with pytest.raises(NotDecodableError, match="injected fault"):
        hedged_map(summary, DATA, blocks=4, executor=faulty)


def test_a_timeout_is_kept() -> None:
    with pytest.raises(CodedTimeoutError, match="3 of 4 needed results arrived within 20 s"):
        hedged_map(summary, DATA, blocks=4, executor=ReplayExecutor({2: math.inf}), timeout=20)


@given(k=st.integers(1, 9), seed=st.integers(0, 99), late=st.floats(0, 30))
@settings(deadline=None, max_examples=30)
def test_any_run_times_give_the_plain_map(k: int, seed: int, late: float) -> None:
    rng = np.random.default_rng(seed)
    faults = {int(i): Fault("sleep", late) for i in rng.permutation(k)[: k // 2]}
    executor = FaultyExecutor(ReplayExecutor(dict(enumerate(rng.uniform(1, 2, k)))), faults)
    result = hedged_map(summary, DATA, blocks=k, executor=executor)
    assert_equal(result, k)
    # Half are on time: after 2 s or less it is known what is late, after 2.58 x the second between the
    # fastest and the median at most; or the median itself was late.
    assert result.report.seconds <= 2 + 2.58 + 2 + 0.5
    assert all(task.state == "used" for task in result.report.tasks)


# --- the simulation that plans go by -----------------------------------------------------------


class Table(ReplayExecutor):
    """Run times (attempts, tasks) of each attempt of each task."""

    def __init__(self, seconds: np.ndarray) -> None:
        super().__init__()
        self._table = seconds

    def open(self, payload: Payload) -> ReplayRun:
        return RunOfTable(self._table, payload)


class RunOfTable(ReplayRun):
    def __init__(self, table: np.ndarray, payload: Payload) -> None:
        super().__init__({}, payload)
        self._table = table

    def _schedule(self, task: int) -> None:
        self._seconds = {task: float(self._table[self._attempts[task], task])}
        super()._schedule(task)


@pytest.mark.parametrize("backups", [0, 1, 2, 3])
@pytest.mark.parametrize("unit", [1.0, 0.01, 30.0])  # there a tenth of a second counts, or a minute
def test_the_map_does_what_the_simulation_says(backups: int, unit: float) -> None:
    rng = np.random.default_rng(0)
    distribution = Failing(Pareto(unit, 1.0), 0.1)
    for k in [1, 2, 3, 5, 12, 24] * 4:
        seconds = distribution.sample(rng, (backups + 1, k))
        further = iter(seconds[1:, np.newaxis])
        jobs = simulate_backups(
            seconds[:1], lambda late, further=further: next(further)[late], backup_lateness(k), backups
        )
        try:
            result = hedged_map(
                summary, DATA, blocks=k, executor=Table(seconds), backups=backups, timeout=3000.0
            )
        except CodedTimeoutError:
            assert jobs.time[0] > 3000
        else:
            assert_equal(result, k)
            assert result.report.seconds == pytest.approx(jobs.time[0], abs=1e-6)
            assert sum(task.attempts for task in result.report.tasks) == jobs.started[0]


def test_the_planner_simulates_the_defaults_of_hedged_map() -> None:
    """Of what is lost one time in five, two backups leave one in 125; cubed's single one one in 25."""
    distribution = Failing(Pareto(1.0, 9.0), 0.2)
    never = completion_time(20, 20, "backup", distribution, trials=20_000).failure_probability
    assert never == pytest.approx(1 - (1 - 0.2**3) ** 20, abs=0.02)
    cubed = completion_time(20, 20, "backup-cubed", distribution, trials=20_000).failure_probability
    assert cubed == pytest.approx(1 - (1 - 0.2**2) ** 20, abs=0.02)


# --- on real workers ---------------------------------------------------------------------------


def test_processes_that_die_or_hang_are_replaced() -> None:
    faulty = FaultyExecutor("localhost", {1: Fault("kill"), 2: Fault("sleep", 60)})
    result = hedged_map(summary, DATA, blocks=6, executor=faulty, timeout=60)
    assert_equal(result, 6)
    assert result.report.tasks[2].attempts >= 2


def test_threads_that_hang_are_left_behind() -> None:
    with ThreadPoolExecutor(8) as pool:
        result = hedged_map(summary, DATA, blocks=6, executor=FaultyExecutor(pool, {0: Fault("sleep", 60)}))
    assert_equal(result, 6)
    assert result.report.tasks[0].attempts == 2


def test_a_lithops_executor_of_the_caller(tmp_path: Path) -> None:
    import lithops

    yaml = Path(__file__).resolve().parents[1] / "config" / "localhost.yaml"
    with lithops.FunctionExecutor(config_file=str(yaml), runtime=named_for_lithops(), log_level=None) as fx:
        faulty = FaultyExecutor(fx, {3: Fault("kill")})
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which its workers cannot import
        try:
            result = hedged_map(summary, DATA, blocks=5, executor=faulty, timeout=60)
        finally:
            cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert_equal(result, 5)


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
        ({"blocks": 0}, "blocks must be a positive integer"),
        ({"timeout": 0}, "timeout must be"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CodeError, match=words):
        hedged_map(summary, DATA, executor=ReplayExecutor(), **options)


def test_bad_data_is_refused() -> None:
    with pytest.raises(CodeError, match="the sequence has 3 blocks"):
        hedged_map(summary, list(np.eye(3)), blocks=2, executor=ReplayExecutor())
    with pytest.raises(CodeError, match="Python objects"):
        hedged_map(summary, [np.array([1, None])], executor=ReplayExecutor())
    with pytest.raises(CodeError, match="it holds an object: use arrays, numbers"):
        hedged_map(summary, [object()], executor=ReplayExecutor())


def test_what_is_closed_is_the_run_underneath() -> None:
    closed: list[str] = []

    class ClosedRun(ReplayRun):
        def close(self) -> None:
            closed.append("close")

    class Closed(ReplayExecutor):
        def open(self, payload: Payload) -> ReplayRun:
            return ClosedRun({}, payload)

    with pytest.raises(NotDecodableError):
        hedged_map(lambda block: 1 / 0, DATA, executor=Closed(), retries=0)
    assert len(closed) == 1
