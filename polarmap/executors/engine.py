"""The engine of a cluster, Dask or Ray: it runs single calls, holds data, and hosts persistent workers."""

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
    """A connection to the engine of a cluster.

    A session of single tasks, the data of a map and the workers of a pool each have an engine of their own,
    which uses the connection of the caller.

    Parameters
    ----------
    engine_spec : object
        What the caller passed as `executor=`. Raises ExecutorError if it is not connected.

    Attributes
    ----------
    name : str
        The name in reports.
    location : ClusterLocation
        The location of blocks that the engine holds, for persistent workers.
    """

    imports_polarmap = True
    location: ClusterLocation

    @abstractmethod
    def __init__(self, engine_spec: Any) -> None: ...

    # -- single calls --------------------------------------------------------------------------

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run `call(*arguments)` on the cluster and return its future, which can be cancelled.

        The future may never end if the engine goes. Raises RuntimeError if the engine takes no calls.
        """
        if unavailable := self.get_unavailable_reason():
            raise RuntimeError(unavailable)
        future: Future[Any] = Future()
        cancel = self._start_remote_call(future, call, *arguments)

        def cancel_if_cancelled(done_future: Future[Any]) -> None:
            with suppress(Exception):  # The engine may be gone.
                if done_future.cancelled():
                    cancel()

        future.add_done_callback(cancel_if_cancelled)
        return future

    @abstractmethod
    def get_unavailable_reason(self) -> str:
        """Return why the engine does not answer any more, or an empty string if it does."""

    @abstractmethod
    def _start_remote_call(
        self, future: Future[Any], call: Callable[..., Any], *arguments: Any
    ) -> Callable[[], object]:
        """Hand a call to the engine, which completes `future`, and return a function that cancels it."""

    # -- data ----------------------------------------------------------------------------------

    @abstractmethod
    def submit_call(self, function: Callable[..., Any], *arguments: Any, n_outputs: int = 1) -> list[Any]:
        """Call `function(*arguments)` on the cluster and return a reference to each of its results.

        References among the arguments are replaced by their values. With `n_outputs` above 1 the function
        returns a sequence of so many results.
        """

    @abstractmethod
    def fetch_values(self, references: Sequence[Any]) -> list[Any]:
        """Fetch the values of references into this process."""

    @abstractmethod
    def partition_data(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        """Partition data that is on the cluster into blocks; return None for all other data."""

    @abstractmethod
    def make_worker_reference_names(self, references: Sequence[Any]) -> list[Any]:
        """Return the names by which persistent workers find the values of references."""

    # -- persistent workers --------------------------------------------------------------------

    @abstractmethod
    def discover_machines(self) -> None:
        """Ask the cluster for its machines and cores, before the first workers are launched.

        Raises ExecutorError if the cluster does not answer.
        """


class PartitionedData(NamedTuple):
    """Data on a cluster, partitioned into blocks.

    chunk_references : for each block the references to the chunks from which its rows are joined.
    n_rows : the number of rows of all blocks; None if each block was passed by itself.
    """

    engine: Engine
    chunk_references: Sequence[Sequence[Any]]
    n_rows: int | None


def complete_future(future: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    """Set the result or the exception of a future, unless it has ended."""
    with suppress(InvalidStateError):
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def compute_rows_per_block(n_rows: int, n_blocks: int | None, n_chunks: int) -> int:
    """Return the number of rows of each block, for about as many blocks as chunks if `n_blocks` is None.

    Raises CodeError if there are no rows, or too few for `n_blocks` blocks.

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
