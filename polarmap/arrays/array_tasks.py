"""The tasks of an encode, a check or a repair: done by workers, or by this process as the only worker."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.arrays.fetching import TRANSFERS, fetch
from polarmap.arrays.stores import place_of
from polarmap.blocks.coded import WholeBlocks
from polarmap.code.uncoded import BACKUPS, Uncoded
from polarmap.errors import ExecutorError, NotDecodableError, StorageError
from polarmap.executors import executor_of
from polarmap.executors.base import Coded, Function, Outcome, block_of
from polarmap.run.execute import run_uncoded
from polarmap.run.options import MapOptions
from polarmap.run.running_map import Observers, RunningMap, counting
from polarmap.storage import Store
from polarmap.worker.encryption import Encryption
from polarmap.worker.parts import DamagedError, Part
from polarmap.worker.pytree import Layout
from polarmap.worker.stored_output import OutputSpec

Array = npt.NDArray[Any]

SETTINGS = MapOptions(verify=False, retries=2)

# What is told of a task once its arrays are stored: its number, their parts, its note.
Take = Callable[[int, list[Part], Array], None]


class StoredArrays(NamedTuple):
    """What `run` is told of arrays that tasks are to store: how many each task stores, and where they go.

    prefix : of the keys of what workers store.
    arrays : of each task.
    items : numbers in the largest of them, or in the note.
    put : stores one from here: the task, its number among those of the task, its numbers. None if nobody
        does so from here.
    """

    prefix: str
    arrays: int
    items: int
    put: Callable[[int, int, Array], Part] | None = None


class TaskRunner:
    """Has f called with the block of each task; it returns arrays, which are stored, and last a note.

    By workers of an executor, of which late ones get a backup, and the first copy counts. Without an executor
    by this process, one task after another: what the task before gave is stored meanwhile.

    Attributes
    ----------
    store : Store
    is_here : bool
        Whether this process is the worker.
    """

    def __init__(
        self, store: Store, executor: Any, observers: Observers, encryption: Encryption | None = None
    ) -> None:
        self.store, self.is_here = store, executor is None
        self._executor = None if executor is None else executor_of(executor)
        self._observers, self._encryption = observers, encryption

    def run(self, f: Function, tasks: Coded, take: Take, stored: StoredArrays | None = None) -> None:
        """Tell `take` of every task as it ends; without `stored`, f returns its note only."""
        if not tasks.n:
            return
        if self.is_here:
            self._run_here(f, tasks, take, stored)
        else:
            self._run_elsewhere(f, tasks, take, stored)

    def _run_here(self, f: Function, tasks: Coded, take: Take, stored: StoredArrays | None) -> None:
        storing: deque[tuple[int, list[Future[Part]], Array]] = deque()

        def finish() -> None:
            task, sent, note = storing.popleft()
            take(task, [one.result() for one in sent], note)
            show(task + 1)

        pool = ThreadPoolExecutor(TRANSFERS)
        with contextlib.ExitStack() as stack:
            stack.callback(pool.shutdown, cancel_futures=True)
            show = stack.enter_context(counting(self._observers, tasks.n))
            for task in range(tasks.n):
                *arrays, note = f(_block(tasks, task))
                if storing:
                    finish()
                put = stored and stored.put
                sent = [pool.submit(put, task, *one) for one in enumerate(arrays)] if put else []
                storing.append((task, sent, note))
            finish()

    def _run_elsewhere(self, f: Function, tasks: Coded, take: Take, stored: StoredArrays | None) -> None:
        def ended(outcome: Outcome) -> None:
            assert outcome.leaves is not None
            parts, note = list(outcome.stored.parts) if outcome.stored else [], outcome.leaves[-1]
            if stored is not None:
                note = self._whole(note, parts.pop())
            take(outcome.task, parts, note)

        output, options = None, SETTINGS
        if stored is not None:
            place = place_of(self.store, self._encryption)
            if place.kind == "driver":
                raise ExecutorError(
                    f"the array goes to {place.place}, which workers cannot reach: leave executor out"
                )
            output = OutputSpec(place, stored.prefix, stored.items, stored.arrays + 1)
        if self._encryption is not None:
            options = replace(SETTINGS, key=self._encryption.key)
        running = RunningMap(self._executor)
        running.expect(Uncoded(tasks.n, BACKUPS))
        run_uncoded(running, f, tasks, options, self._observers, ended, backups=BACKUPS, output=output)

    def _whole(self, sample: Array, part: Part) -> Array:
        """The whole note of a task, read from storage where only a sample of it came with the reply."""
        if sample.nbytes == part.size:
            return sample
        data = fetch(self.store, part, self._encryption)
        if isinstance(data, str):
            raise StorageError(f"what a worker has noted in {part.key} is {data}: call it again")
        return np.frombuffer(data, sample.dtype)


def _block(tasks: Coded, task: int) -> Any:
    """The block of a task, read by this process."""
    try:
        return block_of(tasks, task)
    except DamagedError as error:
        raise NotDecodableError(f"{error}, since it was looked at: call it again") from error


class PartTasks(WholeBlocks):
    """For each task as many parts as for any other, each of which becomes one array."""

    def __init__(
        self,
        store: Store,
        encryption: Encryption | None,
        tasks: Sequence[Sequence[Part]],
        dtypes: Sequence[np.dtype[Any]],
    ) -> None:
        self._store, self._encryption, self._tasks, self._dtypes = store, encryption, tasks, dtypes
        self.n, self.structure = len(tasks), (list, (), (("array",),) * len(dtypes))
        self.source = place_of(store, encryption)

    def parts(self, index: int) -> tuple[Part, ...]:
        """The parts that the worker of task `index` reads; it verifies the tags of encrypted ones."""
        parts = self._tasks[index]
        return tuple(parts if self._encryption is None else (part._replace(crc32=None) for part in parts))

    def layout(self, index: int) -> Layout:
        """Dtype and shape of the block of task `index`, which is read as one flat array."""
        return tuple(
            (dtype.str, (part.size // dtype.itemsize,))
            for part, dtype in zip(self._tasks[index], self._dtypes)
        )

    def piece(self, number: int) -> list[Array]:
        """The block of task `index`, read in this process for a worker that is this process."""
        with ThreadPoolExecutor(TRANSFERS) as pool:
            read = pool.map(self._read, self._tasks[number])
            return [
                np.frombuffer(data, dtype).reshape(shape)
                for data, (dtype, shape) in zip(read, self.layout(number))
            ]

    def _read(self, part: Part) -> bytes:
        data = fetch(self._store, part, self._encryption)
        if isinstance(data, str):
            raise DamagedError(f"{part.key} is {data}")
        return data
