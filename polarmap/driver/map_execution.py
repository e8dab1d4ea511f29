"""Execute one job, which is one run of a map on an executor.

This module opens a session with the workers, schedules the tasks, emits events and builds the report.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from polarmap.clouds import limits
from polarmap.clouds.prices import PersistentUsage
from polarmap.codes.linear_code import LinearCode
from polarmap.driver.collector import Collector, JobTimer
from polarmap.driver.events import (
    AttemptEnded,
    BlockReady,
    EstimateReady,
    EventStream,
    JobContext,
    JobFinished,
    JobPolled,
    JobStarted,
)
from polarmap.driver.options import MapOptions
from polarmap.driver.policies import RetryRule, SchedulingPolicy
from polarmap.driver.results import (
    CodedResult,
    LazyReport,
    build_final_report,
    build_interim_report,
    warn_if_machine_overloaded,
)
from polarmap.driver.scheduler import schedule_tasks
from polarmap.driver.task_table import TaskTable
from polarmap.executors.encryption_keys import encrypt_job
from polarmap.executors.interface import (
    JobSpec,
    Outcome,
    Session,
    TaskBlocks,
)
from polarmap.executors.resolved import ResolvedExecutor
from polarmap.report import Report
from polarmap.worker.environment import count_available_cores
from polarmap.worker.pytree import count_layout_bytes

CollectorT = TypeVar("CollectorT", bound=Collector)

_map_ids = itertools.count(1)


class MapExecution:
    """Runs one job (one run of a map) on an executor and builds its report.

    Any thread may request the report so far.

    Parameters
    ----------
    executor : ResolvedExecutor
        Where the tasks run.

    Attributes
    ----------
    map_id : int
        The number of the map in this process, starting at 1. Logs and live views show it.
    """

    def __init__(self, executor: ResolvedExecutor) -> None:
        self._started_at, self.executor = time.monotonic(), executor
        self.map_id = next(_map_ids)
        self._report_fields: dict[str, Any] = {}  # report fields that are known before the job starts
        self._collector: Collector | None = None  # set only while the job is running

    @property
    def job_name(self) -> str:
        """The name of the map for live views, such as "map 3"."""
        return f"map {self.map_id}"

    def set_code(self, code: LinearCode, **report_fields: Any) -> None:
        """Set the code of the job, and further fields of its report that are known before it starts."""
        n_needed = code.recovery_threshold
        self._report_fields = {
            "n": code.n,
            "k": code.k,
            "code": code.name,
            "needed": n_needed,
            **report_fields,
        }

    def check_backend_limits(self, blocks: TaskBlocks, n_rows: int | None = None) -> None:
        """Raise LimitError if these blocks exceed a limit of the executor's platform, such as AWS Lambda.

        Parameters
        ----------
        blocks : TaskBlocks
            The input blocks of the tasks.
        n_rows : int, optional
            The number of rows per block, if known.
        """
        worker_spec = self.executor.worker_spec
        if worker_spec is not None:
            max_block_bytes = max(count_layout_bytes(blocks.block_layout(index)) for index in range(blocks.n))
            map_size = limits.MapSize(blocks.n, self._report_fields["k"], max_block_bytes, n_rows)
            limits.check_map_fits(worker_spec, map_size)

    def execute(
        self,
        job_spec: JobSpec,
        policy: SchedulingPolicy,
        options: MapOptions,
        make_collector: Callable[[TaskTable, JobTimer], CollectorT],
        context: JobContext,
    ) -> tuple[CollectorT, LazyReport]:
        """Run the job until its collector has enough results.

        Parameters
        ----------
        job_spec : JobSpec
            The function and the input blocks of the tasks.
        policy : SchedulingPolicy
            Decides when each task starts.
        options : MapOptions
            Only the timeout, the retries and the encryption key are used.
        make_collector : callable
            Called with the job's task table and timer once the session is open.
        context : JobContext
            The observers of the job, and the means to cancel it.

        Returns
        -------
        collector : Collector
            The finished collector, which holds the results.
        report : LazyReport
            The report of the job.
        """
        events, cancellation = context.events, context.cancellation
        key = job_spec.blocks.encryption_key if options.key is None else options.key
        try:
            if events is not None:
                function_name = _get_function_name(job_spec.user_function or job_spec.f)
                events.emit(JobStarted(self.current_report, function_name, self.map_id))
            if cancellation is not None:
                cancellation.raise_if_cancelled()
            if key is not None:
                job_spec = encrypt_job(job_spec, key)
            collector, report = self._run_session(job_spec, policy, options, make_collector, context)
            if events is not None and events.has_observer_of(BlockReady):
                for index, get_result in collector.iterate_accepted_results():
                    events.emit(BlockReady(index, get_result, is_final=True))
        except BaseException as error:
            if events is not None:
                interim_report = self.current_report()
                n_results = 0 if self._collector is None else self._collector.n_results
                events.emit_final_event(JobFinished(lambda: interim_report, error, n_results))
            raise
        else:
            if events is not None:
                events.emit_final_event(JobFinished(lambda: report.report, n_results=collector.n_results))
            return collector, report
        finally:
            self._collector = None

    def _run_session(
        self,
        job_spec: JobSpec,
        policy: SchedulingPolicy,
        options: MapOptions,
        make_collector: Callable[[TaskTable, JobTimer], CollectorT],
        context: JobContext,
    ) -> tuple[CollectorT, LazyReport]:
        """Run the tasks in a session with the workers until the collector has finished."""
        task_table, cancellation = TaskTable(job_spec.blocks.n, policy.late_tracker), context.cancellation
        session = self.executor.open(job_spec)
        try:
            if cancellation is not None:
                cancellation.set_wake_function(session.wake)
            timer = JobTimer(session.now, options.timeout)
            self._collector = collector = make_collector(task_table, timer)
            retry_rule = RetryRule(options.retries, options.retry_delay)
            self._collect_results(session, policy, retry_rule, collector, context)
            ended_at = timer.elapsed_seconds
            for task, attempt, started_at, is_confirmed, host in session.cancel_queued():
                task_table.record_start(task, attempt, started_at - timer.started_at, is_confirmed, host)
        finally:
            if cancellation is not None:
                cancellation.set_wake_function(None)
            usage = session.close()
            task_table.finalize_attempt_states()
        return collector, self._make_report(collector, collector.build_report_fields(ended_at), usage)

    def _collect_results(
        self,
        session: Session,
        policy: SchedulingPolicy,
        retry_rule: RetryRule,
        collector: Collector,
        context: JobContext,
    ) -> None:
        """Run tasks and pass their outcomes to the collector until it has finished."""
        events, cancellation = context.events, context.cancellation
        if cancellation is not None:
            cancellation.raise_if_cancelled()
        has_result_observer = events is not None and events.has_observer_of(AttemptEnded, BlockReady)
        has_poll_observer = events is not None and events.has_observer_of(JobPolled, EstimateReady)
        if events is not None and has_poll_observer:
            self._emit_poll(events, collector)
        for outcomes in schedule_tasks(session, policy, retry_rule, collector, events):
            for outcome in outcomes:
                collector.add_outcome(outcome)
                if events is not None and has_result_observer:
                    _emit_attempt_ended(events, collector, outcome)
            if cancellation is not None:
                cancellation.raise_if_cancelled()
            if events is not None and has_poll_observer:
                self._emit_poll(events, collector)
            if collector.try_finish():
                return

    def _emit_poll(self, events: EventStream, collector: Collector) -> None:
        """Emit the events that follow each poll: `JobPolled` and `EstimateReady`."""

        def build_estimate() -> CodedResult[Any] | None:
            return collector.build_interim_estimate(self.current_report())

        events.emit(JobPolled(collector.n_results))
        events.emit(EstimateReady(collector.n_results, build_estimate))

    def _make_report(
        self, collector: Collector, collector_fields: dict[str, Any], usage: PersistentUsage | None
    ) -> LazyReport:
        """Return the report of the job.

        Exception objects are dropped first, because their tracebacks keep the caller's arrays alive.
        """
        collector.task_table.drop_exception_objects()
        report_fields = self._report_fields | {
            "executor": self.executor.name,
            "seconds": collector.timer.seconds_since(self._started_at),
        }
        if self.executor.is_local:
            report_fields["n_cores"] = count_available_cores()
        if collector.task_table.has_known_hosts:  # The workers run on other machines.
            report_fields["workers_by_host"] = self.executor.workers_by_host
            n, k = self._report_fields["n"], self._report_fields["k"]
            warn_if_machine_overloaded(collector.task_table, n, k)
        collector.task_table.mark_results_unneeded(collector.unneeded_tasks)
        report_arguments = (
            report_fields | collector_fields,
            collector.make_report_table_builder(),
            self.executor.worker_spec,
            usage,
        )
        return LazyReport(partial(build_final_report, *report_arguments))

    def current_report(self) -> Report:
        """Return the report so far. Before and after the job, its tasks are reported as not started."""
        collector, report_fields = self._collector, self._report_fields | {"executor": self.executor.name}
        if collector is None:
            return build_interim_report(report_fields, TaskTable(report_fields["n"]))
        # The billed time of persistent workers is known only at the end of a map.
        is_billed_by_task = not self.executor.has_persistent_workers
        return build_interim_report(
            report_fields | {"seconds": collector.timer.seconds_since(self._started_at)},
            collector.make_report_table_builder()(),
            self.executor.worker_spec if is_billed_by_task else None,
        )


def _get_function_name(f: Callable[..., Any]) -> str:
    """Return the name of a function, or of the class of a callable object."""
    while isinstance(f, partial):
        f = f.func
    return str(getattr(f, "__qualname__", type(f).__name__))


def _emit_attempt_ended(events: EventStream, collector: Collector, outcome: Outcome) -> None:
    """Emit `AttemptEnded`, and also `BlockReady` if the attempt returned the result of a data block."""
    events.emit(AttemptEnded(outcome, collector.timer.elapsed_seconds))
    get_result = collector.make_unchecked_result_getter(outcome.task)
    if get_result is not None:
        events.emit(BlockReady(outcome.task, get_result, is_final=False))
