"""Data that lie on the cluster of Dask or Ray: references to blocks, and calls made of them there."""

from __future__ import annotations

import operator
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple, Protocol

from polarmap.errors import CodeError, ExecutorError
from polarmap.executors.dask import SCHEDULER_TIMEOUT, DaskConnection
from polarmap.executors.executor_specs import is_dask_client, is_ray_spec
from polarmap.executors.ray import RayConnection


class DataCluster(Protocol):
    """The engine of a cluster as what keeps blocks. Its own tasks take references in the place of arguments.

    location_kind : of the place where they lie, for workers.
    """

    location_kind: str

    def submit_call(self, function: Callable[..., Any], *arguments: Any, n_outputs: int = 1) -> list[Any]:
        """References to what a call there gives: to each item of a sequence of so many `n_outputs`."""
        ...

    def fetch_values(self, references: Sequence[Any]) -> list[Any]:
        """What lies there, brought here."""
        ...

    def partition_data(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        """Data that lie there as blocks; None for what does not."""
        ...

    def make_worker_reference_names(self, references: Sequence[Any]) -> list[Any]:
        """By which persistent workers find these."""
        ...


class PartitionedData(NamedTuple):
    """Data on a cluster, cut into blocks.

    chunk_references : for each block references to what its rows are joined from.
    n_rows : rows of all; None where each block was given by itself.
    """

    cluster: DataCluster
    chunk_references: Sequence[Sequence[Any]]
    n_rows: int | None


class DaskDataCluster:
    """Those of a client.

    Parameters
    ----------
    client_or_executor : a client, or what its `get_executor()` gives
    """

    location_kind = "dask"

    def __init__(self, client_or_executor: Any) -> None:
        self._connection = DaskConnection(client_or_executor)
        self._client, self._submit_options = self._connection.client, self._connection.submit_options

    def submit_call(self, function: Callable[..., Any], *arguments: Any, n_outputs: int = 1) -> list[Any]:
        """Futures of a task, or of the items that it gives."""
        task_key, submit = f"polarmap-data-{uuid.uuid4()}", self._client.submit
        options = {"pure": False, **self._submit_options}
        result_future = submit(function, *arguments, key=task_key, **options)
        if n_outputs == 1:
            return [result_future]
        item_indices = range(n_outputs)
        return [
            submit(operator.getitem, result_future, item_index, key=f"{task_key}-{item_index}", **options)
            for item_index in item_indices
        ]

    def fetch_values(self, references: Sequence[Any]) -> list[Any]:
        """Return the results of futures."""
        return self._connection.fetch_results(references)

    def partition_data(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        """A list of futures, or the rows of a `dask.array` or Dask DataFrame."""
        import distributed

        if isinstance(data, list):
            all_dask_futures = all(isinstance(future, distributed.Future) for future in data)
            return PartitionedData(self, [[future] for future in data], None) if all_dask_futures else None
        with self._client.as_current():
            if hasattr(data, "to_dask_array"):
                data = data.to_dask_array(lengths=True)
            if not hasattr(data, "rechunk") or not data.ndim:
                return None
            if any(length != length for length in data.shape):  # NaN: Dask has not looked
                data = data.compute_chunk_sizes()
            rows_per_block = compute_rows_per_block(data.shape[0], n_blocks, data.numblocks[0])
            rechunked = data.rechunk((rows_per_block, *data.shape[1:]))
            block_futures = self._client.compute(list(rechunked.to_delayed().ravel()))
        return PartitionedData(self, [[future] for future in block_futures], data.shape[0])

    def make_worker_reference_names(self, references: Sequence[Any]) -> list[Any]:
        """The keys of futures, once there is something behind each; ExecutorError if its scheduler goes."""
        import distributed

        wait: Any = distributed.wait
        with self._client.as_current():
            while True:
                with suppress(TimeoutError):
                    wait(list(references), timeout=SCHEDULER_TIMEOUT)
                    return [future.key for future in references]
                if reason := self._connection.get_unavailable_reason():
                    raise ExecutorError(f"no data of Dask: {reason}")


class RayDataCluster:
    """Those of the cluster to which this process is connected.

    Parameters
    ----------
    ray_spec : as `RayConnection` takes it
    """

    location_kind = "ray"

    def __init__(self, ray_spec: Any) -> None:
        connection = RayConnection(ray_spec)
        self._ray, self._remote_function = connection.ray_module, cache(connection.make_remote)
        self._holder_actor: Any = None  # an actor, which ends when nobody has its handle
        self._holder_name, self._n_held = f"polarmap blocks {uuid.uuid4()}", 0

    def submit_call(self, function: Callable[..., Any], *arguments: Any, n_outputs: int = 1) -> list[Any]:
        """Objects that a task gives."""
        remote_function = self._remote_function(function).options(name="polarmap data", num_returns=n_outputs)
        object_refs = remote_function.remote(*arguments)
        return [object_refs] if n_outputs == 1 else list(object_refs)

    def fetch_values(self, references: Sequence[Any]) -> list[Any]:
        """The values of objects."""
        values: list[Any] = self._ray.get(list(references))
        return values

    def partition_data(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        """A list of references, or the rows of a `ray.data.Dataset`."""
        if isinstance(data, list):
            all_ray_references = all(hasattr(chunk, "future") and hasattr(chunk, "hex") for chunk in data)
            return PartitionedData(self, [[chunk] for chunk in data], None) if all_ray_references else None
        if not hasattr(data, "to_numpy_refs"):
            return None
        data = data.materialize()
        n_rows = data.count()
        rows_per_block = compute_rows_per_block(n_rows, n_blocks, data.num_blocks())
        split_datasets = data.split_at_indices(list(range(rows_per_block, n_rows, rows_per_block)))
        return PartitionedData(self, [chunk.to_numpy_refs() for chunk in split_datasets], n_rows)

    def make_worker_reference_names(self, references: Sequence[Any]) -> list[Any]:
        """The name of an actor and a number each, as Ray gives references to tasks and actors only."""
        if self._holder_actor is None:
            holder_class = self._remote_function(PolarmapBlocks).options(name=self._holder_name, num_cpus=0)
            self._holder_actor = holder_class.remote()
        first_index, self._n_held = self._n_held, self._n_held + len(references)
        self._ray.get(self._holder_actor.add_references.remote(list(references)))
        return [(self._holder_name, reference_index) for reference_index in range(first_index, self._n_held)]


class PolarmapBlocks:
    """The actor that has references to blocks, under whose name Ray lists it."""

    def __init__(self) -> None:
        self._references: list[Any] = []

    def add_references(self, references: list[Any]) -> None:
        """Some more."""
        self._references += references

    def get_reference(self, reference_index: int) -> list[Any]:
        """One, in a list, as Ray would give its value else."""
        return [self._references[reference_index]]


def compute_rows_per_block(n_rows: int, n_blocks: int | None, n_chunks: int) -> int:
    """Rows of each of so many blocks, about as many as there are chunks if nobody says.

    CodeError if there are none, or not all blocks that somebody asks for would have any.

    >>> compute_rows_per_block(10, None, 4), compute_rows_per_block(10, 5, 4)
    (3, 2)
    """
    if not n_rows:
        raise CodeError("data on the cluster has no rows to cut into blocks")
    rows_per_block = -(-n_rows // (n_blocks or n_chunks))
    if n_blocks and -(-n_rows // rows_per_block) != n_blocks:
        raise CodeError(
            f"{n_rows} rows do not fill {n_blocks} blocks: use blocks={-(-n_rows // rows_per_block)}"
        )
    return rows_per_block


def partition_on_cluster(executor_spec: Any, data: Any, n_blocks: int | None) -> PartitionedData | None:
    """Data as blocks where they lie, if that is the cluster of the executor."""
    if is_dask_client(executor_spec):
        return DaskDataCluster(executor_spec).partition_data(data, n_blocks)
    return (
        RayDataCluster(executor_spec).partition_data(data, n_blocks) if is_ray_spec(executor_spec) else None
    )
