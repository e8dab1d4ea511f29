"""The tasks of an encode, a check or a repair: done by workers, or by this process as the only worker."""

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

# What is told of a task once its arrays are stored: its number, their parts, its note.
OnTaskDone = Callable[[int, list[Segment], Array], None]
# What stores an array from here: the task, the number of the array among those of the task, the array.
StoreArray = Callable[[int, int, Array], Segment]


class ArrayJobRunner:
    """Has f called with the block of each task; it returns arrays, which are stored, and last a note.

    By workers of an executor, of which late ones get a backup, and the first copy counts. Without an executor
    by this process, one task after another: what the task before gave is stored meanwhile.

    segment_store : where the arrays are stored.
    is_local : whether this process is the worker.
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
        """Tell `on_task_done` of every task as it ends.

        output : where the arrays of each task are stored, and how large these and the note may be; without it
            f returns its note only.
        store_array : stores them from here, where that is to be elsewhere.
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
        pending_stores: list[tuple[int, ParallelTransfers[Any, Segment], Array]] = []  # of the task before

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
            show_progress = stack.enter_context(self._context.count_stripes(task_blocks.n))
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
        """The whole note of a task, read from storage where only a sample of it came with the reply."""
        if returned_summary.nbytes == summary_segment.size:
            return returned_summary
        with convert_damage_to_decoding_error():
            return np.frombuffer(self.segment_store.get(summary_segment), returned_summary.dtype)


class SegmentTaskBlocks(TaskBlocks):
    """For each task as many parts as for any other, each of which becomes one array."""

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
        """The parts that the worker of task `task` reads."""
        return tuple(self._segments_by_task[task])

    def block_layout(self, task: int) -> Layout:
        """Dtype and shape of the block of task `task`, which is read as one flat array."""
        return tuple(
            (dtype.str, (segment.size // dtype.itemsize,))
            for segment, dtype in zip(self._segments_by_task[task], self._dtypes)
        )

    def component_leaves(self, component: int) -> list[Array]:
        """The block of task `index`, read in this process for a worker that is this process."""
        buffers = map_in_parallel(self._segment_store.get, self._segments_by_task[component])
        return [np.frombuffer(buffer, dtype) for buffer, dtype in zip(buffers, self._dtypes)]
