"""The interface to a cluster (Dask or Ray).

An engine runs function calls on the cluster, holds data there, and hosts persistent workers. `dask.py` and
`ray.py` implement it. `futures.py` runs each task of a map as a call on an engine, and `remote_workers.py`
uses an engine to start pools of persistent workers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, NamedTuple

from polarmap.errors import CodeError
from polarmap.executors.remote_workers import WorkerProvider
from polarmap.worker.locations import ClusterLocation


class Engine(WorkerProvider, ABC):
    """The base class of connections to a user's Dask or Ray cluster.

    An engine runs function calls on the cluster, holds data there and starts persistent workers. Each
    session, data set and worker pool has its own `Engine`, but all of them share the user's connection.

    Parameters
    ----------
    engine_spec : object
        The user's `executor=` argument. Raises ExecutorError if it is not connected to a cluster.

    Attributes
    ----------
    name : str
        The name of the cluster software in reports.
    location : ClusterLocation
        The location from which persistent workers read blocks that are on the cluster.
    """

    imports_polarmap = True
    location: ClusterLocation

    @abstractmethod
    def __init__(self, engine_spec: Any) -> None: ...

    # -- single calls --------------------------------------------------------------------------

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run `call(*arguments)` on the cluster and return its future.

        Cancelling the future cancels the call. The future may never complete if the connection to the cluster
        is lost. Raises RuntimeError if the cluster accepts no calls.
        """
        if unavailable := self.get_unavailable_reason():
            raise RuntimeError(unavailable)
        future: Future[Any] = Future()
        cancel = self._start_remote_call(future, call, *arguments)

        def cancel_if_cancelled(done_future: Future[Any]) -> None:
            with suppress(Exception):  # Cancelling fails if the connection is lost.
                if done_future.cancelled():
                    cancel()

        future.add_done_callback(cancel_if_cancelled)
        return future

    @abstractmethod
    def get_unavailable_reason(self) -> str:
        """Return the reason why the cluster accepts no calls, or an empty string if it accepts them."""

    @abstractmethod
    def _start_remote_call(
        self, future: Future[Any], call: Callable[..., Any], *arguments: Any
    ) -> Callable[[], object]:
        """Submit a call to the cluster, and set its result or exception on `future` once it has ended.

        Return a function that cancels the call.
        """

    # -- data ----------------------------------------------------------------------------------

    @abstractmethod
    def submit_call(self, function: Callable[..., Any], *arguments: Any, n_outputs: int = 1) -> list[Any]:
        """Call `function(*arguments)` on the cluster, and return references to its results.

        A reference is a Dask future or a Ray object reference. References among the arguments are replaced by
        their values. With `n_outputs` above 1, the function must return a sequence of `n_outputs` results.
        """

    @abstractmethod
    def fetch_values(self, references: Sequence[Any]) -> list[Any]:
        """Fetch the values of references from the cluster into this process, and return them in order."""

    @abstractmethod
    def partition_data(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        """Partition data that is on this cluster into blocks. Return None for any other data.

        If `n_blocks` is None, the number of blocks is about the number of chunks.
        """

    @abstractmethod
    def make_worker_reference_names(self, references: Sequence[Any]) -> list[Any]:
        """Return a picklable name for each reference (a Dask future or a Ray object reference).

        Persistent workers look up the values on the cluster by these names.
        """

    # -- persistent workers --------------------------------------------------------------------

    @abstractmethod
    def discover_machines(self) -> None:
        """Query the cluster for its machines and cores. Called before the first workers are started.

        Raises ExecutorError if the cluster does not respond.
        """


class PartitionedData(NamedTuple):
    """Chunked data on a cluster, partitioned into blocks.

    Attributes
    ----------
    engine : Engine
        The engine that holds the data.
    chunk_references : sequence of sequence
        For each block, references to the chunks that contain its rows.
    n_rows : int or None
        The total number of rows; None if each block was passed separately.
    """

    engine: Engine
    chunk_references: Sequence[Sequence[Any]]
    n_rows: int | None


def complete_future(future: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    """Set the result or the exception of a future. Do nothing if the future is already done."""
    with suppress(InvalidStateError):
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def compute_rows_per_block(n_rows: int, n_blocks: int | None, n_chunks: int) -> int:
    """Return the number of rows per block for a matrix that is stored in chunks on a cluster.

    If `n_blocks` is None, there are about as many blocks as chunks. Raises CodeError if there are no rows, or
    too few for `n_blocks` blocks.

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
