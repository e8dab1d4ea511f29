"""One map on an executor: checked, opened, scheduled, and its outcomes made into results and a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy.typing as npt

from polarmap.blocks.base import CodedData
from polarmap.blocks.code_choice import CodeOptions, encoded
from polarmap.blocks.equal import without_padding
from polarmap.blocks.sparse import SparseCodedBlocks
from polarmap.clouds import limits
from polarmap.clouds.limits import Worker
from polarmap.clouds.prices import Cost, Stay, cost, cost_of_stay
from polarmap.code.polar import PolarCode
from polarmap.code.uncoded import Uncoded
from polarmap.errors import CodeError, warn
from polarmap.executors import executor_of
from polarmap.executors.base import Coded, Outcome, Payload, Run, key_of, layout_bytes, read_only
from polarmap.executors.faulty import FaultyExecutor
from polarmap.report import Report
from polarmap.run.coded_result import CodedResult
from polarmap.run.codeword import Codeword
from polarmap.run.estimates import Estimate, estimate_at_deadline, estimate_so_far
from polarmap.run.first_results import FirstResults
from polarmap.run.lateness import ParityRule, backup_lateness
from polarmap.run.loop import Policy, Stopwatch, Upfront, schedule
from polarmap.run.map_log import MapLog, logged
from polarmap.run.options import MapOptions
from polarmap.run.padding import PaddingRows
from polarmap.run.policies import Backups, OnDemand, ParityAfter
from polarmap.run.prepared_map import PreparedMap
from polarmap.run.progress import Observer, RunningMap
from polarmap.run.summary import UNCODED, blank_report, report_of_coded, report_of_uncoded, report_so_far
from polarmap.run.tasks import TaskTable
from polarmap.worker.encryption import Encryption
from polarmap.worker.liveness import LIVENESS_SECONDS
from polarmap.worker.pytree import Structure, unflatten
from polarmap.worker.stored_output import OutputSpec, StoredOutput

Array = npt.NDArray[Any]
Function = Callable[[Any], Any]


class Launch:
    """The executor that the caller of a map chose, and when the call began.

    Attributes
    ----------
    executor : MapExecutor
    worker : Worker or None
        What a task is given there and may cost, where that is known.
    began : float
        On `time.monotonic`.
    """

    def __init__(self, executor: Any) -> None:
        self.began = time.monotonic()
        self.executor = executor_of(executor)
        self.worker = self.executor.worker


@dataclass
class Collected:
    """The flat results of the k data blocks.

    structure : of each.
    stored : where those results lie that stayed in storage, of which these are samples.
    rows : for each leaf, whether rows of it that come from padding are cut off.
    """

    results: list[list[Array]]
    structure: Structure
    stored: dict[int, StoredOutput]
    rows: tuple[bool, ...]


class _Call(NamedTuple):
    """What one coded map does: f on workers and on the driver, the blocks, the options; and its log."""

    f: Function
    driver_f: Function
    coded: CodedData
    options: MapOptions
    log: MapLog


def run_coded(
    launch: Launch,
    f: Function,
    coded: CodedData,
    options: MapOptions,
    observer: Observer,
    driver_f: Function | None = None,
    output: OutputSpec | None = None,
) -> tuple[Collected, Report]:
    """The results of f on the data blocks as soon as they are determined, and how they came about.

    `driver_f`: what f is on the driver, where that differs from what workers send of it; `output`:
    where results stay.
    """
    _check_limits(launch.worker, coded, coded.blocks.k, coded.blocks.rows)
    blank = _blank_report(coded, launch)
    driver_f = driver_f or f
    if isinstance(coded, SparseCodedBlocks):
        f, driver_f = coded.on_blocks(f), coded.on_blocks(driver_f)
    with logged(blank) as log:
        call = _Call(f, driver_f, coded, options, log)
        collected, report = _run_coded(launch, call, observer, output, blank)
        log.returned(report)
    return collected, report


def _run_coded(
    launch: Launch, call: _Call, observer: Observer, output: OutputSpec | None, blank: Report
) -> tuple[Collected, Report]:
    """Open the executor for one coded map, follow it to its end, and close it."""
    coded, options = call.coded, call.options
    encoded = coded.encode_seconds  # by earlier maps of the same blocks
    parity = range(len(coded.code.systematic) or coded.n, coded.n)
    payload = Payload(
        call.f,
        coded,
        output=output,
        low_priority=parity,
        encryption=encryption_of(coded, options.key),
    )
    run = launch.executor.open(payload)
    try:
        began = min(launch.began, run.now())  # a virtual clock begins when the run is opened
        tasks, watch = TaskTable(coded.n), Stopwatch(run.now, options.timeout, options.deadline)
        word = Codeword(call.driver_f, coded, options, tasks, watch)
        padding = PaddingRows(call.f, coded, options, watch) if coded.blocks.padding else None

        def so_far() -> Report:
            return report_so_far(blank, tasks, word.arrived, run.now() - began)

        running = RunningMap(blank, run.wake, so_far, lambda: estimate_so_far(coded, word, padding, so_far()))
        with observer.watch(running):
            found = _collect(run, call, tasks, word, padding, watch, observer)
            rows = padding.found(word, _shapes(word)) if padding else ()
            ended = watch.elapsed
    finally:
        stay = run.close()
    report = report_of_coded(word, tasks, coded, found, ended)
    report = replace(
        report,
        executor=launch.executor.name,
        seconds=run.now() - began,
        encode_seconds=coded.encode_seconds - encoded,
        schedule=options.schedule_name,
    )
    report = replace(report, cost=cost_of(launch.worker, report, stay))
    stored = {index: one.stored for index, one in word.results.items() if one.stored is not None}
    return Collected(word.decoded, word.structure, stored, rows), report


def run_uncoded(
    launch: Launch,
    f: Function,
    blocks: Coded,
    options: MapOptions,
    observer: Observer,
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
    _check_limits(launch.worker, blocks, blocks.n, None)
    policy = _with_backups(blocks.n, backups) if backups else Upfront(blocks.n)
    blank = blank_report(blocks.n, blocks.n, blocks.n, UNCODED, launch.executor.name)
    with logged(blank) as log:
        payload = Payload(f, blocks, output=output, encryption=encryption_of(blocks, options.key))
        run = launch.executor.open(payload)
        try:
            began = min(launch.began, run.now())
            tasks, watch = TaskTable(blocks.n), Stopwatch(run.now, options.timeout)
            firsts = FirstResults(tasks, note, keeps_failures, who)
            running = RunningMap(
                blank,
                run.wake,
                lambda: report_so_far(blank, tasks, firsts.arrived, run.now() - began),
            )
            with observer.watch(running):
                ended = schedule(run, policy, options.retries, tasks, firsts, watch, log, observer.tick)
                for outcomes in ended:
                    for outcome in outcomes:
                        firsts.add(outcome, watch.elapsed)
                    observer.show(len(firsts.outcomes))
                    if firsts.is_met:
                        break
        finally:
            stay = run.close()
        report = report_of_uncoded(firsts, tasks, launch.executor.name, run.now() - began)
        report = replace(report, cost=cost_of(launch.worker, report, stay))
        log.returned(report)
    return [firsts.outcomes[index] for index in range(blocks.n)], report


def _collect(
    run: Run,
    call: _Call,
    tasks: TaskTable,
    word: Codeword,
    padding: PaddingRows | None,
    watch: Stopwatch,
    observer: Observer,
) -> Estimate | None:
    """Schedule the tasks until the results are accepted, or the deadline is there.

    Returns what is estimated then.
    """
    coded, options = call.coded, call.options
    gives_blocks = observer.takes_blocks and len(coded.code.systematic) > 0
    found: Estimate | None = None
    has_warned = False
    policy = _policy(coded, options)
    ended = schedule(run, policy, options.retries, tasks, word, watch, call.log, observer.tick)
    for outcomes in ended:
        for outcome in outcomes:
            word.add(outcome)
            if gives_blocks and outcome.task < coded.code.k:
                _hand_out(outcome.task, word, coded, observer)
        observer.show(len(word.received))
        if coded.unprotected_warning and not has_warned:  # known when the blocks have been encoded
            has_warned = True
            warn(coded.unprotected_warning)
        if word.step() and (padding is None or padding.is_over(word)):
            break
        if watch.is_past_deadline:
            found = estimate_at_deadline(coded, word, tasks, watch)
            break
    word.warn()
    return found


def encryption_of(blocks: Coded, key: str | bytes | None) -> Encryption | None:
    """Of what a map stores and sends: with its own key, or that of the stored array that it is over."""
    key = key_of(blocks) if key is None else key
    if key is None:
        return None
    from polarmap.executors.encryption_keys import new_encryption

    tasks = range(blocks.n if blocks.source is None else 0)
    largest = max((layout_bytes(blocks.layout(task)) for task in tasks), default=0)
    return new_encryption(key, largest, "a block", "use more blocks")


def _blank_report(coded: CodedData, launch: Launch) -> Report:
    code = coded.code
    return blank_report(code.n, code.k, code.recovery_threshold, code.name, launch.executor.name)


def _hand_out(index: int, word: Codeword, coded: CodedData, observer: Observer) -> None:
    """The result of a data block, as its worker returned it, to whoever does not wait for the others.

    Not the one that padding may have to be cut off. It may be decoded from still: nobody is to write to it.
    """
    received = word.results.get(index)
    if received is None or (coded.blocks.padding and index == coded.code.k - 1):
        return
    leaves, structure = received.leaves, received.structure
    if leaves is not None and structure is not None and received.stored is None:
        observer.block_arrived(index, lambda: unflatten(structure, list(map(read_only, leaves))))


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


def _shapes(word: Codeword) -> list[tuple[int, ...]]:
    """Of the leaves of a result, which may be a sample of what is stored."""
    for outcome in word.results.values():
        if outcome.stored is not None:
            return [shape for _, shape in outcome.stored.layout]
    return [leaf.shape for leaf in word.decoded[0]]


def _check_limits(worker: Worker | None, blocks: Coded, k: int, rows: int | None) -> None:
    """LimitError for what cannot work where the executor runs it."""
    if worker is not None:
        largest = max(layout_bytes(blocks.layout(index)) for index in range(blocks.n))
        limits.check(worker, limits.MapSize(blocks.n, k, largest, rows))


def cost_of(worker: Worker | None, report: Report, stay: Stay | None) -> Cost | None:
    """Workers that stay are paid whatever they do; else every attempt is.

    One that never reported is paid until its worker sees that nobody waits.
    """
    if worker is None:
        return None
    if stay is not None:
        return cost_of_stay(worker, stay)
    unheard = report.seconds + LIVENESS_SECONDS
    seconds = [
        task.seconds or unheard - (task.launched or 0.0)
        for task in report.tasks
        for _ in range(task.attempts)
    ]
    return cost(worker, seconds, report.seconds)


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

    def run(observer: Observer) -> CodedResult[T]:
        collected, report = run_coded(launch, f, coded, options, observer)
        whole = without_padding(collected.results, coded.blocks, collected.rows)
        return CodedResult([unflatten(collected.structure, leaves) for leaves in whole], report)

    no_estimates = _no_estimates(coded)
    return PreparedMap(run, _blank_report(coded, launch), coded.code.k, no_estimates=no_estimates)


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
