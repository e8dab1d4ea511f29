"""f evaluated on the driver, in a thread: on blocks whose results are missing or in doubt."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from polarmap.blocks.coded import CodedData
from polarmap.driver.collector import WaitLimits
from polarmap.dtypes import Array
from polarmap.worker.daemon_threads import run_in_daemon_thread
from polarmap.worker.pytree import Structure, flatten, unflatten
from polarmap.worker.task_records import describe_error

EVALUATION_POLL_SECONDS = 0.005  # wait of one poll, so that a loop of polls does not use all of a core


class LocalEvaluation:
    """f on one block, which is built in the same daemon thread of the driver.

    Attributes
    ----------
    block_index : int
        The block.
    leaves, structure : list of arrays and Structure, or None
        The result, once there is one.
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
            self.leaves = leaves  # last, as other threads take it for the end of the evaluation
        except BaseException as error:
            self.error = error
        finally:
            self._finished.set()

    @property
    def is_running(self) -> bool:
        """Whether f has not returned yet, nor raised an exception."""
        return not self._finished.is_set()

    @property
    def error_text(self) -> str:
        """The type and the message of what f raised, even if the exception's own methods fail."""
        assert self.error is not None
        error_info = describe_error(self.error)
        return f"{error_info.type}: {error_info.message}"

    def poll(self) -> bool:
        """Wait for up to EVALUATION_POLL_SECONDS until f has ended, and return whether it has."""
        return self._finished.wait(EVALUATION_POLL_SECONDS)

    def wait_for_leaves(self, timeout: float) -> list[Array] | None:
        """Wait for up to `timeout` seconds, and return the leaves of the result, or None without a result."""
        self._finished.wait(timeout)
        return self.leaves


class LocalEvaluator:
    """Evaluates f on blocks of a map on the driver.

    Parameters
    ----------
    f : callable
        The function of the map as the driver calls it.
    coded_data : CodedData
    limits : WaitLimits
        Limit how long the driver stops for a result.

    Attributes
    ----------
    evaluated_blocks : list of int
        The coded blocks on which f was started, once for each time.
    """

    def __init__(self, f: Callable[[Any], Any], coded_data: CodedData, limits: WaitLimits) -> None:
        self._f, self._coded_data, self._limits = f, coded_data, limits
        self.evaluated_blocks: list[int] = []

    def start(self, build_block: Callable[[], Any], block_index: int) -> LocalEvaluation:
        """Start f on what `build_block` returns, and count that as an evaluation of block `block_index`."""
        self.evaluated_blocks.append(block_index)
        return LocalEvaluation(self._f, build_block, block_index)

    def start_on_block(self, block_index: int, use_data_block: bool = False) -> LocalEvaluation:
        """Start f on a block, as `copy_block` returns it."""
        return self.start(partial(copy_block, self._coded_data, block_index, use_data_block), block_index)

    def wait_for_leaves(self, evaluation: LocalEvaluation) -> list[Array] | None:
        """Return the leaves of the result, or None if f raises an exception or the wait is too long."""
        return evaluation.wait_for_leaves(self._limits.local_evaluation_timeout)


def copy_block(coded_data: CodedData, block_index: int, use_data_block: bool = False) -> Any:
    """Return a copy of a coded block, which f may change.

    Parameters
    ----------
    coded_data : CodedData
    block_index : int
    use_data_block : bool
        Whether to copy the data block with this index instead if the code is not systematic.
    """
    blocks = (
        coded_data.data_blocks
        if use_data_block and not len(coded_data.code.systematic_indices)
        else coded_data
    )
    return unflatten(coded_data.structure, [leaf.copy() for leaf in blocks.block_leaves(block_index)])
