"""hedged_map: a plain map of any f over any data, whose stragglers are started again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from polarmap.blocks.uneven import UncodedBlocks, cut_into_items, group_consecutive, items_to_arrays
from polarmap.codes.uncoded import DEFAULT_BACKUPS, Uncoded
from polarmap.errors import (
    CodeError,
    NotDecodableError,
    WorkerLostError,
    raised_by,
)
from polarmap.executors import collect_injected_faults
from polarmap.executors.interface import JobSpec, Outcome, to_failure
from polarmap.run.batches import MOST_BATCHES, Batches, Items, go_together, value_of
from polarmap.run.first_results import FirstOfItems, run_uncoded
from polarmap.run.options import check_function, checked_options
from polarmap.run.prepared_map import PreparedMap, verb
from polarmap.run.reports import LazyReport
from polarmap.run.results import CodedResult
from polarmap.run.running_map import Observers, RunningMap
from polarmap.validation import check_positive_int, is_nonnegative_int
from polarmap.worker.pytree import Array, describe_type
from polarmap.worker.task_functions import make_call_task
from polarmap.worker.task_records import ErrorInfo

T = TypeVar("T")


@verb
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
    return_exceptions: bool = False,
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
    executor, timeout, progress : optional
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
    options = checked_options(False, None, timeout, retries)
    if not is_nonnegative_int(backups):
        raise CodeError(f"backups must be 0 or more, not {backups!r}")
    backups = int(backups)
    _check_arguments(star, args, kwargs, return_exceptions)
    running = RunningMap(executor)
    items = cut_into_items(data, None if blocks is None else check_positive_int("blocks", blocks), star)
    count = len(items) if blocks is None else min(blocks, len(items))
    is_group = count < len(items)
    running.expect(Uncoded(count, max_backups=1))
    if not items:
        nothing = partial(replace, running.report(), verified="not needed", is_final=True)
        return PreparedMap(lambda observers: CodedResult([], LazyReport(nothing)), running)
    groups = group_consecutive(items, count) if is_group else items
    ends = list(itertools.accumulate(map(len, groups) if is_group else [1] * count))
    spans = [range(start, end) for start, end in zip([0, *ends], ends)]  # the items of each task
    are_many = not is_group and count > MOST_BATCHES and go_together(running.executor, backups, retries)
    reached = list[Any]()
    parts, is_pickled = items_to_arrays(groups, reached, "block" if is_group else "item", are_many)
    keeps = bool(return_exceptions)
    call = make_call_task(f, star, args, kwargs, is_pickled, is_group, keeps, reached)

    def who(task: int) -> str:
        return _items(spans[task], len(items))

    def values_of(outcome: Outcome) -> Sequence[Any]:
        span = spans[outcome.task]
        if outcome.failure is not None:
            error = outcome.failure.cause or WorkerLostError(str(outcome.failure))
            return [raised_by(who(outcome.task), error)] * len(span)
        found = _value(outcome.task, outcome.leaves[0], keeps)
        if not is_group:
            return [found]
        if not keeps:
            return found  # type: ignore[no-any-return]
        if isinstance(found, BaseException):
            return [found] * len(span)
        return [_one_of_group(one, index, len(items)) for index, one in zip(span, found)]

    def run(observers: Observers) -> CodedResult[T]:
        values = dict[int, T]()

        def take(some: Iterable[tuple[int, Any]]) -> None:
            for index, value in some:
                values[index] = value
                for one in observers:
                    one.arrived(index, partial(values.__getitem__, index))

        def take_data(some: Sequence[tuple[int, bytes | Array]]) -> None:
            take((index, _value(index, data, keeps)) for index, data in some)

        def note(outcome: Outcome) -> None:
            take(zip(spans[outcome.task], values_of(outcome)))

        if are_many and is_pickled:
            blocks = Batches(True, count, backups, collect_injected_faults(running.executor))
            blocks.append(Items(None, blocks=parts), range(count))
            need_of = partial(FirstOfItems, blocks, count, take_data, note, keeps, who)
            report = running.execute(JobSpec(call, blocks), blocks, options, need_of, observers)[1]
        else:
            coded = UncodedBlocks([[part] for part in parts], ("array",))
            report = run_uncoded(
                running, call, coded, options, observers, note, who, backups=backups, keeps_failures=keeps
            )
        return CodedResult([values[index] for index in range(len(items))], report)

    return PreparedMap(run, running, len(items))


def _value(task: int, data: bytes | Array, keeps: bool) -> Any:
    """What f returned; NotDecodableError, raised unless it is kept, for what cannot be unpickled here."""
    try:
        return value_of(data)
    except Exception as error:
        failure = NotDecodableError(
            f"the result of task {task} cannot be unpickled here: {type(error).__name__}: {error}"
        )
        failure.__cause__ = error
        if keeps:
            return failure
        raise failure from error


def _one_of_group(told: tuple[bool, Any], index: int, count: int) -> Any:
    """What f returned for one item of a block of several, or its exception."""
    has_returned, value = told
    if has_returned:
        return value
    error = to_failure(ErrorInfo(*value)).cause
    assert error is not None
    return raised_by(_items(range(index, index + 1), count), error)


def _items(span: range, count: int) -> str:
    """What an exception says of where it was raised.

    >>> _items(range(3, 4), 9), _items(range(3, 6), 9)
    ('item 3 of 9', 'one of items 3 to 5 of 9')
    """
    if len(span) == 1:
        return f"item {span[0]} of {count}"
    return f"one of items {span[0]} to {span[-1]} of {count}"


def _check_arguments(star: Any, args: Any, kwargs: Any, return_exceptions: Any) -> None:
    for name, choice in {"star": star, "return_exceptions": return_exceptions}.items():
        if not isinstance(choice, (bool, np.bool_)):
            raise CodeError(f"{name} must be True or False, not {choice!r:.100}")
    if not isinstance(args, (tuple, list)):
        raise CodeError(f"args must be a tuple, as in args=(value,), not {describe_type(args)}")
    if kwargs is not None and not (
        isinstance(kwargs, Mapping) and all(isinstance(key, str) for key in kwargs)
    ):
        raise CodeError(f"kwargs must be a dict with names as its keys, not {kwargs!r:.100}")
