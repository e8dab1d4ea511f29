"""Tests of a map from opening its executor to its report: events, retries and closing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

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
from polarmap.driver.events import (
    AttemptEnded,
    AttemptsStarted,
    BlockReady,
    CancellationToken,
    EstimateReady,
    EventStream,
    JobCancelled,
    JobContext,
    JobEvent,
    JobFinished,
    JobPolled,
    JobStarted,
    Observer,
)
from polarmap.driver.function_properties import VERIFIED_PROPERTIES
from polarmap.driver.map_execution import MapExecution
from polarmap.driver.prepared_map import make_observers
from polarmap.driver.task_table import TaskTable
from polarmap.driver.uncoded_collector import UncodedCollector
from polarmap.errors import CodedTimeoutError, CodeError, NotLinearError
from polarmap.executors import resolve_executor
from polarmap.executors.interface import JobSpec
from polarmap.executors.replay import ReplaySession
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

T = TypeVar("T")

THREE = np.random.default_rng(0).standard_normal((24, 3))


class EventLog(Observer):
    """An observer that records the events of a map, and the states of its tasks whenever an attempt ends."""

    def __init__(self) -> None:
        self.events: list[JobEvent] = []
        self.states: list[list[str]] = []

    def on_event(self, event: JobEvent) -> None:
        self.events.append(event)
        if isinstance(event, JobStarted):
            self.get_report = event.get_report
            assert not event.get_report().is_final
        if isinstance(event, AttemptEnded):
            self.states.append([task.state for task in self.get_report().tasks])

    def events_of(self, kind: type[T]) -> list[T]:
        """Return the events of one class."""
        return [event for event in self.events if isinstance(event, kind)]


def observe(map_function: Any, *arguments: Any, observers: Sequence[Observer], **options: Any) -> Any:
    """Run a map with `observers` and return its result."""
    return map_function.prepare(*arguments, **options).execute(JobContext(EventStream(observers)))


def test_events_are_emitted_as_they_happen() -> None:
    event_log = EventLog()
    executor = FaultyExecutor(ReplayExecutor({0: 1.0, 1: 2.0, 2: 3.0, 3: math.inf}), {1: Fault("kill")})
    options: dict[str, Any] = {"blocks": 3, "tasks": 4, "executor": executor, "verify": False}
    result = observe(polarmap.coded_map, np.negative, THREE, observers=[event_log], **options)
    events = [event for event in event_log.events if not isinstance(event, (JobPolled, EstimateReady))]
    assert [type(event) for event in events] == [
        JobStarted,
        AttemptEnded,
        BlockReady,
        AttemptEnded,
        AttemptEnded,
        BlockReady,
        AttemptsStarted,  # The retry starts a second after the loss.
        AttemptEnded,
        BlockReady,
        *[BlockReady] * 3,
        JobFinished,
    ]
    ended = [(event.outcome.task, event.elapsed_seconds) for event in event_log.events_of(AttemptEnded)]
    assert ended == [(0, 1.0), (1, 2.0), (2, 3.0), (1, 6.0)]
    [started] = event_log.events_of(AttemptsStarted)
    assert (list(started.attempts), set(started.pending_tasks)) == ([(1, 1)], {3})
    ready = [(event.index, event.is_final) for event in event_log.events_of(BlockReady)]
    assert ready == [(0, False), (2, False), (1, False), (0, True), (2, True), (1, True)]
    for event in event_log.events_of(BlockReady):
        np.testing.assert_array_equal(event.get_result(), result[event.index])
    counts = [event.n_results for event in event_log.events_of(JobPolled)]
    assert (counts[0], counts[1], counts[-1]) == (0, 1, 3)
    assert counts == sorted(counts) == [event.n_results for event in event_log.events_of(EstimateReady)]
    assert event_log.states[0] == ["arrived", "running", "running", "running"]
    assert event_log.states[1] == ["arrived", "failed", "running", "running"]
    assert event_log.states[-1] == ["arrived", "arrived", "arrived", "running"]
    assert [task.state for task in result.report.tasks] == ["arrived", "arrived", "arrived", "abandoned"]
    [finished] = event_log.events_of(JobFinished)
    assert finished.report is result.report and finished.error is None


def test_results_of_any_function_are_final_one_by_one() -> None:
    event_log = EventLog()
    result = observe(
        polarmap.hedged_map, abs, [-1, 2], observers=[event_log], executor=ReplayExecutor({0: 9.0})
    )
    assert list(result) == [1, 2]
    ready = [(event.index, event.get_result(), event.is_final) for event in event_log.events_of(BlockReady)]
    assert ready == [(1, 2, True), (0, 1, True)]


def test_blocks_that_arrived_are_final_in_their_order_before_decoded_ones() -> None:
    event_log, executor = EventLog(), ReplayExecutor({0: math.inf, 1: 3.0, 2: 2.0})
    options: dict[str, Any] = {"blocks": 3, "tasks": 5, "executor": executor}
    result = observe(polarmap.coded_map, np.negative, THREE, observers=[event_log], **options)
    final = [event for event in event_log.events_of(BlockReady) if event.is_final]
    assert [event.index for event in final] == [2, 1, 0]
    assert all(event.get_result() is result[event.index] for event in final)


def test_a_job_that_raises_has_finished_for_all_observers() -> None:
    diaries = EventLog(), EventLog()
    never = ReplayExecutor(dict.fromkeys(range(4), math.inf))
    options: dict[str, Any] = {"blocks": 3, "tasks": 4, "executor": never, "timeout": 2.0}
    with pytest.raises(CodedTimeoutError) as raised:
        observe(polarmap.coded_map, np.negative, THREE, observers=diaries, **options)
    for event_log in diaries:
        finished = event_log.events[-1]
        assert isinstance(finished, JobFinished) and finished.error is raised.value
        assert finished.report is not None and not finished.report.is_final
        assert event_log.events_of(BlockReady) == []


def test_a_job_of_an_observer_that_raises_ends_with_its_exception() -> None:
    class Refusal(Observer):
        def on_event(self, event: JobEvent) -> None:
            if isinstance(event, AttemptEnded):
                raise error

    error, recorder, event_log = ArithmeticError("no"), Recorder(), EventLog()
    with pytest.raises(ArithmeticError) as raised:
        observe(polarmap.coded_map, np.negative, THREE, observers=[Refusal(), event_log], executor=recorder)
    assert raised.value is error
    assert event_log.events_of(JobFinished)[0].error is error
    assert recorder.calls[-1] == ("close",)


def test_a_plain_map_has_no_observers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "polarmap")
    assert [type(observer).__name__ for observer in make_observers(False)][-1:] == ["LogObserver"]
    caplog.set_level("WARNING", "polarmap")
    assert "LogObserver" not in [type(observer).__name__ for observer in make_observers(False)]


@pytest.mark.parametrize("is_early", [True, False])
def test_a_job_that_is_cancelled_stops_and_closes_its_session(is_early: bool) -> None:
    class Canceller(Observer):
        def on_event(self, event: JobEvent) -> None:
            if isinstance(event, JobStarted if is_early else AttemptEnded):
                cancellation.cancel()

    cancellation, recorder, event_log = CancellationToken(), Recorder({2: 9.0}), EventLog()
    prepared = polarmap.hedged_map.prepare(abs, [1, 2, 3], executor=recorder)  # type: ignore[attr-defined]
    with pytest.raises(JobCancelled):
        prepared.execute(JobContext(EventStream([Canceller(), event_log]), cancellation))
    assert len(event_log.events_of(AttemptEnded)) == (0 if is_early else 1)
    assert isinstance(event_log.events[-1].error, JobCancelled)  # type: ignore[union-attr]
    assert [call[0] for call in recorder.calls] == ([] if is_early else ["open", "submit", "wait", "close"])


def test_the_report_of_a_map_is_available_at_any_time() -> None:
    running = MapExecution(resolve_executor(ReplayExecutor()))
    running.set_code(polarmap.codes.PolarCode(4, 3), padding=2)
    blank = running.current_report()
    assert (blank.n, blank.k, blank.padding, blank.is_final) == (4, 3, 2, False)
    run = running.executor.open(JobSpec(abs, UncodedBlocks([], ())))
    collector = UncodedCollector(print, str, False, TaskTable(4), JobTimer(run.now))
    running._collector = collector
    collector.task_table.start_attempts([0, 1], 0.0)
    assert [task.state for task in running.current_report().tasks] == ["queued"] * 2 + ["held back"] * 2
    running._collector = None
    assert running.current_report() == blank


# --- the executor is opened once, and closed whatever happens ----------------------------------


class Recorder(ReplayExecutor):
    """A replay executor that records the calls to it and to its session, and can raise KeyboardInterrupt."""

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
        """Return the submitted tasks, one list for each submission."""
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
def test_no_session_is_opened_for_invalid_data(use: Callable[[Any], Any]) -> None:
    recorder = Recorder()
    with pytest.raises(CodeError):
        use(recorder)
    assert recorder.calls == []


def test_a_session_is_opened_once_and_closed_last() -> None:
    recorder = Recorder(LOST_DATA)
    assert_right(coded(executor=recorder))
    assert recorder.calls[:2] == [("open",), ("submit", *range(N))]
    assert recorder.calls[-1] == ("close",)
    assert (
        recorder.calls.count(("open",)) == recorder.calls.count(("close",)) == len(recorder.submitted()) == 1
    )


def test_seconds_count_from_the_call_though_the_session_opens_later(
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
def test_the_session_is_closed_after_an_error(
    f: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    recorder = Recorder(LOST_DATA)
    with pytest.raises(error):
        coded(f, executor=recorder, **options)
    assert recorder.calls[-1] == ("close",)
    assert recorder.calls.count(("close",)) == 1


@pytest.mark.parametrize("verb", ["submit", "wait"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError])
def test_the_session_is_closed_when_interrupted(verb: str, error: type[BaseException]) -> None:
    recorder = Recorder(LOST_DATA, (verb, 1 if verb == "submit" else 4, error()))
    with pytest.raises(error):
        coded(executor=recorder)
    assert recorder.calls[-1] == ("close",)
    assert recorder.calls.count(("close",)) == 1


# --- failures ----------------------------------------------------------------------------------


def test_arrival_times_are_reported() -> None:
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
def test_failures_that_parity_covers_are_not_retried(kind: str) -> None:
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
    text = "RuntimeError: injected fault" if kind == "raise" else f"injected fault '{kind}'"
    assert text in report.tasks[0].failures[0]


@pytest.mark.parametrize("kind", ["raise", "kill"])
def test_failures_that_parity_does_not_cover_are_retried(kind: str) -> None:
    seconds = dict.fromkeys(range(6, 11), 0.5) | {11: math.inf}
    recorder = Recorder(seconds)
    result = coded(executor=FaultyExecutor(recorder, dict.fromkeys(range(6), Fault(kind))))
    assert_right(result)
    # With the fifth failure too few results can arrive, so all failed tasks are retried.
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
def test_any_mix_of_failures_gives_the_plain_map_or_an_error(
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
        assert odd  # The driver evaluated f of this block, with the same odd result.
    except (RuntimeError, CodedTimeoutError) as error:
        few = not hasattr(error, "__notes__")
        assert not few or not PolarCode(N, K, "arikan" if whole else "rotation").is_decodable(comes)
    else:
        assert_same(result, [block[1:] for block in cut(data, K)], 1e-9)


def test_an_unpicklable_exception_is_raised_unchanged_within_one_process() -> None:
    class Local(Exception):  # noqa: N818
        def __reduce__(self) -> Any:
            raise TypeError("not picklable")

    with pytest.raises(Local, match="here"):
        coded(failing_on(*range(8), error=Local("here")), executor=ReplayExecutor())


def test_f_that_fails_everywhere_ends_the_map_immediately() -> None:
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
