"""A map before it begins, and the functions that make one: calls of them run it."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import numpy as np

from polarmap.blocks.code_choice import CodeOptions, encode_blocks, encode_on_cluster
from polarmap.blocks.coded import CodedData
from polarmap.blocks.conversions import describe_missing_table_labels
from polarmap.codes.linear_code import LinearCode
from polarmap.driver.coded_collector import CodedCollector
from polarmap.driver.lateness import ParityRule
from polarmap.driver.map_execution import MapExecution, Observer, Observers
from polarmap.driver.options import MapOptions
from polarmap.driver.policies import (
    AwaitedTaskBackupPolicy,
    OnDemandParityPolicy,
    SchedulingPolicy,
    UpfrontPolicy,
    make_backup_policy,
)
from polarmap.driver.results import CodedResult, LazyReport
from polarmap.errors import CodeError, trimmed_tracebacks
from polarmap.executors.encryption_keys import check_map_encryption_key
from polarmap.executors.interface import Function, JobSpec
from polarmap.executors.resolved import ResolvedExecutor
from polarmap.worker.task_records import OutputSpec

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class PreparedMap(NamedTuple, Generic[R]):
    """A map that is checked and cut, and has not begun.

    execute : runs it to its end, while these observers look on.
    execution : tells how far it is; None where it is not known yet of how many tasks it is.
    n_blocks : whose results it tells one by one, and returns in a sequence; 0: it does not.
    is_stored : whether it is of use if nobody takes its results, because they stay in storage.
    no_estimates_reason : why its results cannot be estimated while it runs, "" if they can.
    """

    execute: Callable[[Observers], R]
    execution: MapExecution | None = None
    n_blocks: int = 0
    is_stored: bool = False
    no_estimates_reason: str = "is of results that coded_map brings home: not of another map, nor with out="


def map_function(prepare: Callable[P, PreparedMap[R]]) -> Callable[P, R]:
    """A public map: a call runs what `prepare` makes of its arguments, which is kept for `submit`.

    Who looks on, as `progress=` says, is no matter of what is prepared.
    """

    def call(*arguments: P.args, **options: P.kwargs) -> R:
        with trimmed_tracebacks:
            return prepare(*arguments, **options).execute(make_observers(options.get("progress")))

    name = prepare.__name__  # of the one frame of ours that a traceback shows
    call.__code__ = call.__code__.replace(co_name=name, co_qualname=name)
    call.prepare = prepare  # type: ignore[attr-defined]
    functools.update_wrapper(call, prepare)
    signature = inspect.signature(prepare)  # as help() shows it: of the result, not of the prepared map
    return_type = signature.return_annotation.removeprefix("PreparedMap[").removesuffix("]")
    call.__signature__ = signature.replace(return_annotation=return_type)  # type: ignore[attr-defined]
    return call


def make_observers(progress: Any) -> Observers:
    """Who looks on at a map that begins now, as its `progress=` says: None is a bar where something shows it.

    The logger if it is on, and OpenTelemetry if the program has imported it: else there is nobody to tell.
    """
    if isinstance(progress, tuple) and all(isinstance(observer, Observer) for observer in progress):
        return progress  # those of a map that is part of another one
    if progress is None:
        progress = _is_in_notebook() or (sys.stderr is not None and sys.stderr.isatty())
    if not isinstance(progress, (bool, int, np.bool_)):
        raise CodeError(f"progress must be True, False or None, not {progress!r:.100}")
    is_traced = "opentelemetry.trace" in sys.modules or "opentelemetry.metrics" in sys.modules
    is_logged = logging.getLogger("polarmap").isEnabledFor(logging.INFO)
    if not (progress or is_traced or is_logged):
        return ()
    from polarmap.driver.observers import LogObserver, ProgressBar, TraceObserver

    bars = (ProgressBar(_is_in_notebook()),) if progress else ()
    return bars + (TraceObserver(),) * is_traced + (LogObserver(),) * is_logged


def _is_in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which is no terminal and yet shows bars."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_ipython is None else get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


# --- maps of coded data -------------------------------------------------------------------------


def prepare_coded_map(
    f: Callable[[Any], T],
    data: Any,
    code_options: CodeOptions,
    executor: ResolvedExecutor,
    options: MapOptions,
) -> PreparedMap[CodedResult[T]]:
    """A map whose results come home."""
    execution, coded_data = prepare_coded_execution(data, code_options, executor, options)
    labels_note = describe_missing_table_labels(data)

    def execute(observers: Observers) -> CodedResult[T]:
        try:
            collector, report = execute_coded(execution, f, coded_data, options, observers)
        except (AttributeError, LookupError) as error:
            if labels_note:
                error.add_note(labels_note)
            raise
        return collector.build_result(report)

    return PreparedMap(
        execute, execution, coded_data.code.k, no_estimates_reason=_find_no_estimates_reason(coded_data)
    )


def _find_no_estimates_reason(coded_data: CodedData) -> str:
    """Why blocks of a map are not estimated, "" if they are."""
    if coded_data.code.can_estimate:
        return ""
    return f"estimates blocks of linear f: not with degree=, SecretSharing or the code {coded_data.code!r}"


def prepare_coded_execution(
    data: Any, code_options: CodeOptions, executor: ResolvedExecutor, options: MapOptions
) -> tuple[MapExecution, CodedData]:
    """Return a map on an executor and the coded blocks. Raises CodeError if data and options do not fit."""
    execution = MapExecution(executor.choose_for(data))
    partitioned_data = None
    if not (isinstance(data, np.ndarray) or hasattr(data, "coded_blocks")):
        partitioned_data = executor.partition(data, code_options.check().requested_k)
    if partitioned_data is None:
        coded_data = encode_blocks(data, code_options, options.rtol, options.parity_required_by)
    else:
        coded_data = encode_on_cluster(partitioned_data, code_options, options.rtol)
    if options.key is not None:
        check_map_encryption_key(coded_data, options.key)
    if options.estimate_on_timeout and (reason := _find_no_estimates_reason(coded_data)):
        raise CodeError(f"on_timeout='estimate' {reason}")
    report_fields = {"padding": coded_data.data_blocks.n_padding_rows, "code_reason": coded_data.code_reason}
    execution.set_code(coded_data.code, schedule=options.schedule, **report_fields)
    return execution, coded_data


def execute_coded(
    execution: MapExecution,
    f: Function,
    coded_data: CodedData,
    options: MapOptions,
    observers: Observers,
    driver_f: Function | None = None,
    output: OutputSpec | None = None,
) -> tuple[CodedCollector, LazyReport]:
    """The results of f on the data blocks as soon as they are determined, and how they came about.

    `driver_f`: what f is on the driver, where that differs from what workers send of it; `output`:
    where results stay.
    """
    execution.check_backend_limits(coded_data, coded_data.data_blocks.rows_per_block)
    f, driver_f = coded_data.wrap_function_for_blocks(f), coded_data.wrap_function_for_blocks(driver_f or f)
    parity_tasks = range(len(coded_data.code.systematic_indices) or coded_data.n, coded_data.n)
    padded_block, padding_analyzer = coded_data.data_blocks.padded_block, None
    if padded_block is not None:
        from polarmap.driver.padding import PaddingAnalyzer  # which few maps need

        padding_analyzer = PaddingAnalyzer(f, coded_data, options, is_stored=output is not None)
        padded_block = padded_block if padding_analyzer.is_evaluated_unpadded else None
    job_spec = JobSpec(
        f, coded_data, output_spec=output, low_priority_tasks=parity_tasks, padded_block=padded_block
    )
    deadline_estimator = None
    if options.estimate_on_timeout:
        from polarmap.driver.estimates import DeadlineEstimator  # Few maps need it.

        deadline_estimator = DeadlineEstimator()
    make_collector = functools.partial(
        CodedCollector, padding_analyzer, deadline_estimator, driver_f, coded_data, options
    )
    policy = _make_scheduling_policy(coded_data.code, options)
    if padded_block is not None and coded_data.code.is_redundant:
        policy = AwaitedTaskBackupPolicy(policy, coded_data.n, padded_block[0])
    return execution.execute(job_spec, policy, options, make_collector, observers)


def _make_scheduling_policy(code: LinearCode, options: MapOptions) -> SchedulingPolicy:
    """Which tasks of a map start at once, and which later."""
    if code.max_backups:
        return make_backup_policy(code.n, code.max_backups)
    if options.schedule != "on_demand":
        return UpfrontPolicy(code.n)
    parity_rule = ParityRule(code.recovery_threshold, options.run_times)
    return OnDemandParityPolicy(code.n, parity_rule, options.n_upfront_parity, is_mds=code.is_mds)
