"""f on the driver, beside the map: on a block of which no result has come, or one that is doubted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from polarmap.blocks.coded import CodedData
from polarmap.dtypes import Array
from polarmap.worker.blas_threads import run_in_daemon_thread
from polarmap.worker.pytree import Structure, flatten, unflatten
from polarmap.worker.task_records import describe_error

LOOK_SECONDS = 0.005  # that one look takes, so that a loop over it does not spin


class LocalRun:
    """f on one block, which is made on the same daemon thread of the driver.

    Attributes
    ----------
    index : int
        The block.
    leaves, structure : list of arrays and Structure, or None
        Of the result, once there is one.
    error : BaseException or None
        What f raised.
    """

    def __init__(self, f: Callable[[Any], Any], block: Callable[[], Any], index: int = 0) -> None:
        self.index = index
        self.leaves: list[Array] | None = None
        self.structure: Structure | None = None
        self.error: BaseException | None = None
        self._ended = threading.Event()
        run_in_daemon_thread(partial(self._run, f, block))

    def _run(self, f: Callable[[Any], Any], block: Callable[[], Any]) -> None:
        try:
            leaves, self.structure = flatten(f(block()))
            self.leaves = leaves  # by which others see that it has ended
        except BaseException as error:
            self.error = error
        finally:
            self._ended.set()

    @property
    def words(self) -> str:
        """What f raised, whatever the exception's own methods do."""
        assert self.error is not None
        said = describe_error(self.error)
        return f"{said.type}: {said.message}"

    def leaves_within(self, seconds: float) -> list[Array] | None:
        """The arrays of its result; None if it raises or takes longer."""
        self._ended.wait(seconds)
        return self.leaves

    @property
    def is_running(self) -> bool:
        """Whether f has not ended, also not within a moment that the question takes."""
        return not self._ended.wait(LOOK_SECONDS)


def block_here(coded: CodedData, index: int, of_data: bool = False) -> Any:
    """A coded block that f may change; `of_data`: a data block, which none is where each is a mixture."""
    blocks = coded.data_blocks if of_data and not len(coded.code.systematic_indices) else coded
    return unflatten(coded.structure, [leaf.copy() for leaf in blocks.block_leaves(index)])
