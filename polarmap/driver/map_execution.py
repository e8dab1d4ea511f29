"""A map that runs, and those who are told what happens to it. A plain map has none."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Any, TypeVar

from polarmap.clouds import limits
from polarmap.clouds.prices import PersistentUsage
from polarmap.codes.linear_code import LinearCode
from polarmap.driver.collector import Collector, JobTimer
from polarmap.driver.options import MapOptions
from polarmap.driver.policies import RetryRule, SchedulingPolicy
from polarmap.driver.results import (
    LazyReport,
    build_final_report,
    build_interim_report,
    warn_if_machine_overloaded,
)
from polarmap.driver.scheduler import schedule_tasks
from polarmap.driver.task_table import TaskTable
from polarmap.executors import resolve_executor
from polarmap.executors.encryption_keys import encrypt_job
from polarmap.executors.interface import (
    JobSpec,
    MapExecutor,
    Outcome,
    Session,
    TaskBlocks,
    count_workers_by_host,
    is_local_executor,
)
from polarmap.report import Report
from polarmap.worker.environment import count_available_cores
from polarmap.worker.pytree import count_layout_bytes

CollectorT = TypeVar("CollectorT", bound=Collector)


class MapExecution:
    """A map on an executor, from when it is called. Any thread may wake it, or ask for its report.

    Parameters
    ----------
    executor_spec : what the caller of the map chose.

    Attributes
    ----------
    session : Session or None
        While it is open. When it is over nothing of it is kept, exceptions of its tasks neither.
    collector : Collector or None
        What is known of its results then.
    """

    def __init__(self, executor_spec: Any) -> None:
        self._started_at = time.monotonic()
        self.executor: MapExecutor = resolve_executor(executor_spec)
        self._report_fields: dict[str, Any] = {}  # fields of its report that are known before it begins
        self.session: Session | None = None
        self.collector: Collector | None = None

    def set_code(self, code: LinearCode, **report_fields: Any) -> None:
        """Be of as many tasks as a code has."""
        n_needed = code.recovery_threshold
        self._report_fields = {
            "n": code.n,
            "k": code.k,
            "code": code.name,
            "needed": n_needed,
            **report_fields,
        }

    def check_backend_limits(self, blocks: TaskBlocks, n_rows: int | None = None) -> None:
        """LimitError for blocks, of so many rows, that cannot work where the executor runs them."""
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
        observers: Observers,
    ) -> tuple[CollectorT, LazyReport]:
        """Open a run, schedule its tasks until the map is over, and close it, while observers look on.

        Returns what the map made of its tasks, and its report.
        """

        def notify_started(task_indices: Sequence[int], elapsed_seconds: float) -> None:
            if not policy.initial_tasks:  # it says what starts from the first moment on
                table = collector.task_table
                task_indices = [task for task in task_indices if table[task].n_attempts > 1]
            for observer in observers if task_indices else ():
                observer.on_tasks_started(task_indices, elapsed_seconds)

        key = job_spec.blocks.encryption_key if options.key is None else options.key
        retry_rule = RetryRule(options.retries, options.retry_delay)
        task_table = TaskTable(job_spec.blocks.n, policy.late_tracker)
        try:
            for observer in observers:
                observer.on_start(self)
            if key is not None:
                job_spec = encrypt_job(job_spec, key)
            self.session = session = self.executor.open(job_spec)
            try:
                timer = JobTimer(session.now, options.timeout)
                self.collector = collector = make_collector(task_table, timer)
                for observer in observers:
                    observer.on_poll(0)
                poll_interval = min((observer.poll_interval for observer in observers), default=inf)
                for outcomes in schedule_tasks(
                    session, policy, retry_rule, collector, poll_interval, notify_started
                ):
                    for outcome in outcomes:
                        collector.add_outcome(outcome)
                        for observer in observers:
                            observer.on_attempt_end(outcome, collector.timer.elapsed_seconds)
                    for observer in observers:
                        observer.on_poll(collector.n_results)
                    if collector.try_finish():
                        break
                ended_at = collector.timer.elapsed_seconds
                for task, attempt, started_at, is_confirmed, host in session.cancel_queued():
                    task_table.record_start(
                        task, attempt, started_at - collector.timer.started_at, is_confirmed, host
                    )
            finally:
                usage = session.close()
                task_table.finalize_attempt_states()
            report = self._make_report(collector, collector.build_report_fields(ended_at), usage)
            final_report = report.report if observers else None
        except BaseException as error:
            for observer in reversed(observers):
                observer.on_finish(error)
            raise
        else:
            for observer in reversed(observers):
                observer.on_finish(final_report)
            return collector, report
        finally:
            self.session = self.collector = None

    def _make_report(
        self, collector: Collector, collector_fields: dict[str, Any], usage: PersistentUsage | None
    ) -> LazyReport:
        """The report of the map: of words and numbers, as exceptions hold the caller's arrays."""
        collector.task_table.drop_exception_objects()
        report_fields = self._report_fields | {
            "executor": self.executor.name,
            "seconds": collector.timer.seconds_since(self._started_at),
        }
        if is_local_executor(self.executor):
            report_fields["n_cores"] = count_available_cores()
        if collector.task_table.has_known_hosts:  # of workers elsewhere
            report_fields["workers_by_host"] = count_workers_by_host(self.executor)
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

    def wake(self) -> None:
        """Let it look up at once."""
        session = self.session
        if session is not None:
            session.wake()

    def current_report(self) -> Report:
        """What has become of its tasks so far; any thread may ask."""
        collector, report_fields = self.collector, self._report_fields | {"executor": self.executor.name}
        if collector is None:
            return build_interim_report(report_fields, TaskTable(report_fields["n"]))
        return build_interim_report(
            report_fields | {"seconds": collector.timer.seconds_since(self._started_at)},
            collector.make_report_table_builder()(),
        )


class Observer:
    """Is told what happens to a map, on the thread that runs it. This one takes no notice.

    Attributes
    ----------
    poll_interval : float
        Seconds after which it wants to look, whatever happens.
    """

    poll_interval = inf

    def on_start(self, execution: MapExecution) -> None:
        """A map is about to be opened."""

    def on_tasks_started(self, task_indices: Collection[int], elapsed_seconds: float) -> None:
        """Tasks were started after the first ones: parity on demand, backups, failed ones again."""

    def on_attempt_end(self, outcome: Outcome, elapsed_seconds: float) -> None:
        """An attempt has ended."""

    def on_item_result(self, item_index: int, get_result: Callable[[], Any]) -> None:
        """The result of an item is here, before those of the others."""

    def on_poll(self, n_arrived: int) -> None:
        """The map has looked up, for the first time when it is open: so many results are here."""

    def on_stripes_done(self, n_done: int, n_stripes: int) -> None:
        """So many of so many stripes are done, of data that is encoded here."""

    def on_finish(self, report_or_error: Report | BaseException | None) -> None:
        """The map has returned, or raised, perhaps before it began; None: stripes were counted."""


Observers = tuple[Observer, ...]


@contextmanager
def report_stripe_progress(observers: Observers, n_stripes: int) -> Iterator[Callable[[int], None]]:
    """A function that is told how many of so many stripes are done."""

    def notify(n_done: int) -> None:
        for observer in observers:
            observer.on_stripes_done(n_done, n_stripes)

    try:
        notify(0)
        yield notify
    finally:
        for observer in observers:
            observer.on_finish(None)
