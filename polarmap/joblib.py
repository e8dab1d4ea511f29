"""A backend of joblib: after this import, `joblib.parallel_config(backend="polarmap")` has calls run here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from joblib import register_parallel_backend
from joblib.parallel import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend

from polarmap.maps.executor import Executor
from polarmap.worker.environment import count_available_cores


class PolarmapBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Calls of `joblib.Parallel` on a `polarmap.Executor`: late ones get a backup, lost ones are made again.

    Parameters
    ----------
    executor, backups, retries
        Of the `polarmap.Executor`, as further arguments of `joblib.parallel_config`.
    nesting_level, inner_max_num_threads
        That joblib passes.

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
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._executor_spec, self._executor_options = executor, {"backups": backups, "retries": retries}
        self._executor: Executor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """As many calls at a time as are asked for; of -1 as many as this machine has cores."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(1, count_available_cores() + 1 + n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Be ready for the calls of one Parallel; how many there are to be at a time."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        self._executor = Executor(self._executor_spec, **self._executor_options)
        return n_jobs

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Future[Any]:
        """The future of a batch of calls."""
        assert self._executor is not None
        future = self._executor.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # as joblib called it before 1.5

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """What a batch has returned, or raises."""
        return out.result()

    def terminate(self) -> None:
        """End the executor, as no more calls will come."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel what waits: a call has raised."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = Executor(self._executor_spec, **self._executor_options) if ensure_ready else None


register_parallel_backend("polarmap", PolarmapBackend)
