"""Run cubed's own `map_unordered`, with backup tasks, on any executor of `concurrent.futures`.

cubed calls a Lithops executor to map and to wait. On Lithops' localhost a backup would wait for the
straggler, since jobs run one after another there. The substitute in this module starts every task at once.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from cubed.runtime.executors import lithops as of_cubed

POLL_INTERVAL = 0.005  # Seconds between two polls; cubed's default is 1.


class CubedFuture:
    """A task with the interface of `lithops.retries.RetryingFuture` that cubed uses."""

    def __init__(self, future: Future[Any], item: Any) -> None:
        self._future, self.input = future, item

    @property
    def done(self) -> bool:
        return self._future.done()

    @property
    def error(self) -> bool:
        return self.done and not self._future.cancelled() and self._future.exception() is not None

    def result(self) -> Any:
        return self._future.result()

    def status(self, throw_except: bool = True) -> None:
        """Raise the exception of the task, if there is one."""
        self._future.result()

    def cancel(self) -> None:
        self._future.cancel()


class CubedExecutor:
    """An executor with the interface of `lithops.retries.RetryingFunctionExecutor` that cubed uses."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def map(self, f: Callable[[Any], Any], items: Iterable[Any], **options: Any) -> list[CubedFuture]:
        return [CubedFuture(self._executor.submit(f, item), item) for item in items]

    def wait(
        self, futures: Sequence[CubedFuture], **options: Any
    ) -> tuple[list[CubedFuture], list[CubedFuture]]:
        """Return the futures that are done, and those that are not. cubed itself sleeps between two polls."""
        done_flags = [future.done for future in futures]
        return (
            [future for future, is_done in zip(futures, done_flags) if is_done],
            [future for future, is_done in zip(futures, done_flags) if not is_done],
        )


def map_with_backups(executor: Executor, f: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Return the results in order of completion."""
    logging.getLogger(of_cubed.__name__).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # cubed prints a line when it starts a backup.
        return list(
            of_cubed.map_unordered(
                CubedExecutor(executor),
                [f],
                [list(items)],
                ["tasks"],
                use_backups=True,
                wait_dur_sec=POLL_INTERVAL,
            )
        )
