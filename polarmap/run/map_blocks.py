"""One map of an f that a code commutes with, once its options have been checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from polarmap.blocks.base import CodedData
from polarmap.blocks.choose_code import CodeOptions
from polarmap.blocks.encode_data import encoded
from polarmap.blocks.join_results import without_padding
from polarmap.code.polar import PolarCode
from polarmap.errors import CodeError
from polarmap.executors.faulty import FaultyExecutor
from polarmap.run.coded_result import CodedResult
from polarmap.run.execute import Launch, run_coded
from polarmap.run.options import MapOptions
from polarmap.run.subtask_rows import check_rows
from polarmap.worker.pytree import unflatten

T = TypeVar("T")


def map_blocks(
    f: Callable[[Any], T],
    data: Any,
    code_options: CodeOptions,
    executor: Any,
    options: MapOptions,
    progress: bool | None,
) -> CodedResult[T]:
    """The results of f on the blocks of the data, which come home."""
    launch, coded = prepared(data, code_options, executor, options)
    collected, report = run_coded(launch, f, coded, options, progress)
    whole = without_padding(collected.results, coded.blocks, collected.rows)
    return CodedResult([unflatten(collected.structure, leaves) for leaves in whole], report)


def prepared(
    data: Any, code_options: CodeOptions, executor: Any, options: MapOptions
) -> tuple[Launch, CodedData]:
    """A launch on the executor that the caller means, and the coded blocks; CodeError if they do not fit."""
    launch = Launch(_executor(executor, data))
    coded = encoded(data, code_options, options.rtol)
    if options.subtasks > 1:
        check_rows(coded, options.subtasks)
    if options.deadline is not None and not isinstance(coded.code, PolarCode):
        raise CodeError(
            "on_timeout='estimate' estimates blocks of linear f: not with degree=, Masked or the code "
            f"{coded.code!r}"
        )
    return launch, coded


def _executor(choice: Any, data: Any) -> Any:
    """Where a stored array's workers can read it, when the caller does not say."""
    if choice is None:
        return getattr(data, "executor", None)
    if isinstance(choice, FaultyExecutor) and choice.executor is None:
        return FaultyExecutor(_executor(None, data), choice.faults)
    return choice
