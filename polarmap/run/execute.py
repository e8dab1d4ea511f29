"""One map on an executor: checked, opened, scheduled, and its outcomes made into results and a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from polarmap.blocks.code_choice import CodeOptions, encoded
from polarmap.blocks.coded import CodedData
from polarmap.blocks.equal import without_padding
from polarmap.blocks.sparse import SparseCodedBlocks
from polarmap.clouds import limits
from polarmap.clouds.limits import Worker
from polarmap.clouds.prices import Cost, Stay, cost, cost_of_stay
from polarmap.code.linear import LinearCode
from polarmap.code.polar import PolarCode
from polarmap.code.uncoded import Uncoded
from polarmap.errors import CodeError
from polarmap.executors import executor_of
from polarmap.executors.base import Coded, MapExecutor, Outcome, Payload, key_of, layout_bytes
from polarmap.executors.faulty import FaultyExecutor
from polarmap.report import Report, TaskReport
from polarmap.run.codeword import Codeword
from polarmap.run.first_results import FirstResults
from polarmap.run.lateness import ParityRule, backup_lateness
from polarmap.run.loop import Policy, Upfront, schedule
from polarmap.run.need import Need, Stopwatch
from polarmap.run.options import MapOptions
from polarmap.run.policies import Backups, OnDemand, ParityAfter
from polarmap.run.prepared_map import PreparedMap
from polarmap.run.results import CodedResult
from polarmap.run.running_map import Observers, RunningMap, blank_report, task_reports
from polarmap.run.tasks import TaskTable
from polarmap.worker.encryption import Encryption
from polarmap.worker.liveness import LIVENESS_SECONDS
from polarmap.worker.pytree import unflatten
from polarmap.worker.stored_output import OutputSpec

Function = Callable[[Any], Any]


class Launch:
    """The executor that the caller of a map chose, and when the call began, on `time.monotonic`."""

    def __init__(self, executor: Any) -> None:
        self.began = time.monotonic()
        self.executor: MapExecutor = executor_of(executor)

    def blank(self, code: LinearCode, **known: Any) -> Report:
        """The report of a map before anything of it has happened."""
        name = self.executor.name
        return blank_report(code.n, code.k, code.recovery_threshold, code.name, name, **known)


N = TypeVar("N", bound=Need)


def run_map(
    launch: Launch,
    payload: Payload,
    policy: Policy,
    options: MapOptions,
    need_of: Callable[[TaskTable, Stopwatch], N],
    blank: Report,
    observers: Observers,
) -> tuple[N, Report]:
    """Open a run, schedule its tasks until the map is over, and close it, while observers look on.

    Returns what the map made of its tasks, and its report.
    """
    tasks = TaskTable(blank.n)
    running = RunningMap(blank, tasks)
    try:
        for one in observers:
            one.began(running)
        run = launch.executor.open(payload)
        try:
            began = min(launch.began, run.now())  # a virtual clock begins when the run is opened
            watch = Stopwatch(run.now, options.timeout, options.deadline)
            need = need_of(tasks, watch)
            running.opened(run, began, need)
            for one in observers:
                one.opened()
            for outcomes in schedule(run, policy, options.retries, need, observers):
                for outcome in outcomes:
                    need.add(outcome)
                    for one in observers:
                        one.ended(outcome, watch.elapsed)
                for one in observers:
                    one.looked(len(need.received))
                if need.step():
                    break
            ended = watch.elapsed
        finally:
            stay = run.close()
        reports, seconds = task_reports(tasks, need.arrived, need.surplus), run.now() - began
        paid = cost_of(launch.executor.worker, reports, seconds, stay)
        told = need.told(ended)
        name = launch.executor.name  # with the channel of workers that have called meanwhile
        report = replace(
            blank, executor=name, tasks=reports, seconds=seconds, cost=paid, is_final=True, **told
        )
    except BaseException as error:
        for one in reversed(observers):
            one.finished(error)
        raise
    for one in reversed(observers):
        one.finished(report)
    return need, report


def run_coded(
    launch: Launch,
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
    _check_limits(launch.executor.worker, coded, coded.blocks.k, coded.blocks.rows)
    driver_f = driver_f or f
    if isinstance(coded, SparseCodedBlocks):
        f, driver_f = coded.on_blocks(f), coded.on_blocks(driver_f)
    parity = range(len(coded.code.systematic) or coded.n, coded.n)
    encryption = encryption_of(coded, options.key)
    payload = Payload(f, coded, output=output, low_priority=parity, encryption=encryption)
    need_of = partial(Codeword, f, driver_f, coded, options)
    blank = blank_of(launch, coded, options)
    return run_map(launch, payload, _policy(coded, options), options, need_of, blank, observers)


def blank_of(launch: Launch, coded: CodedData, options: MapOptions) -> Report:
    """The report of a coded map before anything of it has happened."""
    return launch.blank(
        coded.code,
        padding=coded.blocks.padding,
        code_reason=coded.code_reason,
        schedule=options.schedule_name,
    )


def run_uncoded(
    launch: Launch,
    f: Function,
    blocks: Coded,
    options: MapOptions,
    observers: Observers,
    backups: int = 0,
    output: OutputSpec | None = None,
    note: Callable[[Outcome], None] | None = None,
    keeps_failures: bool = False,
    who: Callable[[int], str] = "task {}".format,
) -> tuple[list[Outcome], Report]:
    """The first result of f on every block, whatever it is, and how they came about.

    `backups`: that a late task may get; `note` is told of every first result as it comes, and with
    `keeps_failures` of the failures that count in the place of results; `who` is how the caller calls a task.
    """
    _check_limits(launch.executor.worker, blocks, blocks.n, None)
    policy = _with_backups(blocks.n, backups) if backups else Upfront(blocks.n)
    payload = Payload(f, blocks, output=output, encryption=encryption_of(blocks, options.key))
    need_of = partial(FirstResults, note, keeps_failures, who)
    blank = launch.blank(Uncoded(blocks.n, backups=1))
    firsts, report = run_map(launch, payload, policy, options, need_of, blank, observers)
    return [firsts.outcomes[index] for index in range(blocks.n)], report


def encryption_of(blocks: Coded, key: str | bytes | None) -> Encryption | None:
    """How a map encrypts what it stores and sends: by its own key, or that of the stored array it is over."""
    key = key_of(blocks) if key is None else key
    if key is None:
        return None
    from polarmap.executors.encryption_keys import new_encryption

    tasks = range(blocks.n if blocks.source is None else 0)
    largest = max((layout_bytes(blocks.layout(task)) for task in tasks), default=0)
    return new_encryption(key, largest, "a block", "use more blocks")


def _with_backups(n: int, backups: int) -> Policy:
    """All n tasks at once, and so many copies at most of each that is late."""
    return Backups(n, backup_lateness(n), backups)


def _policy(coded: CodedData, options: MapOptions) -> Policy:
    code = coded.code
    if isinstance(code, Uncoded) and code.backups:
        return _with_backups(code.n, code.backups)
    parity_after, plan = options.known.parity_after, options.plan
    if parity_after and len(code.systematic) == code.k:
        return ParityAfter(code.n, code.k, parity_after)
    if options.schedule_name != "on_demand":
        return Upfront(code.n)
    counts_decide = code.is_mds
    rule = ParityRule(code.recovery_threshold, plan.runtimes if plan else None)
    return OnDemand(code.n, rule, plan.upfront if plan else 0, counts_decide)


def _check_limits(worker: Worker | None, blocks: Coded, k: int, rows: int | None) -> None:
    """LimitError for what cannot work where the executor runs it."""
    if worker is not None:
        largest = max(layout_bytes(blocks.layout(index)) for index in range(blocks.n))
        limits.check(worker, limits.MapSize(blocks.n, k, largest, rows))


def cost_of(
    worker: Worker | None, tasks: Sequence[TaskReport], seconds: float, stay: Stay | None
) -> Cost | None:
    """Workers that stay are paid whatever they do; else every attempt is, of a map of so many seconds.

    One that never reported is paid until its worker sees that nobody waits.
    """
    if worker is None:
        return None
    if stay is not None:
        return cost_of_stay(worker, stay)
    unheard = seconds + LIVENESS_SECONDS
    paid = [task.seconds or unheard - (task.launched or 0.0) for task in tasks for _ in range(task.attempts)]
    return cost(worker, paid, seconds)


T = TypeVar("T")


def prepared_blocks(
    f: Callable[[Any], T],
    data: Any,
    code_options: CodeOptions,
    executor: Any,
    options: MapOptions,
) -> PreparedMap[CodedResult[T]]:
    """A map whose results come home."""
    launch, coded = prepared(data, code_options, executor, options)

    def run(observers: Observers) -> CodedResult[T]:
        word, report = run_coded(launch, f, coded, options, observers)
        whole, structure = without_padding(word.decoded, coded.blocks, word.padding_rows), word.structure
        return CodedResult([unflatten(structure, leaves) for leaves in whole], report)

    return PreparedMap(
        run, partial(blank_of, launch, coded, options), coded.code.k, no_estimates=_no_estimates(coded)
    )


def _no_estimates(coded: CodedData) -> str:
    """Why blocks of a map are not estimated, "" if they are."""
    if isinstance(coded.code, PolarCode):
        return ""
    return f"estimates blocks of linear f: not with degree=, Masked or the code {coded.code!r}"


def prepared(
    data: Any, code_options: CodeOptions, executor: Any, options: MapOptions, parity_for: str = ""
) -> tuple[Launch, CodedData]:
    """A launch on the executor that the caller means, and the coded blocks; CodeError if they do not fit.

    parity_for : what beside `options` has asked for parity.
    """
    launch = Launch(_executor(executor, data))
    coded = encoded(data, code_options, options.rtol, parity_for or options.parity_for)
    if options.key is not None and coded.source is not None and options.key != key_of(coded):
        how = "encrypted: leave key out" if key_of(coded) else "as they are: encode(..., key=) encrypts them"
        raise CodeError(f"key= encrypts data from memory, and these lie in storage, {how}")
    if options.deadline is not None and not isinstance(coded.code, PolarCode):
        raise CodeError(f"on_timeout='estimate' {_no_estimates(coded)}")
    return launch, coded


def _executor(choice: Any, data: Any) -> Any:
    """Where a stored array's workers can read it, when the caller does not say."""
    if choice is None:
        return getattr(data, "executor", None)
    if isinstance(choice, FaultyExecutor) and choice.executor is None:
        return FaultyExecutor(_executor(None, data), choice.faults)
    return choice
