"""The contract of all executors, on real threads, processes, Dask clusters and Lithops functions.

To test a new executor, add it to EXECUTORS with the faults that it tolerates.
"""

from __future__ import annotations

import pickle
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from dask_executors import dask_executor
from plain import ends, first_ends, process_pool
from stored_calls import job_reading

from polarmap import Pool
from polarmap.blocks.uneven import UncodedBlocks
from polarmap.clouds.limits import WorkerSpec
from polarmap.errors import ExecutorError
from polarmap.executors import resolve_executor
from polarmap.executors.interface import (
    AttemptStarted,
    Event,
    Failure,
    JobSpec,
    MapExecutor,
    Outcome,
    Reach,
    Session,
    to_failure,
)
from polarmap.executors.lithops_internals import get_interpreter_for_lithops
from polarmap.testing import Fault, ReplayExecutor
from polarmap.worker.encryption import Encryption, encrypt_reply
from polarmap.worker.locations import (
    INLINE,
    BucketLocation,
    ClusterLocation,
    DriverLocation,
    FolderLocation,
    Location,
)
from polarmap.worker.messages import Message, MessageKind
from polarmap.worker.pytree import pack_tree
from polarmap.worker.segments import DamagedError, read_file_segment
from polarmap.worker.task_records import (
    ErrorInfo,
    OutputSpec,
    TaskReply,
    describe_error,
    pickle_value,
    to_plain_tuple,
)

N, ROWS = 6, 6
DATA = np.random.default_rng(0).standard_normal((N, ROWS, 2))
BLOCKS = UncodedBlocks([[block] for block in DATA], ("array",))
YAML = Path(__file__).resolve().parents[2] / "config" / "localhost.yaml"
PATIENCE = 60.0
NEVER = 600.0


@contextmanager
def dask_pool() -> Iterator[Any]:
    with dask_executor(8) as executor, Pool(executor) as pool:
        yield pool


@contextmanager
def functions() -> Iterator[Any]:
    import lithops

    with lithops.FunctionExecutor(
        config_file=str(YAML), runtime=get_interpreter_for_lithops(), log_level=None
    ) as fx:
        yield fx


class Kind(NamedTuple):
    """A kind of executor.

    Attributes
    ----------
    choice : callable
        Returns a context manager that yields the argument `executor=` of a map.
    faults : frozenset of str
        The faults that a test may inject into tasks on the executor.
    withdraws : bool
        Whether the executor can cancel an attempt that is running.
    """

    choice: Callable[[], AbstractContextManager[Any]]
    faults: frozenset[str] = frozenset({"raise", "garbage", "sleep", "kill", "exit"})
    withdraws: bool = True


SURVIVABLE = frozenset({"raise", "garbage", "sleep"})  # for pools that a dying worker breaks
EXECUTORS = {
    "replay": Kind(lambda: nullcontext(ReplayExecutor()), withdraws=False),
    "threads": Kind(lambda: ThreadPoolExecutor(8), SURVIVABLE),
    "processes": Kind(lambda: process_pool(4), SURVIVABLE),
    "dask": Kind(lambda: dask_executor(8), SURVIVABLE),
    "localhost": Kind(lambda: nullcontext("localhost"), withdraws=False),
    "functions": Kind(functions, withdraws=False),
    "pool": Kind(lambda: Pool(workers=8)),
    "default": Kind(lambda: nullcontext(None)),
    "pool of Lithops": Kind(lambda: Pool(YAML, workers=8)),
    "pool of Lithops, through objects": Kind(lambda: Pool(YAML, workers=8, listen=False)),
    "pool of Dask": Kind(dask_pool, SURVIVABLE),
}


@pytest.fixture(scope="module", params=EXECUTORS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return EXECUTORS[request.param]


@pytest.fixture(scope="module")
def executor(kind: Kind) -> Iterator[MapExecutor]:
    """Yield one executor for all tests. A session must not depend on earlier sessions."""
    with kind.choice() as choice:
        yield resolve_executor(choice)


def payload(faults: Mapping[int, Fault] | None = None, **more: Any) -> JobSpec:
    return JobSpec(lambda block: 2 * block, BLOCKS, faults or {}, **more)


def wait_for_outcomes(run: Session, *tasks: int) -> dict[int, Outcome]:
    """Wait until these tasks have ended and return their outcomes by task. No other task may end before."""
    outcomes = {outcome.task: outcome for outcome in first_ends(run, len(tasks), PATIENCE)}
    assert set(outcomes) == set(tasks)
    return outcomes


def assert_right(outcome: Outcome, attempt: int = 0) -> None:
    assert (outcome.attempt, outcome.failure, outcome.structure) == (attempt, None, ("array",))
    assert 0 <= outcome.seconds < PATIENCE
    np.testing.assert_array_equal(outcome.leaves[0], 2 * DATA[outcome.task])


def test_executor_has_a_name_and_runs_only_submitted_attempts(executor: MapExecutor) -> None:
    assert isinstance(executor, MapExecutor)
    assert executor.name
    assert executor.worker_spec is None or isinstance(executor.worker_spec, WorkerSpec)
    with closing(executor.open(payload())) as run:
        assert run.wait(0.0) == []
        run.submit([(4, 0), (1, 0)])
        for outcome in wait_for_outcomes(run, 1, 4).values():
            assert_right(outcome)
        run.submit([(0, 0)])
        assert_right(wait_for_outcomes(run, 0)[0])


def test_every_attempt_ends_once_according_to_its_fault(kind: Kind, executor: MapExecutor) -> None:
    # Each submitted attempt must have exactly one outcome, which matches its fault. An attempt may also be
    # reported as sent to a worker and as started, each at most once and before its outcome.
    faults = {task: Fault(name, 0.3) for task, name in enumerate(sorted(kind.faults), start=1)}
    attempts = [(task, 0) for task in range(N)] + [(0, 1), (1, 1), (0, 7), (3, 2)]
    events: list[Event] = []
    with closing(executor.open(payload(faults))) as run:
        run.submit(attempts[:8])
        run.submit(attempts[8:])
        deadline = run.now() + PATIENCE
        while len(ends(events)) < len(attempts):
            assert run.now() < deadline
            events += run.wait(0.5)
        events += run.wait(0.2)
    assert sorted(outcome[:2] for outcome in ends(events)) == sorted(attempts)
    for outcome in ends(events):
        assert_as_its_fault_says(outcome, faults.get(outcome.task) if outcome.attempt == 0 else None)
    start_events = [event for event in events if isinstance(event, AttemptStarted)]
    assert len(start_events) == len({(*event[:2], event.is_confirmed) for event in start_events})
    began = [event[:2] for event in start_events]
    assert set(began) <= set(attempts)
    order = [event[:2] for event in events]
    assert all(isinstance(events[order.index(key)], AttemptStarted) for key in began)


def assert_as_its_fault_says(outcome: Outcome, fault: Fault | None) -> None:
    if fault is None or fault.kind == "sleep":
        assert_right(outcome, outcome.attempt)
    elif fault.kind == "garbage":
        assert outcome.leaves[0].shape == DATA[outcome.task].shape
        assert not np.array_equal(outcome.leaves[0], 2 * DATA[outcome.task])
    else:
        assert outcome.failure is not None
        assert outcome.failure.kind == ("raised" if fault.kind == "raise" else "lost"), outcome


def test_hanging_attempt_is_started_retried_and_abandoned(executor: MapExecutor) -> None:
    run = executor.open(payload({0: Fault("sleep", NEVER)}))
    opened = run.now()
    run.submit([(0, 0), (1, 0)])
    events: list[Event] = []
    deadline = run.now() + PATIENCE
    while {
        (type(event), event.task) for event in events if event.task == 0 or isinstance(event, Outcome)
    } != {
        (AttemptStarted, 0),
        (Outcome, 1),
    }:
        assert run.now() < deadline
        events += run.wait(0.02)
    [outcome] = ends(events)
    assert_right(outcome)
    times = [event.started_at for event in events if isinstance(event, AttemptStarted) and event.task == 0]
    assert 1 <= len(times) <= 2
    assert opened - 0.1 <= times[0] <= times[-1] <= run.now() + 0.1  # file times are less precise
    run.submit([(0, 1)])
    assert_right(wait_for_outcomes(run, 0)[0], attempt=1)
    run.close()
    assert run.close() is None


def test_cancelled_attempts_end_once_and_free_their_workers(kind: Kind, executor: MapExecutor) -> None:
    asleep, others = [(task, 0) for task in range(3)], [(task, 0) for task in range(3, N)]
    with closing(executor.open(payload({task: Fault("sleep", NEVER) for task in range(3)}))) as run:
        run.submit(asleep)
        run.cancel(asleep)
        run.submit(others)
        count = N if kind.withdraws else len(others)
        outcomes = {outcome.task: outcome for outcome in first_ends(run, count, PATIENCE)}
        for task, _ in others:
            assert_right(outcomes[task])
        for task, _ in asleep if kind.withdraws else ():
            assert outcomes[task].failure is not None
            assert outcomes[task].failure.kind == "lost"
        run.cancel(asleep)  # Cancelling attempts that have ended has no effect.
        run.submit([(0, 1)])
        assert_right(wait_for_outcomes(run, 0)[0], attempt=1)


class BlocksWithOneMissing(UncodedBlocks):
    """Blocks whose second one cannot be made, because its task is no longer needed."""

    location = INLINE

    def component_leaves(self, component: int) -> list[Any]:
        if component == 1:
            raise CancelledError
        return super().component_leaves(component)


@pytest.mark.parametrize("label", ["pool", "threads", "processes"])
def test_task_whose_block_is_not_made_is_lost(label: str) -> None:
    blocks = BlocksWithOneMissing([[block] for block in DATA], ("array",))
    with EXECUTORS[label].choice() as choice:
        with closing(resolve_executor(choice).open(JobSpec(lambda block: 2 * block, blocks))) as run:
            run.submit([(1, 0), (0, 0), (2, 0)])
            outcomes = wait_for_outcomes(run, 0, 1, 2)
        assert_right(outcomes[0])
        assert_right(outcomes[2])
        assert outcomes[1].failure is not None


def test_wake_ends_a_current_or_later_wait(executor: MapExecutor) -> None:
    run = executor.open(payload({0: Fault("sleep", 10 * NEVER)}))
    run.submit([(0, 0)])
    run.wake()
    run.wake()
    events = run.wait(NEVER) + run.wait(0.0)
    waiting = threading.Thread(target=lambda: events.extend(run.wait(NEVER)))
    waiting.start()
    run.wake()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert not ends(events)
    run.close()
    run.wake()


def test_sessions_are_independent_of_each_other(executor: MapExecutor) -> None:
    executor.open(payload()).close()
    for faults in ({0: Fault("raise", attempts=9)}, {}):
        with closing(executor.open(payload(faults))) as run:
            run.submit([(0, 0)])
            [outcome] = wait_for_outcomes(run, 0).values()
            assert outcome.attempt == 0
            assert (outcome.failure is None) == (not faults)
            run.submit([(2, 0)])  # the session is closed while this attempt may be running


def test_results_are_stored_at_the_given_location(executor: MapExecutor, tmp_path: Path) -> None:
    output = OutputSpec(FolderLocation(str(tmp_path)), "results/y", max_segment_items=5)
    with closing(executor.open(payload(output_spec=output))) as run:
        run.submit([(0, 0), (3, 0)])
        for task, outcome in wait_for_outcomes(run, 0, 3).items():
            assert outcome.result_ref is not None
            assert outcome.result_ref.layout == ((("<f8", (ROWS, 2)),))
            assert [part.size for part in outcome.result_ref.segments] == [40, 40, 16]
            pieces = [read_file_segment(str(tmp_path), part) for part in outcome.result_ref.segments]
            assert b"".join(pieces) == (2 * DATA[task]).tobytes()
            # Results this small are also sent completely as samples.
            np.testing.assert_array_equal(outcome.leaves[0], 2 * DATA[task].reshape(-1))


def test_failure_has_the_exception_and_its_remote_traceback() -> None:
    class Mine(Exception):  # noqa: N818
        pass

    mine = Mine("a", 2)
    mine.more = [1, 2]  # type: ignore[attr-defined]
    for error in (KeyError("a"), mine, SystemExit(3)):
        assert to_failure(describe_error(error)).cause is error
        cause = to_failure(ErrorInfo(*to_plain_tuple(describe_error(error)))).cause
        assert cause is not None
        assert (type(cause), cause.args, vars(cause)) == (type(error), error.args, vars(error))
        failure_cause = to_failure(ErrorInfo("E", "text", "the trace", pickle.dumps(KeyError()))).cause
        assert "the trace" in str(failure_cause and failure_cause.__cause__)


@pytest.mark.parametrize("sent", [None, b"", b"no pickle", pickle.dumps(5), pickle.dumps(KeyError)[:-3]])
def test_unpicklable_exception_is_replaced_by_a_runtime_error(sent: bytes | None) -> None:
    cause = to_failure(ErrorInfo("KeyError", "'a'", "the trace", sent)).cause
    assert isinstance(cause, RuntimeError)
    assert str(cause) == "KeyError: 'a'"
    assert "the trace" in str(cause.__cause__)


def test_damaged_block_is_recognized_by_exception_class_not_name() -> None:
    for error, kind in (
        (DamagedError("gone"), "damaged"),
        (type("DamagedError", (Exception,), {})(), "raised"),
    ):
        assert (
            to_failure(describe_error(error)).kind
            == to_failure(ErrorInfo(*to_plain_tuple(describe_error(error)))).kind
            == kind
        )


def test_changed_reply_counts_as_a_lost_worker() -> None:
    encryption = Encryption.create(bytes(range(32)))
    structure, layout, data = pack_tree(np.arange(3.0))
    header = pickle_value(to_plain_tuple(TaskReply(None, 2.0, structure, layout)))
    sent = encrypt_reply(Message(MessageKind.TASK_REPLY, (0, 1, 0), header, data), tuple(encryption))
    plain_payload, payload = (JobSpec(np.negative, BLOCKS, encryption=key) for key in (None, encryption))
    outcomes = [
        plain_payload.decode_reply(1, 0, header, data),
        payload.decode_reply(1, 0, sent.header, sent.data),
        payload.decode_reply(1, 0, b"no pickle", sent.data),
    ]
    for outcome in outcomes:
        np.testing.assert_array_equal(outcome.leaves[0], np.arange(3.0))
        assert outcome.seconds == 2.0
    changed = "is not what was encrypted: it has been changed or replaced"
    few = "cannot be read: ValueError: a result has 9 bytes, not 24 or more"
    spoilt = "cannot be read: UnpicklingError: invalid load key, 'n'."
    for of, task, attempt, arrived, message in (
        (payload, 2, 0, (b"", sent.data), changed),
        (payload, 1, 1, (b"", sent.data), changed),
        (payload, 1, 0, (header, data), changed),
        (plain_payload, 1, 0, (header, data[:9]), few),
        (plain_payload, 1, 0, (b"no pickle", data), spoilt),
    ):
        outcome = of.decode_reply(task, attempt, *arrived)
        assert outcome[:5] == (
            task,
            attempt,
            [],
            (),
            Failure("lost", "WorkerLost", f"its reply {message}"),
        )


# --- storage that workers can use -------------------------------------------------------------------

REMOTE, HERE = Reach("aws_lambda", "memory"), Reach("", "memory")
REFUSED: list[tuple[Location, Reach, str]] = [
    (
        DriverLocation("memory of this process"),
        REMOTE,
        "the array is stored in memory of this process, which workers cannot reach: leave executor out",
    ),
    (
        FolderLocation("/data"),
        REMOTE,
        "the array is stored in folder '/data' of this machine, which workers on aws_lambda cannot reach: "
        "use storage= of that backend",
    ),
    (
        BucketLocation("b", "aws_s3"),
        HERE,
        "the array is stored in aws_s3 bucket 'b', but this executor uses memory: use the Lithops "
        "configuration of that bucket for the array and the executor",
    ),
    (
        BucketLocation("b", "aws_s3"),
        Reach(),
        "the array is stored in aws_s3 bucket 'b', which needs its Lithops configuration: pass it "
        "as executor=",
    ),
]


@pytest.mark.parametrize(("location", "reach", "message"), REFUSED)
def test_blocks_that_workers_cannot_read_are_refused(location: Location, reach: Reach, message: str) -> None:
    with pytest.raises(ExecutorError, match=f"^{re.escape(message)}$"):
        reach.check_job_storage_access(job_reading(location))


@pytest.mark.parametrize(
    ("location", "reach"),
    [
        (None, REMOTE),
        (INLINE, REMOTE),
        (ClusterLocation(backend="dask"), Reach()),
        (BucketLocation("b", "memory"), REMOTE),
        (FolderLocation("/data"), HERE),
        (DriverLocation("memory"), REMOTE._replace(can_ask_driver=True)),
    ],
)
def test_blocks_that_workers_can_read_are_accepted(location: Location | None, reach: Reach) -> None:
    reach.check_job_storage_access(job_reading(location))


@pytest.mark.parametrize(
    ("location", "reach", "message"),
    [
        (
            DriverLocation("memory"),
            REMOTE._replace(can_ask_driver=True),
            "memory, which workers cannot reach",
        ),
        (FolderLocation("/data"), REMOTE, "folder '/data' of this machine, which workers on aws_lambda"),
    ],
)
def test_results_are_stored_only_where_workers_can_write(
    location: Location, reach: Reach, message: str
) -> None:
    job = replace(job_reading(None), output_spec=OutputSpec(location, "y", 5))
    with pytest.raises(ExecutorError, match=f"the results cannot be stored in {message}"):
        reach.check_job_storage_access(job)
    HERE.check_job_storage_access(replace(job, output_spec=OutputSpec(FolderLocation("/data"), "y", 5)))
