"""Run the tasks that encode, check or repair a coded array, on workers or in this process.

A task reads one stripe (the same slice of every block). It returns arrays to store and a small summary. The
worker that ran the task stores the arrays. The summary is sent back and passed to a callback.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from polarmap.arrays.reading import convert_damage_to_decoding_error
from polarmap.arrays.stores import SegmentStore
from polarmap.codes.uncoded import DEFAULT_BACKUPS, Uncoded
from polarmap.driver.events import JobContext
from polarmap.driver.map_execution import MapExecution
from polarmap.driver.options import MapOptions
from polarmap.driver.uncoded_collector import execute_uncoded
from polarmap.dtypes import Array
from polarmap.executors import resolve_executor
from polarmap.executors.interface import Function, Outcome, TaskBlocks, build_block
from polarmap.executors.transfers import ParallelTransfers, map_in_parallel
from polarmap.worker.pytree import Layout
from polarmap.worker.segments import Segment
from polarmap.worker.task_records import OutputSpec

JOB_OPTIONS = MapOptions(verify=False, retries=2)

# A callback for a finished task. It is called once the arrays of the task are stored, with the task index,
# the segments (byte ranges of objects) that hold the arrays, and the summary that the task returned.
OnTaskDone = Callable[[int, list[Segment], Array], None]
# A function that stores one array returned by a task. It is called with the task index, the index of the
# array in the task, and the array. It returns the segment (byte range of an object) that holds the array.
StoreArray = Callable[[int, int, Array], Segment]


class ArrayJobRunner:
    """Runs a function for each task of encoding, checking or repairing an array, and stores its results.

    The function must return a list: the arrays to store, followed by a summary of the task. If there is an
    executor, its workers run the tasks, with backup tasks for stragglers. Otherwise, this process runs one
    task at a time while the arrays of the previous task are being stored.

    Parameters
    ----------
    segment_store : SegmentStore
        The storage to which the arrays are written.
    executor : optional
        Where the tasks run, as for `coded_map`. None for this process.
    context : JobContext
        The observers of the job, and the means to cancel it.

    Attributes
    ----------
    segment_store : SegmentStore
        The storage to which the arrays are written.
    is_local : bool
        Whether this process runs the tasks.
    """

    def __init__(self, segment_store: SegmentStore, executor: Any, context: JobContext) -> None:
        self.segment_store, self.is_local = segment_store, executor is None
        self._executor = resolve_executor(executor)
        self._context = context

    def run_tasks(
        self,
        f: Function,
        task_blocks: TaskBlocks,
        on_task_done: OnTaskDone,
        output: OutputSpec | None = None,
        store_array: StoreArray | None = None,
    ) -> None:
        """Run all tasks, and call `on_task_done` for each task once its arrays are stored.

        Parameters
        ----------
        f : callable
            Called with a task's input block; returns a list of the arrays to store and a summary.
        task_blocks : TaskBlocks
            The input block of each task.
        on_task_done : callable
            Called with the task, the segments (byte ranges of objects) that hold its arrays, and its summary.
        output : OutputSpec, optional
            Where to store the arrays of a task, and how large they may be. None if f returns only a summary.
        store_array : callable, optional
            Called to store an array if this process runs the tasks. By default, arrays are stored as
            specified by `output`.
        """

        def store_task_array(task: int, array_index: int, array: Array) -> Segment:
            assert output is not None
            return self.segment_store.put(output.make_object_key(task, 0, array_index), array)

        if not task_blocks.n:
            return
        if self.is_local:
            self._run_locally(f, task_blocks, on_task_done, store_array or store_task_array)
        else:
            self._run_on_workers(f, task_blocks, on_task_done, output)

    def _run_locally(
        self, f: Function, task_blocks: TaskBlocks, on_task_done: OnTaskDone, store_array: StoreArray
    ) -> None:
        # While a task runs, other threads store the arrays of the previous task. The list is empty, or it
        # contains only the previous task, as a tuple (task index, transfers to the storage, task summary).
        pending_stores: list[tuple[int, ParallelTransfers[Any, Segment], Array]] = []

        def finish_pending_stores() -> None:
            task, transfers, summary = pending_stores[0]
            on_task_done(task, transfers.wait_for_results(), summary)
            pending_stores.clear()
            show_progress(task + 1)

        def stop_pending_stores() -> None:
            for _, transfers, _ in pending_stores:
                transfers.stop()

        with contextlib.ExitStack() as stack:
            stack.callback(stop_pending_stores)
            show_progress = stack.enter_context(self._context.track_encoding_progress(task_blocks.n))
            for task in range(task_blocks.n):
                with convert_damage_to_decoding_error():
                    *arrays, summary = f(build_block(task_blocks, task))
                if pending_stores:
                    finish_pending_stores()
                store_calls = [
                    partial(store_array, task, array_index, array) for array_index, array in enumerate(arrays)
                ]
                pending_stores.append((task, ParallelTransfers(operator.call, store_calls), summary))
            finish_pending_stores()

    def _run_on_workers(
        self, f: Function, task_blocks: TaskBlocks, on_task_done: OnTaskDone, output: OutputSpec | None
    ) -> None:
        def on_outcome(outcome: Outcome) -> None:
            segments = list(outcome.result_ref.segments) if outcome.result_ref else []
            summary = outcome.leaves[-1]
            if output is not None:
                summary = self._load_task_summary(summary, segments.pop())
            on_task_done(outcome.task, segments, summary)

        output_with_summary = output and output._replace(n_arrays=output.n_arrays + 1)
        options = replace(JOB_OPTIONS, key=self.segment_store.encryption_key)
        execution = MapExecution(self._executor)
        execution.set_code(Uncoded(task_blocks.n, DEFAULT_BACKUPS))
        execute_uncoded(
            execution,
            f,
            task_blocks,
            options,
            self._context,
            on_outcome,
            max_backups=DEFAULT_BACKUPS,
            output=output_with_summary,
        )

    def _load_task_summary(self, returned_summary: Array, summary_segment: Segment) -> Array:
        """Return the complete summary of a task, which is the last array that its function has returned.

        Workers store each summary. They return it directly only if it is short, and otherwise return a sample
        of its entries. In the second case, the summary is read from storage.
        """
        if returned_summary.nbytes == summary_segment.size:
            return returned_summary
        with convert_damage_to_decoding_error():
            return np.frombuffer(self.segment_store.get(summary_segment), returned_summary.dtype)


class SegmentTaskBlocks(TaskBlocks):
    """The input blocks of tasks that read stored segments.

    A segment is a byte range of an object. The input of a task is a list of flat arrays, one per segment. All
    tasks have the same number of segments.
    """

    def __init__(
        self,
        segment_store: SegmentStore,
        segments_by_task: Sequence[Sequence[Segment]],
        dtypes: Sequence[np.dtype[Any]],
    ) -> None:
        self._segment_store, self._segments_by_task, self._dtypes = segment_store, segments_by_task, dtypes
        self.n, self.structure = len(segments_by_task), (list, (), (("array",),) * len(dtypes))
        self.location = segment_store.location

    def block_segments(self, task: int) -> tuple[Segment, ...]:
        """Return the segments (byte ranges of stored objects) that the worker of a task has to read."""
        return tuple(self._segments_by_task[task])

    def block_layout(self, task: int) -> Layout:
        """Return the dtype and shape of each input array of a task. All arrays are one-dimensional."""
        return tuple(
            (dtype.str, (segment.size // dtype.itemsize,))
            for segment, dtype in zip(self._segments_by_task[task], self._dtypes)
        )

    def component_leaves(self, component: int) -> list[Array]:
        """Read the input arrays of a task in this process, instead of on a worker."""
        buffers = map_in_parallel(self._segment_store.get, self._segments_by_task[component])
        return [np.frombuffer(buffer, dtype) for buffer, dtype in zip(buffers, self._dtypes)]
