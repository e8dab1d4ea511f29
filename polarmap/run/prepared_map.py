"""A map before it begins, and the functions that make one: calls of them run it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from polarmap.blocks.code_choice import CodeOptions, encoded
from polarmap.blocks.coded import CodedData
from polarmap.code.polar import PolarCode
from polarmap.errors import CodeError, without_our_frames
from polarmap.executors.base import key_of
from polarmap.executors.faulty import FaultyExecutor
from polarmap.run.execute import run_coded
from polarmap.run.observers import observers_of
from polarmap.run.options import MapOptions
from polarmap.run.results import CodedResult
from polarmap.run.running_map import Observers, RunningMap

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
    no_estimates: str = "is of results that coded_map brings home: not with another verb= or out="


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

    def run(observers: Observers) -> CodedResult[T]:
        word, report = run_coded(running, f, coded, options, observers)
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
    coded = encoded(data, code_options, options.rtol, options.parity_for)
    if options.key is not None and coded.source is not None and options.key != key_of(coded):
        how = "encrypted: leave key out" if key_of(coded) else "as they are: encode(..., key=) encrypts them"
        raise CodeError(f"key= encrypts data from memory, and these lie in storage, {how}")
    if options.estimates and not isinstance(coded.code, PolarCode):
        raise CodeError(f"on_timeout='estimate' {_no_estimates(coded)}")
    known = {"padding": coded.blocks.padding, "code_reason": coded.code_reason}
    running.expect(coded.code, schedule=options.schedule, **known)
    return running, coded


def _executor(choice: Any, data: Any) -> Any:
    """Where a stored array's workers can read it, when the caller does not say."""
    if choice is None:
        return getattr(data, "executor", None)
    if isinstance(choice, FaultyExecutor) and choice.executor is None:
        return FaultyExecutor(_executor(None, data), choice.faults)
    return choice
