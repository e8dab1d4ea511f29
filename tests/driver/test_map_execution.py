"""A map from its opening to its report: who is told what, what is tried again, and that it is closed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from coded_maps import DATA, LOST_DATA, WHOLE, K, N, assert_right, coded, failing_on, faulty, product
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plain import assert_same, cut, states

import polarmap
from polarmap.blocks.uneven import UncodedBlocks
from polarmap.codes import PolarCode
from polarmap.driver.collector import JobTimer
from polarmap.driver.function_properties import VERIFIED_PROPERTIES
from polarmap.driver.map_execution import MapExecution, Observer, report_stripe_progress
from polarmap.driver.prepared_map import make_observers
from polarmap.driver.task_table import TaskTable
from polarmap.driver.uncoded_collector import UncodedCollector
from polarmap.errors import CodedTimeoutError, CodeError, NotLinearError
from polarmap.executors import resolve_executor
from polarmap.executors.interface import JobSpec, Outcome
from polarmap.executors.replay import ReplaySession
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from polarmap.types import Report

THREE = np.random.default_rng(0).standard_normal((24, 3))


class Diary(Observer):
    """Writes down what it is told; and the report so far at each moment."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.states: list[list[str]] = []
        self.execution: MapExecution | None = None

    def on_start(self, execution: MapExecution) -> None:
        self.execution = execution
        self.events.append(("began", execution.current_report().needed))

    def on_tasks_started(self, task_indices: Collection[int], elapsed_seconds: float) -> None:
        self.events.append(("started", *task_indices))

    def on_attempt_end(self, outcome: Outcome, elapsed_seconds: float) -> None:
        assert self.execution is not None
        self.events.append(("ended", outcome.task, outcome.failure is None, elapsed_seconds))
        self.states.append([task.state for task in self.execution.current_report().tasks])

    def on_item_result(self, item_index: int, get_result: Callable[[], Any]) -> None:
        self.events.append(("arrived", item_index, get_result()))

    def on_poll(self, n_arrived: int) -> None:
        self.events.append(("looked", n_arrived))

    def on_stripes_done(self, n_done: int, n_stripes: int) -> None:
        self.events.append(("counted", n_done, n_stripes))

    def on_finish(self, report_or_error: Report | BaseException | None) -> None:
        self.events.append(("finished", type(report_or_error)))


def test_what_happens_is_told_where_it_happens() -> None:
    diary = Diary()
    executor = FaultyExecutor(ReplayExecutor({0: 1.0, 1: 2.0, 2: 3.0, 3: math.inf}), {1: Fault("kill")})
    options: dict[str, Any] = {"blocks": 3, "tasks": 4, "executor": executor, "progress": (diary,)}
    result = polarmap.coded_map(np.negative, THREE, verify=False, **options)
    assert [event for event in diary.events if event[0] != "looked"] == [
        ("began", 3),
        ("ended", 0, True, 1.0),
        ("ended", 1, False, 2.0),
        ("ended", 2, True, 3.0),
        ("started", 1),  # after a while without news
        ("ended", 1, True, 6.0),
        ("finished", Report),
    ]
    counts = [event[1] for event in diary.events if event[0] == "looked"]
    assert (counts[0], counts[1], counts[-1]) == (0, 1, 3)
    assert counts == sorted(counts)
    assert diary.states[0] == ["arrived", "running", "running", "running"]
    assert diary.states[1] == ["arrived", "failed", "running", "running"]
    assert diary.states[-1] == ["arrived", "arrived", "arrived", "running"]
    assert [task.state for task in result.report.tasks] == ["arrived", "arrived", "arrived", "abandoned"]


def test_results_of_any_function_are_told_one_by_one() -> None:
    diary = Diary()
    result = polarmap.hedged_map(abs, [-1, 2], executor=ReplayExecutor({0: 9.0}), progress=(diary,))  # type: ignore[arg-type]
    assert list(result) == [1, 2]
    arrivals = [event for event in diary.events if event[0] == "arrived"]
    assert arrivals == [("arrived", 1, 2), ("arrived", 0, 1)]


def test_a_map_that_raises_has_finished_for_all() -> None:
    diaries = Diary(), Diary()
    never = ReplayExecutor(dict.fromkeys(range(4), math.inf))
    options: dict[str, Any] = {"blocks": 3, "tasks": 4, "executor": never, "progress": diaries}
    with pytest.raises(CodedTimeoutError):
        polarmap.coded_map(np.negative, THREE, timeout=2.0, **options)
    assert [diary.events[-1] for diary in diaries] == [("finished", CodedTimeoutError)] * 2


def test_nobody_looks_on_at_a_plain_map(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "polarmap")
    assert [type(observer).__name__ for observer in make_observers(False)][-1:] == ["LogObserver"]
    caplog.set_level("WARNING", "polarmap")
    assert "LogObserver" not in [type(observer).__name__ for observer in make_observers(False)]


def test_a_map_may_be_asked_and_woken_whenever_anybody_wants() -> None:
    running = MapExecution(resolve_executor(ReplayExecutor()))
    running.set_code(polarmap.codes.PolarCode(4, 3), padding=2)
    blank = running.current_report()
    assert (blank.n, blank.k, blank.padding, blank.is_final) == (4, 3, 2, False)
    running.wake()
    run = running.executor.open(JobSpec(abs, UncodedBlocks([], ())))
    collector = UncodedCollector(print, str, False, TaskTable(4), JobTimer(run.now))
    running.session, running.collector = run, collector
    collector.task_table.start_attempts([0, 1], 0.0)
    assert [task.state for task in running.current_report().tasks] == ["queued"] * 2 + ["held back"] * 2
    running.session = running.collector = None
    running.wake()
    assert running.current_report() == blank


def test_stripes_are_counted_from_none_to_the_end() -> None:
    diary = Diary()
    with report_stripe_progress((diary,), 3) as show:
        show(2)
    assert diary.events == [("counted", 0, 3), ("counted", 2, 3), ("finished", type(None))]


# --- the executor is opened once, and closed whatever happens ----------------------------------


class Recorder(ReplayExecutor):
    """A replay that notes what is done to it and to its run, and can be interrupted."""

    def __init__(
        self,
        seconds: dict[int, float] | None = None,
        interrupt: tuple[str, int, BaseException] | None = None,
    ) -> None:
        super().__init__(seconds)
        self.calls: list[tuple[Any, ...]] = []
        self._interrupt = interrupt

    def open(self, job_spec: JobSpec) -> ReplaySession:
        self.note("open")
        self.run = RecordedSession(self._arrival_seconds, job_spec)
        self.run.note = self.note
        return self.run

    def note(self, verb: str, *tasks: int) -> None:
        self.calls.append((verb, *tasks))
        when, times, error = self._interrupt or ("", 0, None)
        if verb == when and [call[0] for call in self.calls].count(verb) == times and error is not None:
            raise error

    def submitted(self) -> list[list[int]]:
        """What was handed in, one list for each time."""
        return [list(call[1:]) for call in self.calls if call[0] == "submit"]


class RecordedSession(ReplaySession):
    note: Callable[..., None]

    def submit(self, attempts: Sequence[tuple[int, int]]) -> None:
        self.note("submit", *(task for task, _ in attempts))
        super().submit(attempts)

    def wait(self, timeout: float) -> Any:
        self.note("wait")
        assert timeout >= 0
        return super().wait(timeout)

    def close(self) -> None:
        self.note("close")
        super().close()


@pytest.mark.parametrize(
    "use",
    [
        lambda executor: polarmap.coded_map(np.sum, [], executor=executor),
        lambda executor: coded(data=DATA > 0, executor=executor),
        lambda executor: polarmap.coded_map(
            np.sum,
            np.ones((8, 2)),
            blocks=4,
            tasks=12,
            degree=2,
            timeout=1.0,
            on_timeout="estimate",
            executor=executor,
        ),
        lambda executor: polarmap.coded_sum(np.sum, [], executor=executor),
        lambda executor: polarmap.hedged_map(np.sum, [np.ones(2)], blocks=3, executor=executor),
    ],
)
def test_nothing_is_opened_for_data_that_is_refused(use: Callable[[Any], Any]) -> None:
    recorder = Recorder()
    with pytest.raises(CodeError):
        use(recorder)
    assert recorder.calls == []


def test_a_run_is_opened_once_and_closed_last() -> None:
    recorder = Recorder(LOST_DATA)
    assert_right(coded(executor=recorder))
    assert recorder.calls[:2] == [("open",), ("submit", *range(N))]
    assert recorder.calls[-1] == ("close",)
    assert (
        recorder.calls.count(("open",)) == recorder.calls.count(("close",)) == len(recorder.submitted()) == 1
    )


def test_seconds_count_from_the_call_although_the_run_is_opened_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Late(ReplaySession):
        def now(self) -> float:
            return 1000.0 + super().now()

    class Clocked(ReplayExecutor):
        def open(self, job_spec: JobSpec) -> ReplaySession:
            return Late({}, job_spec)

    monkeypatch.setattr("polarmap.driver.map_execution.time", SimpleNamespace(monotonic=lambda: 990.0))
    assert coded(verify=False, executor=Clocked()).report.seconds == 11.0
    assert coded(verify=False, executor=ReplayExecutor()).report.seconds == 1.0


@pytest.mark.parametrize(
    ("f", "options", "error"),
    [
        (np.abs, {}, NotLinearError),
        (failing_on(*range(K)), {}, ValueError),
        (product, {"timeout": 0.5}, CodedTimeoutError),
        (lambda block: block > 0, {}, CodeError),
    ],
)
def test_the_run_is_closed_after_an_error(f: Any, options: dict[str, Any], error: type[Exception]) -> None:
    recorder = Recorder(LOST_DATA)
    with pytest.raises(error):
        coded(f, executor=recorder, **options)
    assert recorder.calls[-1] == ("close",)
    assert recorder.calls.count(("close",)) == 1


@pytest.mark.parametrize("verb", ["submit", "wait"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError])
def test_the_run_is_closed_when_interrupted(verb: str, error: type[BaseException]) -> None:
    recorder = Recorder(LOST_DATA, (verb, 1 if verb == "submit" else 4, error()))
    with pytest.raises(error):
        coded(executor=recorder)
    assert recorder.calls[-1] == ("close",)
    assert recorder.calls.count(("close",)) == 1


# --- failures ----------------------------------------------------------------------------------


def test_who_arrived_when_is_reported() -> None:
    seconds = {task: 1 + 0.1 * task for task in range(N)} | LOST_DATA
    report = coded(executor=ReplayExecutor(seconds)).report
    assert [task.index for task in report.tasks] == list(range(N))
    for task in report.tasks:
        arrived = task.index not in (1, 4, 11)
        expected = 1 + 0.1 * task.index if arrived else None
        assert task.arrived == pytest.approx(expected)
        assert task.seconds == pytest.approx(expected)
        assert (task.attempts, task.failures) == (1, ())
    assert states(report)["abandoned"] == [1, 4, 11]


@pytest.mark.parametrize("kind", ["raise", "kill", "exit"])
def test_failures_that_parity_covers_are_not_tried_again(kind: str) -> None:
    seconds = {task: 1 + 0.1 * task for task in range(N)}
    recorder = Recorder(seconds)
    faults = {0: Fault(kind), 3: Fault(kind), 9: Fault(kind)}
    result = coded(executor=FaultyExecutor(recorder, faults))
    assert_right(result)
    report = result.report
    assert states(report)["failed"] == [0, 3, 9]
    assert report.recovered == (0, 3)
    assert all(task.attempts == 1 for task in report.tasks)
    assert recorder.submitted() == [[*range(N)]]
    text = "RuntimeError: injected fault" if kind == "raise" else f"struck by '{kind}'"
    assert text in report.tasks[0].failures[0]


@pytest.mark.parametrize("kind", ["raise", "kill"])
def test_failures_that_parity_does_not_cover_are_tried_again(kind: str) -> None:
    seconds = dict.fromkeys(range(6, 11), 0.5) | {11: math.inf}
    recorder = Recorder(seconds)
    result = coded(executor=FaultyExecutor(recorder, dict.fromkeys(range(6), Fault(kind))))
    assert_right(result)
    # With the fifth failure too little can arrive; all that failed so far is tried again.
    assert recorder.submitted() == [[*range(N)], [0, 1, 2, 3, 4]]
    assert [task.attempts for task in result.report.tasks] == [2] * 5 + [1] * 7
    assert [len(task.failures) for task in result.report.tasks] == [1] * 6 + [0] * 6
    assert 5 in result.report.recovered


@settings(derandomize=True, max_examples=160)
@given(
    kinds=st.lists(
        st.sampled_from(["", "", "raise", "kill", "sleep", "hang", "odd"]), min_size=N, max_size=N
    ),
    strikes=st.integers(1, 2),
    retries=st.integers(0, 2),
    seed=st.integers(0, 1000),
    whole=st.booleans(),
    schedule=st.sampled_from(["upfront", "on_demand"]),
)
@example(
    kinds=["", "raise", *[""] * 4, "odd", *[""] * 5],
    strikes=1,
    retries=0,
    seed=0,
    whole=True,
    schedule="upfront",
)
def test_any_mix_of_misfortunes_gives_the_plain_map_or_an_error(
    kinds: list[str], strikes: int, retries: int, seed: int, whole: bool, schedule: str
) -> None:
    VERIFIED_PROPERTIES.clear()
    stream = np.random.default_rng(seed)
    data = WHOLE + stream.integers(0, 99) if whole else DATA
    odd = [data[3 * index].tolist() for index in range(K) if kinds[index] == "odd"]
    seconds = dict(enumerate(stream.permutation(N) + 1.0))
    seconds |= {index: math.inf for index, kind in enumerate(kinds) if kind == "hang"}
    faults = {
        i: Fault(kind, 30, strikes) for i, kind in enumerate(kinds) if kind in ("raise", "kill", "sleep")
    }

    def f(block: np.ndarray) -> np.ndarray:
        return block.T if block[0].tolist() in odd else block[1:]

    healed = ("", "odd", "sleep") if retries < strikes else ("", "odd", "sleep", "raise", "kill")
    comes = np.array([kind in healed and not (kind == "odd" and i < K) for i, kind in enumerate(kinds)])
    try:
        result = coded(f, data, executor=faulty(faults, seconds), retries=retries, schedule=schedule)
    except NotLinearError:
        assert odd  # and evaluated here, with the same odd result
    except (RuntimeError, CodedTimeoutError) as error:
        few = not hasattr(error, "__notes__")
        assert not few or not PolarCode(N, K, "arikan" if whole else "rotation").is_decodable(comes)
    else:
        assert_same(result, [block[1:] for block in cut(data, K)], 1e-9)


def test_an_exception_that_would_not_travel_is_itself_where_it_need_not() -> None:
    class Local(Exception):  # noqa: N818
        def __reduce__(self) -> Any:
            raise TypeError("not picklable")

    with pytest.raises(Local, match="here"):
        coded(failing_on(*range(8), error=Local("here")), executor=ReplayExecutor())


def test_f_that_fails_everywhere_is_found_out_at_once() -> None:
    calls = []

    def f(block: np.ndarray) -> np.ndarray:
        calls.append(block)
        raise KeyError("column")

    recorder = Recorder({task: 1 + 0.1 * task for task in range(N)})
    with pytest.raises(
        KeyError, match="column'\nf fails everywhere: each of the first 5 of 12 tasks to end raised"
    ):
        coded(f, executor=recorder)
    assert len(calls) == N - K + 1
    assert recorder.run.now() == pytest.approx(1 + 0.1 * (N - K))
    assert recorder.calls.count(("close",)) == 1
