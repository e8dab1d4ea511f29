"""A joblib backend. Import this module, then use `joblib.parallel_config(backend="polarmap")`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from joblib import register_parallel_backend
from joblib.parallel import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend

from polarmap.maps.executor import Executor
from polarmap.worker.environment import count_available_cores


class PolarmapBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """A joblib backend that runs the calls of `joblib.Parallel` on a `polarmap.Executor`.

    A call that takes unusually long is started a second time, and the first result is used. A call whose
    worker is lost is restarted.

    Parameters
    ----------
    executor, backups, retries, retry_delay
        As for `polarmap.Executor`. Pass them to `joblib.parallel_config`.
    nesting_level, inner_max_num_threads
        Passed by joblib, as to its other backends.

    Examples
    --------
    >>> import joblib, polarmap.joblib
    >>> with joblib.parallel_config(backend="polarmap", n_jobs=2):
    ...     joblib.Parallel()(joblib.delayed(pow)(number, 2) for number in range(4))
    [0, 1, 4, 9]
    """

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(
        self,
        executor: Any = None,
        backups: int = 2,
        retries: int = 1,
        retry_delay: float = 0.0,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._make_executor = partial(
            Executor, executor, backups=backups, retries=retries, retry_delay=retry_delay
        )
        self._executor: Executor | None = None
        self._n_jobs = 1

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many calls run concurrently for the given `n_jobs`. -1 means one per core."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(1, count_available_cores() + 1 + n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Create the executor for a `joblib.Parallel` and return how many calls run concurrently."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel, self._n_jobs = parallel, n_jobs
        self._executor = self._make_limited_executor()
        return n_jobs

    def _make_limited_executor(self) -> Executor:
        """Create an executor that runs at most `n_jobs` calls at a time.

        The limit is needed because joblib submits calls in advance: up to twice `n_jobs` at a time.
        """
        executor = self._make_executor()
        executor._call_queue.limit_in_flight(self._n_jobs)
        return executor

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Future[Any]:
        """Submit a batch of calls and return its future.

        When the batch is done, `callback` is called with the future.
        """
        assert self._executor is not None
        future = self._executor.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # joblib before version 1.5 uses this name.

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return the results of a batch, or raise its exception."""
        return out.result()

    def terminate(self) -> None:
        """Shut down the executor. joblib calls this at the end of `joblib.Parallel`."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel all calls that have not started. joblib calls this after a call has raised an exception.

        If `ensure_ready` is True, a new executor is created for further calls.
        """
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = self._make_limited_executor() if ensure_ready else None


register_parallel_backend("polarmap", PolarmapBackend)
