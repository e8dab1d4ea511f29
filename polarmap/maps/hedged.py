"""hedged_map: a plain map of any f over any data, whose stragglers are started again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from polarmap.blocks.uneven import (
    UncodedBlocks,
    cut_data_into_items,
    group_consecutive_items,
    items_to_arrays,
)
from polarmap.codes.uncoded import DEFAULT_BACKUPS, Uncoded
from polarmap.driver.batches import MAX_BATCHES, BatchPolicy, ItemSequence, can_batch_items, unpickle_result
from polarmap.driver.events import BlockReady, JobContext
from polarmap.driver.map_execution import MapExecution
from polarmap.driver.options import check_function, check_on_result, check_options
from polarmap.driver.prepared_map import PreparedMap, map_function
from polarmap.driver.results import CodedResult, LazyReport
from polarmap.driver.uncoded_collector import BatchCollector, execute_uncoded
from polarmap.errors import (
    CodeError,
    NotDecodableError,
    WorkerLostError,
    annotate_exception,
)
from polarmap.executors import resolve_executor
from polarmap.executors.interface import JobSpec, Outcome, to_failure
from polarmap.validation import check_positive_int, is_nonnegative_int
from polarmap.worker.pytree import Array, describe_type
from polarmap.worker.task_functions import make_call_task
from polarmap.worker.task_records import ErrorInfo

T = TypeVar("T")


@map_function
def hedged_map(
    f: Callable[..., T],
    data: Any,
    *,
    star: bool = False,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    blocks: int | None = None,
    executor: Any = None,
    backups: int = DEFAULT_BACKUPS,
    timeout: float | None = None,
    retries: int = 1,
    retry_delay: float = 0.0,
    return_exceptions: bool = False,
    on_result: Callable[[int, T], object] | None = None,
    progress: bool | None = None,
) -> PreparedMap[CodedResult[T]]:
    """Map any f over anything; what is late gets a backup, and the first result of each counts.

    For functions that no code commutes with. A straggler costs the time until it is known to be late, and
    one more run.

    Parameters
    ----------
    f : callable
        Any function. A late task may run twice: f should have no side effects that must not.
    data : array-like, sequence or iterable
        An array or data frame is cut by rows into nearly equal blocks; a tensor is read as numpy. Of a
        sequence or an iterator each item is a task: whatever can be pickled.
    star : bool
        Each item is a tuple of arguments: f(*item) in place of f(item).
    args, kwargs : sequence and dict, optional
        Further arguments of every call, behind those of the item.
    blocks : int, optional
        How many tasks: by default one for each item of a sequence, 24 for an array. With fewer tasks than
        items each calls f on neighbouring items in turn; there is still a result for each item.
    executor, timeout, retry_delay, progress : optional
        As for `coded_map`.
    retries : int
        How often an item is tried again on which f raised, or whose worker was lost. Short items travel
        together: if their worker is lost, each of them is started again alone, and that loss counts for
        none. An item that ends its worker every time ends at most `retries` + 2 of them, plus one for each
        backup.
    backups : int
        How many a task may get. It is late when it has run longer than eleven in twelve are expected to
        (`polarmap.planning.LatenessRule`), and longer than 0.1 s.
    return_exceptions : bool
        What f raised on an item, or a `WorkerLostError`, stands in the place of its result, and the other
        items go on. By default the first exception ends the map.
    on_result : callable, optional
        Called as `on_result(index, result)` once for each item, as soon as its result is there, on this
        thread. What it raises ends the map.

    Returns
    -------
    CodedResult
        What f returned for each. In its report, `attempts` of a task counts its backups.

    Raises
    ------
    Exception
        What f raised on an item, after `retries`; a note names the item.
    FunctionExitError
        f raised what would end the calling program or loop, such as SystemExit or StopIteration.
    CodeError
        Arguments that cannot be, or an item that cannot be pickled.
    NotDecodableError, CodedTimeoutError, ExecutorError
        As for `coded_map`; every task has to return.

    Examples
    --------
    >>> import numpy as np, polarmap
    >>> from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
    >>> slow = FaultyExecutor(ReplayExecutor(), {2: Fault("sleep", seconds=60)})
    >>> result = polarmap.hedged_map(np.sort, np.array([3, 1, 9, 5, 2, 8]), blocks=3, executor=slow)
    >>> [block.tolist() for block in result], result.report.seconds, result.report.tasks[2].attempts
    ([[1, 3], [5, 9], [2, 8]], 2.1, 2)
    >>> list(polarmap.hedged_map(pow, [(2, 5), (3, 2)], star=True, args=(7,), executor=slow))
    [4, 2]
    >>> list(polarmap.hedged_map(int, ["1", "two"], executor=slow, return_exceptions=True))
    [1, ValueError("invalid literal for int() with base 10: 'two'")]
    """
    check_function(f)
    check_on_result(on_result)
    options = check_options(False, None, timeout, retries, retry_delay=retry_delay)
    if not is_nonnegative_int(backups):
        raise CodeError(f"backups must be 0 or more, not {backups!r}")
    backups = int(backups)
    _check_call_arguments(star, args, kwargs, return_exceptions)
    execution = MapExecution(resolve_executor(executor))
    items = cut_data_into_items(data, None if blocks is None else check_positive_int("blocks", blocks), star)
    n_tasks = len(items) if blocks is None else min(blocks, len(items))
    is_grouped = n_tasks < len(items)
    execution.set_code(Uncoded(n_tasks, max_backups=1))
    if not items:
        build_report = partial(replace, execution.current_report(), verified="not needed", is_final=True)
        return PreparedMap(
            lambda context: CodedResult([], LazyReport(build_report)), execution.current_report
        )
    grouped_items = group_consecutive_items(items, n_tasks) if is_grouped else items
    range_ends = list(itertools.accumulate(map(len, grouped_items) if is_grouped else [1] * n_tasks))
    # the items of each task
    item_ranges = [range(start, end) for start, end in zip([0, *range_ends], range_ends)]
    use_batches = (
        not is_grouped and n_tasks > MAX_BATCHES and can_batch_items(execution.executor, backups, retries)
    )
    referenced_functions = list[Any]()
    task_arrays, is_pickled = items_to_arrays(
        grouped_items, referenced_functions, "block" if is_grouped else "item", use_batches
    )
    keep_exceptions = bool(return_exceptions)
    task_function = make_call_task(
        f, star, args, kwargs, is_pickled, is_grouped, keep_exceptions, referenced_functions
    )

    def label_task(task: int) -> str:
        return _format_item_label(item_ranges[task], len(items))

    def decode_outcome(outcome: Outcome) -> Sequence[Any]:
        item_range = item_ranges[outcome.task]
        if outcome.failure is not None:
            error = outcome.failure.cause or WorkerLostError(str(outcome.failure))
            return [annotate_exception(label_task(outcome.task), error)] * len(item_range)
        decoded = _decode_result(outcome.task, outcome.leaves[0], keep_exceptions)
        if not is_grouped:
            return [decoded]
        if not keep_exceptions:
            return decoded  # type: ignore[no-any-return]
        if isinstance(decoded, BaseException):
            return [decoded] * len(item_range)
        return [
            _get_item_result(item_result, item_index, len(items))
            for item_index, item_result in zip(item_range, decoded)
        ]

    def execute(context: JobContext) -> CodedResult[T]:
        values = dict[int, T]()

        def store_results(results: Iterable[tuple[int, Any]]) -> None:
            for item_index, value in results:
                values[item_index] = value
                if context.events is not None:
                    get_result = partial(values.__getitem__, item_index)
                    context.events.emit(BlockReady(item_index, get_result, is_final=True))

        def store_pickled_results(results: Sequence[tuple[int, bytes | Array]]) -> None:
            store_results(
                (item_index, _decode_result(item_index, data, keep_exceptions))
                for item_index, data in results
            )

        def on_outcome(outcome: Outcome) -> None:
            store_results(zip(item_ranges[outcome.task], decode_outcome(outcome)))

        if use_batches and is_pickled:
            blocks = BatchPolicy(True, n_tasks, backups, execution.executor.faults)
            blocks.enqueue_items(ItemSequence(None, blocks=task_arrays), range(n_tasks))
            make_collector = partial(
                BatchCollector,
                blocks,
                n_tasks,
                store_pickled_results,
                on_outcome,
                keep_exceptions,
                label_task,
            )
            report = execution.execute(
                JobSpec(task_function, blocks), blocks, options, make_collector, context
            )[1]
        else:
            task_blocks = UncodedBlocks([[task_array] for task_array in task_arrays], ("array",))
            report = execute_uncoded(
                execution,
                task_function,
                task_blocks,
                options,
                context,
                on_outcome,
                label_task,
                max_backups=backups,
                accept_failures=keep_exceptions,
            )
        return CodedResult([values[item_index] for item_index in range(len(items))], report)

    return PreparedMap(execute, execution.current_report, len(items))


def _decode_result(task_index: int, data: bytes | Array, keep_exceptions: bool) -> Any:
    """What f returned; NotDecodableError, raised unless it is kept, for what cannot be unpickled here."""
    try:
        return unpickle_result(data)
    except Exception as error:
        failure = NotDecodableError(
            f"the result of task {task_index} cannot be unpickled here: {type(error).__name__}: {error}"
        )
        failure.__cause__ = error
        if keep_exceptions:
            return failure
        raise failure from error


def _get_item_result(item_outcome: tuple[bool, Any], item_index: int, n_items: int) -> Any:
    """What f returned for one item of a block of several, or its exception."""
    has_returned, value = item_outcome
    if has_returned:
        return value
    error = to_failure(ErrorInfo(*value)).cause
    assert error is not None
    return annotate_exception(_format_item_label(range(item_index, item_index + 1), n_items), error)


def _format_item_label(item_range: range, n_items: int) -> str:
    """What an exception says of where it was raised.

    >>> _format_item_label(range(3, 4), 9), _format_item_label(range(3, 6), 9)
    ('item 3 of 9', 'one of items 3 to 5 of 9')
    """
    if len(item_range) == 1:
        return f"item {item_range[0]} of {n_items}"
    return f"one of items {item_range[0]} to {item_range[-1]} of {n_items}"


def _check_call_arguments(star: Any, args: Any, kwargs: Any, return_exceptions: Any) -> None:
    for name, choice in {"star": star, "return_exceptions": return_exceptions}.items():
        if not isinstance(choice, (bool, np.bool_)):
            raise CodeError(f"{name} must be True or False, not {choice!r:.100}")
    if not isinstance(args, (tuple, list)):
        raise CodeError(f"args must be a tuple, as in args=(value,), not {describe_type(args)}")
    if kwargs is not None and not (
        isinstance(kwargs, Mapping) and all(isinstance(key, str) for key in kwargs)
    ):
        raise CodeError(f"kwargs must be a dict with names as its keys, not {kwargs!r:.100}")
