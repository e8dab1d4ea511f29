"""f on the driver, beside the map: on a block of which no result has come, or one that is doubted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from polarmap.blocks.coded import CodedData
from polarmap.dtypes import Array
from polarmap.worker.daemon_threads import run_in_daemon_thread
from polarmap.worker.pytree import Structure, flatten, unflatten
from polarmap.worker.task_records import describe_error

EVALUATION_POLL_SECONDS = 0.005  # that one look takes, so that a loop over it does not spin


class LocalEvaluation:
    """f on one block, which is made on the same daemon thread of the driver.

    Attributes
    ----------
    block_index : int
        The block.
    leaves, structure : list of arrays and Structure, or None
        Of the result, once there is one.
    error : BaseException or None
        What f raised.
    """

    def __init__(self, f: Callable[[Any], Any], build_block: Callable[[], Any], block_index: int = 0) -> None:
        self.block_index = block_index
        self.leaves: list[Array] | None = None
        self.structure: Structure | None = None
        self.error: BaseException | None = None
        self._finished = threading.Event()
        run_in_daemon_thread(partial(self._evaluate_f_on_block, f, build_block))

    def _evaluate_f_on_block(self, f: Callable[[Any], Any], build_block: Callable[[], Any]) -> None:
        try:
            leaves, self.structure = flatten(f(build_block()))
            self.leaves = leaves  # by which others see that it has ended
        except BaseException as error:
            self.error = error
        finally:
            self._finished.set()

    @property
    def error_text(self) -> str:
        """What f raised, whatever the exception's own methods do."""
        assert self.error is not None
        error_info = describe_error(self.error)
        return f"{error_info.type}: {error_info.message}"

    def wait_for_leaves(self, timeout: float) -> list[Array] | None:
        """The arrays of its result; None if it raises or takes longer."""
        self._finished.wait(timeout)
        return self.leaves

    @property
    def is_running(self) -> bool:
        """Whether f has not ended, also not within a moment that the question takes."""
        return not self._finished.wait(EVALUATION_POLL_SECONDS)


def copy_block(coded_data: CodedData, block_index: int, use_data_block: bool = False) -> Any:
    """A coded block that f may change; `use_data_block`: a data block, which none is where each is a
    mixture.
    """
    blocks = (
        coded_data.data_blocks
        if use_data_block and not len(coded_data.code.systematic_indices)
        else coded_data
    )
    return unflatten(coded_data.structure, [leaf.copy() for leaf in blocks.block_leaves(block_index)])
