"""The tasks of an encode, a check or a repair: done by workers, or by this process as the only worker."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from polarmap.arrays.reading import whole_before
from polarmap.arrays.stores import PartStore
from polarmap.codes.uncoded import DEFAULT_BACKUPS, Uncoded
from polarmap.dtypes import Array
from polarmap.errors import ExecutorError
from polarmap.executors import executor_of
from polarmap.executors.base import Coded, Function, Outcome, block_of
from polarmap.executors.transfers import Transfers, in_parallel
from polarmap.run.first_results import run_uncoded
from polarmap.run.options import MapOptions
from polarmap.run.running_map import Observers, RunningMap, counting
from polarmap.worker.messages import OutputSpec
from polarmap.worker.parts import Part
from polarmap.worker.pytree import Layout

SETTINGS = MapOptions(verify=False, retries=2)

# What is told of a task once its arrays are stored: its number, their parts, its note.
Take = Callable[[int, list[Part], Array], None]
# What stores an array from here: the task, the number of the array among those of the task, the array.
Put = Callable[[int, int, Array], Part]


class TaskRunner:
    """Has f called with the block of each task; it returns arrays, which are stored, and last a note.

    By workers of an executor, of which late ones get a backup, and the first copy counts. Without an executor
    by this process, one task after another: what the task before gave is stored meanwhile.

    parts : where the arrays are stored.
    is_here : whether this process is the worker.
    """

    def __init__(self, parts: PartStore, executor: Any, observers: Observers) -> None:
        self.parts, self.is_here = parts, executor is None
        self._executor = None if executor is None else executor_of(executor)
        self._observers = observers

    def run(
        self, f: Function, tasks: Coded, take: Take, output: OutputSpec | None = None, put: Put | None = None
    ) -> None:
        """Tell `take` of every task as it ends.

        output : where the arrays of each task are stored, and how large these and the note may be; without it
            f returns its note only.
        put : stores them from here, where that is to be elsewhere.
        """

        def put_as_workers(task: int, number: int, array: Array) -> Part:
            assert output is not None
            return self.parts.put(output.key(task, 0, number), array)

        if not tasks.n:
            return
        if self.is_here:
            self._run_here(f, tasks, take, put or put_as_workers)
        else:
            self._run_elsewhere(f, tasks, take, output)

    def _run_here(self, f: Function, tasks: Coded, take: Take, put: Put) -> None:
        storing: list[tuple[int, Transfers[Any, Part], Array]] = []  # of the task before

        def finish() -> None:
            task, parts, note = storing[0]
            take(task, parts.results(), note)
            storing.clear()
            show(task + 1)

        def stop() -> None:
            for _, parts, _ in storing:
                parts.stop()

        with contextlib.ExitStack() as stack:
            stack.callback(stop)
            show = stack.enter_context(counting(self._observers, tasks.n))
            for task in range(tasks.n):
                with whole_before():
                    *arrays, note = f(block_of(tasks, task))
                if storing:
                    finish()
                puts = [partial(put, task, number, array) for number, array in enumerate(arrays)]
                storing.append((task, Transfers(operator.call, puts), note))
            finish()

    def _run_elsewhere(self, f: Function, tasks: Coded, take: Take, output: OutputSpec | None) -> None:
        def ended(outcome: Outcome) -> None:
            parts, note = list(outcome.stored.parts) if outcome.stored else [], outcome.leaves[-1]
            if output is not None:
                note = self._whole(note, parts.pop())
            take(outcome.task, parts, note)

        if output is not None and output.source.kind == "driver":
            raise ExecutorError(
                f"the array goes to {output.source.place}, which workers cannot reach: leave executor out"
            )
        with_note = output and output._replace(arrays=output.arrays + 1)
        options = replace(SETTINGS, key=self.parts.key)
        running = RunningMap(self._executor)
        running.expect(Uncoded(tasks.n, DEFAULT_BACKUPS))
        run_uncoded(
            running, f, tasks, options, self._observers, ended, backups=DEFAULT_BACKUPS, output=with_note
        )

    def _whole(self, sample: Array, part: Part) -> Array:
        """The whole note of a task, read from storage where only a sample of it came with the reply."""
        if sample.nbytes == part.size:
            return sample
        with whole_before():
            return np.frombuffer(self.parts.get(part), sample.dtype)


class PartTasks(Coded):
    """For each task as many parts as for any other, each of which becomes one array."""

    def __init__(
        self, parts: PartStore, tasks: Sequence[Sequence[Part]], dtypes: Sequence[np.dtype[Any]]
    ) -> None:
        self._parts, self._tasks, self._dtypes = parts, tasks, dtypes
        self.n, self.structure = len(tasks), (list, (), (("array",),) * len(dtypes))
        self.source = parts.place

    def parts(self, index: int) -> tuple[Part, ...]:
        """The parts that the worker of task `index` reads."""
        return tuple(self._tasks[index])

    def layout(self, index: int) -> Layout:
        """Dtype and shape of the block of task `index`, which is read as one flat array."""
        return tuple(
            (dtype.str, (part.size // dtype.itemsize,))
            for part, dtype in zip(self._tasks[index], self._dtypes)
        )

    def piece(self, number: int) -> list[Array]:
        """The block of task `index`, read in this process for a worker that is this process."""
        read = in_parallel(self._parts.get, self._tasks[number])
        return [np.frombuffer(data, dtype) for data, dtype in zip(read, self._dtypes)]
