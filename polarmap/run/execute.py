"""One map on an executor: opened, scheduled, and its outcomes made into results and a report."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from polarmap.blocks.coded import CodedData
from polarmap.clouds import limits
from polarmap.code.linear import LinearCode
from polarmap.code.uncoded import Uncoded
from polarmap.executors.base import Coded, Outcome, Payload
from polarmap.report import Report
from polarmap.run.codeword import Codeword
from polarmap.run.first_results import FirstResults
from polarmap.run.lateness import ParityRule, backup_lateness
from polarmap.run.loop import Policy, schedule
from polarmap.run.need import Need, Stopwatch
from polarmap.run.options import MapOptions
from polarmap.run.policies import Backups, OnDemand
from polarmap.run.running_map import Observers, RunningMap
from polarmap.run.tasks import TaskTable
from polarmap.worker.messages import OutputSpec
from polarmap.worker.pytree import layout_bytes

Function = Callable[[Any], Any]


N = TypeVar("N", bound=Need)


def run_map(
    running: RunningMap,
    payload: Payload,
    policy: Policy,
    options: MapOptions,
    need_of: Callable[[TaskTable, Stopwatch], N],
    observers: Observers,
) -> tuple[N, Report]:
    """Open a run, schedule its tasks until the map is over, and close it, while observers look on.

    Returns what the map made of its tasks, and its report.
    """
    try:
        for one in observers:
            one.began(running)
        run = running.executor.open(payload.with_key(options.key))
        try:
            tasks = TaskTable(running.blank.n, policy.late)
            need = need_of(tasks, Stopwatch(run.now, options.timeout))
            running.run, running.need = run, need
            for one in observers:
                one.looked(0)
            for outcomes in schedule(run, policy, options.retries, need, observers):
                for outcome in outcomes:
                    need.add(outcome)
                    for one in observers:
                        one.ended(outcome, need.watch.elapsed)
                for one in observers:
                    one.looked(need.outcomes)
                if need.step():
                    break
            ended = need.watch.elapsed
        finally:
            stay = run.close()
        report = running.final_report(need.told(ended), stay)
    except BaseException as error:
        for one in reversed(observers):
            one.finished(error)
        raise
    else:
        for one in reversed(observers):
            one.finished(report)
        return need, report
    finally:
        running.run = running.need = None


def run_coded(
    running: RunningMap,
    f: Function,
    coded: CodedData,
    options: MapOptions,
    observers: Observers,
    driver_f: Function | None = None,
    output: OutputSpec | None = None,
) -> tuple[Codeword, Report]:
    """The results of f on the data blocks as soon as they are determined, and how they came about.

    `driver_f`: what f is on the driver, where that differs from what workers send of it; `output`:
    where results stay.
    """
    _check_limits(running, coded, coded.blocks.rows)
    f, driver_f = coded.on_blocks(f), coded.on_blocks(driver_f or f)
    parity = range(len(coded.code.systematic) or coded.n, coded.n)
    payload = Payload(f, coded, output=output, low_priority=parity)
    need_of = partial(Codeword, f, driver_f, coded, options)
    return run_map(running, payload, _policy(coded.code, options), options, need_of, observers)


def run_uncoded(
    running: RunningMap,
    f: Function,
    blocks: Coded,
    options: MapOptions,
    observers: Observers,
    note: Callable[[Outcome], None],
    who: Callable[[int], str] = "task {}".format,
    *,
    backups: int = 0,
    output: OutputSpec | None = None,
    keeps_failures: bool = False,
) -> Report:
    """Let `note` be told of the first result of f on every block, whatever it is; how they came about.

    `who` is how the caller calls a task; `backups`: that a late one may get; with `keeps_failures` `note` is
    told of failures, too, that count in the place of results.
    """
    _check_limits(running, blocks, None)
    policy = _policy(Uncoded(blocks.n, backups), options)
    payload = Payload(f, blocks, output=output)
    need_of = partial(FirstResults, note, keeps_failures, who)
    return run_map(running, payload, policy, options, need_of, observers)[1]


def _policy(code: LinearCode, options: MapOptions) -> Policy:
    """Which tasks of a map start at once, and which later."""
    if isinstance(code, Uncoded) and code.backups:
        return Backups(code.n, backup_lateness(code.n), code.backups)
    if options.schedule != "on_demand":
        return Policy(code.n)
    rule = ParityRule(code.recovery_threshold, options.runtimes)
    return OnDemand(code.n, rule, options.upfront, counts_decide=code.is_mds)


def _check_limits(running: RunningMap, blocks: Coded, rows: int | None) -> None:
    """LimitError for what cannot work where the executor runs it."""
    worker = running.executor.worker
    if worker is not None:
        largest = max(layout_bytes(blocks.layout(index)) for index in range(blocks.n))
        limits.check(worker, limits.MapSize(blocks.n, running.blank.k, largest, rows))
