"""joblib backend: `joblib.parallel_config(backend="polarmap")` after this import."""

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
    """A backend that runs the calls of `joblib.Parallel` on a `polarmap.Executor`.

    Late calls get a backup, and calls whose worker is lost are started again.

    Parameters
    ----------
    executor, backups, retries, retry_delay
        As for `polarmap.Executor`. Pass them to `joblib.parallel_config`.
    nesting_level, inner_max_num_threads
        As for other backends of joblib, which passes them.

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
        """Return the number of calls at a time: `n_jobs`, or, for -1, the number of cores."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(1, count_available_cores() + 1 + n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Make an executor for the calls of one Parallel, and return the number of calls at a time."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel, self._n_jobs = parallel, n_jobs
        self._executor = self._make_limited_executor()
        return n_jobs

    def _make_limited_executor(self) -> Executor:
        """Make an executor that runs at most `n_jobs` calls at a time, as joblib submits twice as many."""
        executor = self._make_executor()
        executor._call_queue.limit_in_flight(self._n_jobs)
        return executor

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Future[Any]:
        """Submit a batch of calls and return its future, with which `callback` is called once it is done."""
        assert self._executor is not None
        future = self._executor.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # the name before joblib 1.5

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return the results of a batch, or raise its exception."""
        return out.result()

    def terminate(self) -> None:
        """Shut the executor down, as no more calls are submitted."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel all calls that have not started, because one has raised.

        With `ensure_ready`, make an executor for further calls.
        """
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = self._make_limited_executor() if ensure_ready else None


register_parallel_backend("polarmap", PolarmapBackend)
