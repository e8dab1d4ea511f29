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
from polarmap.blocks.conversions import describe_missing_labels
from polarmap.codes.linear_code import LinearCode
from polarmap.codes.polar import PolarCode
from polarmap.codes.uncoded import Uncoded
from polarmap.errors import CodeError, without_our_frames
from polarmap.executors import partition_if_on_cluster, rewrap_with_faults, unwrap_faulty_executor
from polarmap.executors.encryption_keys import check_map_key
from polarmap.executors.interface import Function, JobSpec
from polarmap.run.codeword import Codeword
from polarmap.run.lateness import ParityRule
from polarmap.run.loop import Policy
from polarmap.run.options import MapOptions
from polarmap.run.policies import OnDemand, WithBackupsOf, with_backups
from polarmap.run.reports import LazyReport
from polarmap.run.results import CodedResult
from polarmap.run.running_map import Observer, Observers, RunningMap
from polarmap.worker.task_records import OutputSpec

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class PreparedMap(NamedTuple, Generic[R]):
    """A map that is checked and cut, and has not begun.

    run : runs it to its end, while these observers look on.
    running : tells how far it is; None where it is not known yet of how many tasks it is.
    blocks : whose results it tells one by one, and returns in a sequence; 0: it does not.
    is_lasting : whether it is of use if nobody takes its results, because they stay in storage.
    no_estimates : why its results cannot be estimated while it runs, "" if they can.
    """

    run: Callable[[Observers], R]
    running: RunningMap | None = None
    blocks: int = 0
    is_lasting: bool = False
    no_estimates: str = "is of results that coded_map brings home: not of another map, nor with out="


def verb(prepare: Callable[P, PreparedMap[R]]) -> Callable[P, R]:
    """A public map: a call runs what `prepare` makes of its arguments, which is kept for `submit`.

    Who looks on, as `progress=` says, is no matter of what is prepared.
    """

    def call(*arguments: P.args, **options: P.kwargs) -> R:
        with without_our_frames:
            return prepare(*arguments, **options).run(observers_of(options.get("progress")))

    name = prepare.__name__  # of the one frame of ours that a traceback shows
    call.__code__ = call.__code__.replace(co_name=name, co_qualname=name)
    call.prepare = prepare  # type: ignore[attr-defined]
    functools.update_wrapper(call, prepare)
    signature = inspect.signature(prepare)  # as help() shows it: of the result, not of the prepared map
    result = signature.return_annotation.removeprefix("PreparedMap[").removesuffix("]")
    call.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
    return call


def observers_of(progress: Any) -> Observers:
    """Who looks on at a map that begins now, as its `progress=` says: None is a bar where something shows it.

    The logger if it is on, and OpenTelemetry if the program has imported it: else there is nobody to tell.
    """
    if isinstance(progress, tuple) and all(isinstance(one, Observer) for one in progress):
        return progress  # those of a map that is part of another one
    if progress is None:
        progress = _is_in_notebook() or (sys.stderr is not None and sys.stderr.isatty())
    if not isinstance(progress, (bool, int, np.bool_)):
        raise CodeError(f"progress must be True, False or None, not {progress!r:.100}")
    is_traced = "opentelemetry.trace" in sys.modules or "opentelemetry.metrics" in sys.modules
    is_logged = logging.getLogger("polarmap").isEnabledFor(logging.INFO)
    if not (progress or is_traced or is_logged):
        return ()
    from polarmap.run.observers import MapLog, MapSpan, ProgressBar

    bars = (ProgressBar(_is_in_notebook()),) if progress else ()
    return bars + (MapSpan(),) * is_traced + (MapLog(),) * is_logged


def _is_in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which is no terminal and yet shows bars."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_ipython is None else get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


# --- maps of coded data -------------------------------------------------------------------------


def prepared_blocks(
    f: Callable[[Any], T],
    data: Any,
    code_options: CodeOptions,
    executor: Any,
    options: MapOptions,
) -> PreparedMap[CodedResult[T]]:
    """A map whose results come home."""
    running, coded = prepared(data, code_options, executor, options)
    labels = describe_missing_labels(data)

    def run(observers: Observers) -> CodedResult[T]:
        try:
            word, report = run_coded(running, f, coded, options, observers)
        except (AttributeError, LookupError) as error:
            if labels:
                error.add_note(labels)
            raise
        return word.result(report)

    return PreparedMap(run, running, coded.code.k, no_estimates=_no_estimates(coded))


def _no_estimates(coded: CodedData) -> str:
    """Why blocks of a map are not estimated, "" if they are."""
    if isinstance(coded.code, PolarCode):
        return ""
    return f"estimates blocks of linear f: not with degree=, Masked or the code {coded.code!r}"


def prepared(
    data: Any, code_options: CodeOptions, executor: Any, options: MapOptions
) -> tuple[RunningMap, CodedData]:
    """A map on the executor that the caller means, and the coded blocks; CodeError if they do not fit."""
    running = RunningMap(_executor(executor, data))
    there = None
    if not (executor is None or isinstance(data, np.ndarray) or hasattr(data, "coded_blocks")):
        there = partition_if_on_cluster(executor, data, code_options.check().requested_k)
    if there is None:
        coded = encode_blocks(data, code_options, options.rtol, options.parity_for)
    else:
        coded = encode_on_cluster(there, code_options, options.rtol)
    if options.key is not None:
        check_map_key(coded, options.key)
    if options.estimates and (why := _no_estimates(coded)):
        raise CodeError(f"on_timeout='estimate' {why}")
    known = {"padding": coded.data_blocks.n_padding_rows, "code_reason": coded.code_reason}
    running.expect(coded.code, schedule=options.schedule, **known)
    return running, coded


def _executor(choice: Any, data: Any) -> Any:
    """Where a stored array's workers can read it, when the caller does not say."""
    if unwrap_faulty_executor(choice) is None:
        return rewrap_with_faults(choice, getattr(data, "executor", None))
    return choice


def run_coded(
    running: RunningMap,
    f: Function,
    coded: CodedData,
    options: MapOptions,
    observers: Observers,
    driver_f: Function | None = None,
    output: OutputSpec | None = None,
) -> tuple[Codeword, LazyReport]:
    """The results of f on the data blocks as soon as they are determined, and how they came about.

    `driver_f`: what f is on the driver, where that differs from what workers send of it; `output`:
    where results stay.
    """
    running.check_limits(coded, coded.data_blocks.rows_per_block)
    f, driver_f = coded.adapt_function(f), coded.adapt_function(driver_f or f)
    parity = range(len(coded.code.systematic_indices) or coded.n, coded.n)
    short, padding = coded.data_blocks.padded_block, None
    if short is not None:
        from polarmap.run.padding import Padding  # which few maps need

        padding = Padding(f, coded, options, is_stored=output is not None)
        short = short if padding.is_evaluated_apart else None
    payload = JobSpec(f, coded, output_spec=output, low_priority_tasks=parity, padded_block=short)
    kind = Codeword
    if options.estimates:
        from polarmap.run.estimates import UntilDeadline  # which few maps need

        kind = UntilDeadline
    need_of = functools.partial(kind, padding, driver_f, coded, options)
    policy = _policy(coded.code, options)
    if short is not None and not isinstance(coded.code, Uncoded):
        policy = WithBackupsOf(policy, coded.n, short[0])
    return running.execute(payload, policy, options, need_of, observers)


def _policy(code: LinearCode, options: MapOptions) -> Policy:
    """Which tasks of a map start at once, and which later."""
    if isinstance(code, Uncoded) and code.max_backups:
        return with_backups(code.n, code.max_backups)
    if options.schedule != "on_demand":
        return Policy(code.n)
    rule = ParityRule(code.recovery_threshold, options.runtimes)
    return OnDemand(code.n, rule, options.upfront, counts_decide=code.is_mds)
