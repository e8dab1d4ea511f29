"""Prepare maps: check the arguments, cut the data into blocks, and choose the code and the policy.

A map function such as `coded_map` returns a `PreparedMap`, which the decorator `map_function` runs. `submit`
uses the same object to run the map in the background.
"""

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
from polarmap.driver.events import PLAIN_CONTEXT, EventStream, JobContext, Observer, ResultCallback
from polarmap.driver.lateness import ParityRule
from polarmap.driver.map_execution import MapExecution
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
from polarmap.live import activation
from polarmap.report import Report
from polarmap.worker.task_records import OutputSpec

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class PreparedMap(NamedTuple, Generic[R]):
    """A map that is ready to start, with its arguments checked and its data partitioned into blocks.

    Attributes
    ----------
    execute : callable
        Call it with a JobContext to run the map and return its result.
    get_report : callable or None
        Call it without arguments to get the map's report before it starts. None if the number of tasks is not
        yet known.
    n_blocks : int
        The number of futures in `CodedFuture.blocks`, or 0 if the result is not a sequence of blocks.
    is_stored : bool
        Whether the result is written to storage, so that the map must go on even if its future is not
        referenced.
    no_estimates_reason : str
        Why the results cannot be estimated while the map runs, or "" if they can.
    """

    execute: Callable[[JobContext], R]
    get_report: Callable[[], Report] | None = None
    n_blocks: int = 0
    is_stored: bool = False
    no_estimates_reason: str = "supports only coded_map, and not with out="


def map_function(prepare: Callable[P, PreparedMap[R]]) -> Callable[P, R]:
    """Decorate a function that prepares a map, so that calling it also runs the map.

    The undecorated function is stored as the attribute `prepare`, which `submit` uses. The options `progress`
    and `on_result` are handled here and in `submit`. `prepare` only validates them.
    """

    def call(*arguments: P.args, **options: P.kwargs) -> R:
        with trimmed_tracebacks:
            prepared_map = prepare(*arguments, **options)
            observers = make_observers(options.get("progress"), options.get("on_result"))
            return prepared_map.execute(JobContext(EventStream(observers)) if observers else PLAIN_CONTEXT)

    name = prepare.__name__  # Make tracebacks show the map function's name instead of `call`.
    call.__code__ = call.__code__.replace(co_name=name, co_qualname=name)
    call.prepare = prepare  # type: ignore[attr-defined]
    functools.update_wrapper(call, prepare)
    signature = inspect.signature(prepare)  # Make help() show the result type instead of PreparedMap.
    return_type = signature.return_annotation.removeprefix("PreparedMap[").removesuffix("]")
    call.__signature__ = signature.replace(return_annotation=return_type)  # type: ignore[attr-defined]
    return call


def make_context(progress: Any) -> JobContext:
    """Return a context for a job that starts now, with a progress bar, logging and tracing as needed."""
    observers = make_observers(progress)
    return JobContext(EventStream(observers)) if observers else PLAIN_CONTEXT


def make_observers(progress: Any, on_result: Any = None) -> tuple[Observer, ...]:
    """Return the observers for a map that starts now: progress bar, logging, tracing and callback.

    Parameters
    ----------
    progress : bool, "live" or None
        Whether to show a progress bar, or a live view. None shows a bar on a terminal and in a notebook.
    on_result : callable or None
        The user's callback, called as `on_result(index, result)` for each final result.

    Returns
    -------
    tuple of Observer
        A logging observer is included if the logger "polarmap" is enabled for INFO, one for OpenTelemetry if
        the program has imported that, and one for live views if the program is visible to them.
    """
    if progress is None:
        progress = activation.is_in_notebook() or (sys.stderr is not None and sys.stderr.isatty())
    is_live = isinstance(progress, str) and progress == "live"
    if not (is_live or isinstance(progress, (bool, int, np.bool_))):
        raise CodeError(f"progress must be True, False, 'live' or None, not {progress!r:.100}")
    is_traced = "opentelemetry.trace" in sys.modules or "opentelemetry.metrics" in sys.modules
    is_logged = logging.getLogger("polarmap").isEnabledFor(logging.INFO)
    callbacks = () if on_result is None else (ResultCallback(on_result),)
    if not (progress or is_traced or is_logged or activation.active_hub is not None):
        return callbacks
    from polarmap.driver.observers import LiveObserver, LogObserver, ProgressBar, TraceObserver

    bars: tuple[Observer, ...] = (
        (ProgressBar(activation.is_in_notebook()),) if progress and not is_live else ()
    )
    if is_live or activation.active_hub is not None:
        bars += (LiveObserver(is_live, activation.is_in_notebook()),)
    traces, logs = (TraceObserver(),) * is_traced, (LogObserver(),) * is_logged
    return bars + traces + logs + callbacks


def open_live_view() -> Callable[[], None]:
    """Open the view of `progress="live"`, and return the function that closes it.

    Maps share the view while it is open. Raises ImportError if a library is missing.
    """
    from polarmap.live.views import close_view, open_view  # lazy import: few programs need it

    open_view(activation.is_in_notebook())
    return close_view


# --- maps of coded data -------------------------------------------------------------------------


def prepare_coded_map(
    f: Callable[[Any], T],
    data: Any,
    code_options: CodeOptions,
    executor: ResolvedExecutor,
    options: MapOptions,
) -> PreparedMap[CodedResult[T]]:
    """Prepare a coded map whose results are returned to this process rather than stored."""
    execution, coded_data = prepare_coded_execution(data, code_options, executor, options)
    labels_note = describe_missing_table_labels(data)

    def execute(context: JobContext) -> CodedResult[T]:
        try:
            collector, report = execute_coded(execution, f, coded_data, options, context)
        except (AttributeError, LookupError) as error:
            if labels_note:
                error.add_note(labels_note)
            raise
        return collector.build_result(report)

    no_estimates_reason = _explain_missing_estimates(coded_data)
    return PreparedMap(
        execute, execution.current_report, coded_data.code.k, no_estimates_reason=no_estimates_reason
    )


def _explain_missing_estimates(coded_data: CodedData) -> str:
    """Return why the missing results of a map cannot be estimated, or "" if they can."""
    if coded_data.code.can_estimate:
        return ""
    return f"supports only linear f, and not degree=, SecretSharing or the code {coded_data.code!r}"


def prepare_coded_execution(
    data: Any, code_options: CodeOptions, executor: ResolvedExecutor, options: MapOptions
) -> tuple[MapExecution, CodedData]:
    """Encode the data. Return the job to execute and the coded blocks.

    Raises CodeError if the options do not suit the data.
    """
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
    if options.estimate_on_timeout and (reason := _explain_missing_estimates(coded_data)):
        raise CodeError(f"on_timeout='estimate' {reason}")
    report_fields = {"padding": coded_data.data_blocks.n_padding_rows, "code_reason": coded_data.code_reason}
    execution.set_code(coded_data.code, schedule=options.schedule, **report_fields)
    return execution, coded_data


def execute_coded(
    execution: MapExecution,
    f: Function,
    coded_data: CodedData,
    options: MapOptions,
    context: JobContext,
    driver_f: Function | None = None,
    output: OutputSpec | None = None,
) -> tuple[CodedCollector, LazyReport]:
    """Run f on coded blocks until the results of all data blocks have arrived or been decoded.

    Parameters
    ----------
    execution : MapExecution
        The job to run.
    f : Function
        The function that workers call on each block.
    coded_data : CodedData
        The coded blocks, one per task.
    options : MapOptions
        The options of the map.
    context : JobContext
        The observers of the map, and the means to cancel it.
    driver_f : Function, optional
        The function to call instead of f when results are checked in this process, for the case that workers
        return only samples of their results. By default f.
    output : OutputSpec, optional
        Where workers store their results. By default, they return them.

    Returns
    -------
    collector : CodedCollector
        The finished collector, which holds the results.
    report : LazyReport
        The report of the map.
    """
    execution.check_backend_limits(coded_data, coded_data.data_blocks.rows_per_block)
    user_function = f
    f, driver_f = coded_data.wrap_function_for_blocks(f), coded_data.wrap_function_for_blocks(driver_f or f)
    parity_tasks = range(len(coded_data.code.systematic_indices) or coded_data.n, coded_data.n)
    padded_block, padding_analyzer = coded_data.data_blocks.padded_block, None
    if padded_block is not None:
        from polarmap.driver.padding import PaddingAnalyzer  # lazy import: few maps need it

        padding_analyzer = PaddingAnalyzer(f, coded_data, options, is_stored=output is not None)
        padded_block = padded_block if padding_analyzer.is_evaluated_unpadded else None
    job_spec = JobSpec(
        f,
        coded_data,
        output_spec=output,
        low_priority_tasks=parity_tasks,
        padded_block=padded_block,
        user_function=user_function,
        name=execution.job_name,
    )
    deadline_estimator = None
    if options.estimate_on_timeout:
        from polarmap.driver.estimates import DeadlineEstimator  # lazy import: few maps need it

        deadline_estimator = DeadlineEstimator()
    make_collector = functools.partial(
        CodedCollector, padding_analyzer, deadline_estimator, driver_f, coded_data, options
    )
    policy = _make_scheduling_policy(coded_data.code, options)
    if padded_block is not None and coded_data.code.is_redundant:
        policy = AwaitedTaskBackupPolicy(policy, coded_data.n, padded_block[0])
    return execution.execute(job_spec, policy, options, make_collector, context)


def _make_scheduling_policy(code: LinearCode, options: MapOptions) -> SchedulingPolicy:
    """Return the map's scheduling policy, which decides when tasks, parity tasks and backups start."""
    if code.max_backups:
        return make_backup_policy(code.n, code.max_backups)
    if options.schedule != "on_demand":
        return UpfrontPolicy(code.n)
    parity_rule = ParityRule(code.recovery_threshold, options.run_times)
    return OnDemandParityPolicy(code.n, parity_rule, options.n_upfront_parity, is_mds=code.is_mds)
