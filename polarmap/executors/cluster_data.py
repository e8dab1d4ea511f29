"""Data that lie on the cluster of Dask or Ray: references to blocks, and calls made of them there."""

from __future__ import annotations

import operator
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple, Protocol

from polarmap.errors import CodeError, ExecutorError
from polarmap.executors.choices import is_of_dask, is_of_ray
from polarmap.executors.dask import SCHEDULER_SECONDS, DaskClient
from polarmap.executors.ray import RayCluster


class Cluster(Protocol):
    """The engine of a cluster as what keeps blocks. Its own tasks take references in the place of arguments.

    kind : of the place where they lie, for workers.
    """

    kind: str

    def call(self, function: Callable[..., Any], *arguments: Any, outputs: int = 1) -> list[Any]:
        """References to what a call there gives: to each item of a sequence of so many `outputs`."""
        ...

    def fetch(self, references: Sequence[Any]) -> list[Any]:
        """What lies there, brought here."""
        ...

    def cut(self, data: Any, blocks: int | None) -> CutData | None:
        """Data that lie there as blocks; None for what does not."""
        ...

    def names(self, references: Sequence[Any]) -> list[Any]:
        """By which workers that stay find these."""
        ...


class CutData(NamedTuple):
    """Data on a cluster, cut into blocks.

    pieces : for each block references to what its rows are joined from.
    total : rows of all; None where each block was given by itself.
    """

    cluster: Cluster
    pieces: Sequence[Sequence[Any]]
    total: int | None


class DaskFutures:
    """Those of a client.

    Parameters
    ----------
    choice : a client, or what its `get_executor()` gives
    """

    kind = "dask"

    def __init__(self, choice: Any) -> None:
        self._dask = DaskClient(choice)
        self._client, self._options = self._dask.client, self._dask.options

    def call(self, function: Callable[..., Any], *arguments: Any, outputs: int = 1) -> list[Any]:
        """Futures of a task, or of the items that it gives."""
        name, submit = f"polarmap-data-{uuid.uuid4()}", self._client.submit
        options = {"pure": False, **self._options}
        whole = submit(function, *arguments, key=name, **options)
        if outputs == 1:
            return [whole]
        items = range(outputs)
        return [submit(operator.getitem, whole, item, key=f"{name}-{item}", **options) for item in items]

    def fetch(self, references: Sequence[Any]) -> list[Any]:
        """Return the results of futures."""
        return self._dask.fetch_all(references)

    def cut(self, data: Any, blocks: int | None) -> CutData | None:
        """A list of futures, or the rows of a `dask.array` or Dask DataFrame."""
        import distributed

        if isinstance(data, list):
            are_ours = all(isinstance(one, distributed.Future) for one in data)
            return CutData(self, [[one] for one in data], None) if are_ours else None
        with self._client.as_current():
            if hasattr(data, "to_dask_array"):
                data = data.to_dask_array(lengths=True)
            if not hasattr(data, "rechunk") or not data.ndim:
                return None
            if any(length != length for length in data.shape):  # NaN: Dask has not looked
                data = data.compute_chunk_sizes()
            rows = rows_each(data.shape[0], blocks, data.numblocks[0])
            cut = data.rechunk((rows, *data.shape[1:]))
            pieces = self._client.compute(list(cut.to_delayed().ravel()))
        return CutData(self, [[one] for one in pieces], data.shape[0])

    def names(self, references: Sequence[Any]) -> list[Any]:
        """The keys of futures, once there is something behind each; ExecutorError if its scheduler goes."""
        import distributed

        wait: Any = distributed.wait
        with self._client.as_current():
            while True:
                with suppress(TimeoutError):
                    wait(list(references), timeout=SCHEDULER_SECONDS)
                    return [one.key for one in references]
                if reason := self._dask.gone():
                    raise ExecutorError(f"no data of Dask: {reason}")


class RayObjects:
    """Those of the cluster to which this process is connected.

    Parameters
    ----------
    choice : as `RayCluster` takes it
    """

    kind = "ray"

    def __init__(self, choice: Any) -> None:
        cluster = RayCluster(choice)
        self._ray, self._task = cluster.ray, cache(cluster.remote)
        self._holder: Any = None  # an actor, which ends when nobody has its handle
        self._holder_name, self._held = f"polarmap blocks {uuid.uuid4()}", 0

    def call(self, function: Callable[..., Any], *arguments: Any, outputs: int = 1) -> list[Any]:
        """Objects that a task gives."""
        task = self._task(function).options(name="polarmap data", num_returns=outputs)
        found = task.remote(*arguments)
        return [found] if outputs == 1 else list(found)

    def fetch(self, references: Sequence[Any]) -> list[Any]:
        """The values of objects."""
        found: list[Any] = self._ray.get(list(references))
        return found

    def cut(self, data: Any, blocks: int | None) -> CutData | None:
        """A list of references, or the rows of a `ray.data.Dataset`."""
        if isinstance(data, list):
            are_ours = all(hasattr(one, "future") and hasattr(one, "hex") for one in data)
            return CutData(self, [[one] for one in data], None) if are_ours else None
        if not hasattr(data, "to_numpy_refs"):
            return None
        data = data.materialize()
        total = data.count()
        rows = rows_each(total, blocks, data.num_blocks())
        cut = data.split_at_indices(list(range(rows, total, rows)))
        return CutData(self, [one.to_numpy_refs() for one in cut], total)

    def names(self, references: Sequence[Any]) -> list[Any]:
        """The name of an actor and a number each, as Ray gives references to tasks and actors only."""
        if self._holder is None:
            holder = self._task(PolarmapBlocks).options(name=self._holder_name, num_cpus=0)
            self._holder = holder.remote()
        first, self._held = self._held, self._held + len(references)
        self._ray.get(self._holder.add.remote(list(references)))
        return [(self._holder_name, number) for number in range(first, self._held)]


class PolarmapBlocks:
    """The actor that has references to blocks, under whose name Ray lists it."""

    def __init__(self) -> None:
        self._references: list[Any] = []

    def add(self, references: list[Any]) -> None:
        """Some more."""
        self._references += references

    def reference(self, number: int) -> list[Any]:
        """One, in a list, as Ray would give its value else."""
        return [self._references[number]]


def rows_each(total: int, blocks: int | None, chunks: int) -> int:
    """Rows of each of so many blocks, about as many as there are chunks if nobody says.

    CodeError if there are none, or not all blocks that somebody asks for would have any.

    >>> rows_each(10, None, 4), rows_each(10, 5, 4)
    (3, 2)
    """
    if not total:
        raise CodeError("data on the cluster has no rows to cut into blocks")
    rows = -(-total // (blocks or chunks))
    if blocks and -(-total // rows) != blocks:
        raise CodeError(f"{total} rows do not fill {blocks} blocks: use blocks={-(-total // rows)}")
    return rows


def cut_on_cluster(executor: Any, data: Any, blocks: int | None) -> CutData | None:
    """Data as blocks where they lie, if that is the cluster of the executor."""
    if is_of_dask(executor):
        return DaskFutures(executor).cut(data, blocks)
    return RayObjects(executor).cut(data, blocks) if is_of_ray(executor) else None
