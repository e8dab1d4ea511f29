"""Provide `hedged_map`, which applies any function to items and starts backups of late tasks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from polarmap.blocks.uneven import convert_items_to_blocks, cut_data_into_items, split_range_evenly
from polarmap.codes.uncoded import DEFAULT_BACKUPS, Uncoded
from polarmap.driver.batch_collectors import BatchCollector, FixedBatchCollector, QueuedBatchCollector
from polarmap.driver.batch_policy import MAX_BATCHES, BatchPolicy, can_batch_items
from polarmap.driver.batches import Batch, BatchBlocks, ItemSequence, QueuedBatchBlocks
from polarmap.driver.collector import JobTimer
from polarmap.driver.events import JobContext
from polarmap.driver.item_results import ItemResults
from polarmap.driver.map_execution import MapExecution
from polarmap.driver.options import Progress, check_function, check_on_result, check_options
from polarmap.driver.policies import SchedulingPolicy, make_backup_policy
from polarmap.driver.prepared_map import PreparedMap, map_function
from polarmap.driver.results import CodedResult, LazyReport
from polarmap.driver.task_table import TaskTable
from polarmap.errors import CodeError
from polarmap.executors import resolve_executor
from polarmap.executors.interface import JobSpec
from polarmap.validation import check_positive_int, is_nonnegative_int
from polarmap.worker.pytree import describe_type
from polarmap.worker.task_functions import make_call_task

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
    progress: Progress = None,
) -> PreparedMap[CodedResult[T]]:
    """Apply any function to items in parallel, and start a second copy (a backup) of each task that is late.

    Use it for functions that `coded_map` cannot handle, such as most nonlinear ones. The first result of each
    item is returned. A slow worker thus costs only the time until its task is detected as late, plus one more
    run of the task.

    Parameters
    ----------
    f : callable
        Any function. A late task may run twice, so f should have no side effects that must happen exactly
        once.
    data : array-like, sequence or iterable
        The items. An array or a data frame is cut by rows into nearly equal blocks, each of which is an item.
        A tensor is read as a numpy array. The items of a sequence or an iterator may be anything that can be
        pickled.
    star : bool
        Whether each item is a tuple of arguments: call f(*item) instead of f(item).
    args, kwargs : sequence and dict, optional
        Further arguments for every call, after the item itself.
    blocks : int, optional
        The number of tasks. By default, there is one for each item of a sequence, and 24 for an array. With
        fewer tasks than items, each task calls f on neighbouring items in turn. There is still a result for
        each item.
    executor, timeout, retry_delay, progress : optional
        As for `coded_map`.
    retries : int
        How often to retry an item on which f raised an exception or whose worker was lost. Items in one of
        the `blocks` are retried together. Other short items are also sent together, but if their worker is
        lost, each of them is restarted alone, and that loss does not count. An item that kills its worker
        every time kills at most `retries` + 2 workers, plus one for each of its backups.
    backups : int
        The maximum number of backups per task. A task is late when it has run longer than 0.1 s and longer
        than the estimated run time of 11 in 12 tasks (`polarmap.planning.LatenessRule`).
    return_exceptions : bool
        Whether an exception that f raises on an item, or a `WorkerLostError`, becomes the result of that item
        while the map continues. By default, the first exception ends the map.
    on_result : callable, optional
        Called as `on_result(index, result)` once for each item, as soon as its result has arrived, on
        this thread. An exception that it raises ends the map.

    Returns
    -------
    CodedResult
        The return value of f for each item. In its report, `attempts` of a task counts its backups.

    Raises
    ------
    Exception
        The exception that f raised on an item, after `retries` further attempts. A note names the item.
    FunctionExitError
        If f raised an exception that would end the calling program or loop, such as SystemExit or
        StopIteration.
    CodeError
        If an argument is invalid, or an item cannot be pickled.
    NotDecodableError, CodedTimeoutError, ExecutorError
        As for `coded_map`. Every task has to return.

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
    n_items, n_tasks = len(items), len(items) if blocks is None else min(blocks, len(items))
    execution.set_code(Uncoded(n_tasks, max_backups=1))
    if not items:
        build_report = partial(replace, execution.current_report(), verified="not needed", is_final=True)
        empty_result = CodedResult[T]([], LazyReport(build_report))
        return PreparedMap(lambda context: empty_result, execution.current_report)
    is_grouped = n_tasks < n_items
    can_batch = blocks is None and n_tasks > MAX_BATCHES
    can_batch = can_batch and can_batch_items(execution.executor, backups, retries)
    referenced_objects = list[Any]()
    item_blocks, is_pickled = convert_items_to_blocks(
        items, referenced_objects, batch_small_items=can_batch or is_grouped, pickle_arrays=is_grouped
    )
    must_queue = can_batch and is_pickled
    sequence = ItemSequence(None, blocks=item_blocks)
    task_function = make_call_task(
        f, star, args, kwargs, is_pickled, may_stop_early=must_queue, referenced_objects=referenced_objects
    )

    def execute(context: JobContext) -> CodedResult[T]:
        results = ItemResults(n_items, bool(return_exceptions), context.events)
        task_blocks: BatchBlocks
        policy: SchedulingPolicy
        make_collector: Callable[[TaskTable, JobTimer], BatchCollector]
        if must_queue:
            task_blocks = QueuedBatchBlocks()
            faults = execution.executor.faults
            policy = batch_policy = BatchPolicy(task_blocks, True, n_tasks, backups, faults)
            batch_policy.enqueue_items(sequence, range(n_items))
            make_collector = partial(QueuedBatchCollector, batch_policy, task_blocks, results)
        else:
            item_ranges = itertools.starmap(range, split_range_evenly(n_items, n_tasks))
            task_blocks = BatchBlocks([Batch(sequence, item_range) for item_range in item_ranges])
            execution.check_backend_limits(task_blocks)
            policy = make_backup_policy(n_tasks, backups)
            make_collector = partial(FixedBatchCollector, task_blocks, results)
        job_spec = JobSpec(task_function, task_blocks, user_function=f, name=execution.job_name)
        _, report = execution.execute(job_spec, policy, options, make_collector, context)
        return CodedResult([results.values[item_index] for item_index in range(n_items)], report)

    return PreparedMap(execute, execution.current_report, n_items)


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
