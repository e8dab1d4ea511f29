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
from polarmap.run.loop import Need, Policy, Stopwatch, schedule
from polarmap.run.options import MapOptions
from polarmap.run.reports import LazyReport, final_report, report_so_far, warn_of_machine
from polarmap.run.tasks import TaskTable
from polarmap.worker.environment import count_available_cores
from polarmap.worker.pytree import count_layout_bytes

N = TypeVar("N", bound=Need)


class RunningMap:
    """A map on an executor, from when it is called. Any thread may wake it, or ask for its report.

    Parameters
    ----------
    executor : what the caller of the map chose.

    Attributes
    ----------
    run : Run or None
        While it is open. When it is over nothing of it is kept, exceptions of its tasks neither.
    need : Need or None
        What is known of its results then.
    """

    def __init__(self, executor: Any) -> None:
        self._began = time.monotonic()
        self.executor: MapExecutor = resolve_executor(executor)
        self._facts: dict[str, Any] = {}  # fields of its report that are known before it begins
        self.run: Session | None = None
        self.need: Need | None = None

    def expect(self, code: LinearCode, **known: Any) -> None:
        """Be of as many tasks as a code has."""
        needed = code.recovery_threshold
        self._facts = {"n": code.n, "k": code.k, "code": code.name, "needed": needed, **known}

    def check_limits(self, blocks: TaskBlocks, rows: int | None = None) -> None:
        """LimitError for blocks, of so many rows, that cannot work where the executor runs them."""
        worker = self.executor.worker_spec
        if worker is not None:
            largest = max(count_layout_bytes(blocks.block_layout(index)) for index in range(blocks.n))
            limits.check_map_fits(worker, limits.MapSize(blocks.n, self._facts["k"], largest, rows))

    def execute(
        self,
        payload: JobSpec,
        policy: Policy,
        options: MapOptions,
        need_of: Callable[[TaskTable, Stopwatch], N],
        observers: Observers,
    ) -> tuple[N, LazyReport]:
        """Open a run, schedule its tasks until the map is over, and close it, while observers look on.

        Returns what the map made of its tasks, and its report.
        """

        def tell_started(indices: Sequence[int], elapsed: float) -> None:
            if not policy.first:  # it says what starts from the first moment on
                indices = [index for index in indices if need.tasks[index].attempts > 1]
            for one in observers if indices else ():
                one.started(indices, elapsed)

        key = payload.blocks.encryption_key if options.key is None else options.key
        tasks = TaskTable(payload.blocks.n, policy.late)
        try:
            for one in observers:
                one.began(self)
            if key is not None:
                payload = encrypt_job(payload, key)
            self.run = run = self.executor.open(payload)
            try:
                self.need = need = need_of(tasks, Stopwatch(run.now, options.timeout))
                for one in observers:
                    one.looked(0)
                tick = min((one.tick for one in observers), default=inf)
                for outcomes in schedule(run, policy, options.retries, need, tick, tell_started):
                    for outcome in outcomes:
                        need.add(outcome)
                        for one in observers:
                            one.ended(outcome, need.watch.elapsed)
                    for one in observers:
                        one.looked(need.outcomes)
                    if need.step():
                        break
                ended = need.watch.elapsed
                for task, attempt, when, is_certain, host in run.cancel_queued():
                    tasks.note_began(task, attempt, when - need.watch.began, is_certain, host)
            finally:
                stay = run.close()
                tasks.end()
            report = self._ended(need, need.told(ended), stay)
            final = report.made if observers else None
        except BaseException as error:
            for one in reversed(observers):
                one.finished(error)
            raise
        else:
            for one in reversed(observers):
                one.finished(final)
            return need, report
        finally:
            self.run = self.need = None

    def _ended(self, need: Need, told: dict[str, Any], stay: PersistentUsage | None) -> LazyReport:
        """The report of the map: of words and numbers, as exceptions hold the caller's arrays."""
        need.tasks.forget_exceptions()
        facts = self._facts | {"executor": self.executor.name, "seconds": need.watch.since(self._began)}
        if is_local_executor(self.executor):
            facts["cores"] = count_available_cores()
        if need.tasks.has_hosts:  # of workers elsewhere
            facts["workers_on"] = count_workers_by_host(self.executor)
            warn_of_machine(need.tasks, self._facts["n"], self._facts["k"])
        need.tasks.note_surplus(need.surplus)
        known = facts | told, need.as_told(), self.executor.worker_spec, stay
        return LazyReport(partial(final_report, *known))

    def wake(self) -> None:
        """Let it look up at once."""
        run = self.run
        if run is not None:
            run.wake()

    def report(self) -> Report:
        """What has become of its tasks so far; any thread may ask."""
        need, facts = self.need, self._facts | {"executor": self.executor.name}
        if need is None:
            return report_so_far(facts, TaskTable(facts["n"]))
        return report_so_far(facts | {"seconds": need.watch.since(self._began)}, need.as_told()())


class Observer:
    """Is told what happens to a map, on the thread that runs it. This one takes no notice.

    Attributes
    ----------
    tick : float
        Seconds after which it wants to look, whatever happens.
    """

    tick = inf

    def began(self, running: RunningMap) -> None:
        """A map is about to be opened."""

    def started(self, indices: Collection[int], elapsed: float) -> None:
        """Tasks were started after the first ones: parity on demand, backups, failed ones again."""

    def ended(self, outcome: Outcome, elapsed: float) -> None:
        """An attempt has ended."""

    def arrived(self, index: int, result: Callable[[], Any]) -> None:
        """The result of an item is here, before those of the others."""

    def looked(self, arrived: int) -> None:
        """The map has looked up, for the first time when it is open: so many results are here."""

    def counted(self, done: int, total: int) -> None:
        """So many of so many stripes are done, of data that is encoded here."""

    def finished(self, end: Report | BaseException | None) -> None:
        """The map has returned, or raised, perhaps before it began; None: stripes were counted."""


Observers = tuple[Observer, ...]


@contextmanager
def counting(observers: Observers, total: int) -> Iterator[Callable[[int], None]]:
    """A function that is told how many of so many stripes are done."""

    def show(done: int) -> None:
        for one in observers:
            one.counted(done, total)

    try:
        show(0)
        yield show
    finally:
        for one in observers:
            one.finished(None)
