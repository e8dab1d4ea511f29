"""Call the mapped function f on single blocks on the driver, in a thread, to check results of workers."""

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

# Wait for this long in each poll, so that a loop of polls does not occupy a whole core.
EVALUATION_POLL_SECONDS = 0.005


class LocalEvaluation:
    """A call of the mapped function f on one block, in a daemon thread of the driver.

    The thread also builds the block.

    Attributes
    ----------
    block_index : int
        The number of the block.
    leaves, structure : list of arrays and Structure, or None
        The arrays (leaves) of the result and how they are nested. None until f has returned.
    error : BaseException or None
        The exception that f raised, if any.
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
            self.leaves = leaves  # set last, because it tells other threads that the call has finished
        except BaseException as error:
            self.error = error
        finally:
            self._finished.set()

    @property
    def is_running(self) -> bool:
        """Whether the call has neither returned nor raised an exception yet."""
        return not self._finished.is_set()

    @property
    def error_text(self) -> str:
        """The type and message of the exception that the call raised, even if its own `__str__` fails."""
        assert self.error is not None
        error_info = describe_error(self.error)
        return f"{error_info.type}: {error_info.message}"

    def poll(self) -> bool:
        """Wait up to EVALUATION_POLL_SECONDS for the call, and return whether it has finished."""
        return self._finished.wait(EVALUATION_POLL_SECONDS)

    def wait_for_result_arrays(self, timeout: float) -> list[Array] | None:
        """Wait up to `timeout` seconds for the result. Return its arrays, or None without a result."""
        self._finished.wait(timeout)
        return self.leaves


class LocalEvaluator:
    """Calls the mapped function f on blocks on the driver, and keeps track of the calls.

    Parameters
    ----------
    f : callable
        The mapped function, in a form that the driver can call.
    coded_data : CodedData
        The blocks on which f can be called.
    limits : WaitLimits
        Limits how long the driver waits for results.

    Attributes
    ----------
    evaluated_blocks : list of int
        The block numbers of all calls so far.
    """

    def __init__(self, f: Callable[[Any], Any], coded_data: CodedData, limits: WaitLimits) -> None:
        self._f, self._coded_data, self._limits = f, coded_data, limits
        self.evaluated_blocks: list[int] = []

    def start(self, build_block: Callable[[], Any], block_index: int) -> LocalEvaluation:
        """Start calling the mapped function on the block that `build_block` returns.

        The call is recorded under `block_index`.
        """
        self.evaluated_blocks.append(block_index)
        return LocalEvaluation(self._f, build_block, block_index)

    def start_on_block(self, block_index: int, use_data_block: bool = False) -> LocalEvaluation:
        """Start calling the mapped function on a copy of a block. See `copy_block` for the parameters."""
        return self.start(partial(copy_block, self._coded_data, block_index, use_data_block), block_index)

    def wait_for_result_arrays(self, evaluation: LocalEvaluation) -> list[Array] | None:
        """Wait for a call. Return the arrays of its result, or None if it raises or takes too long."""
        return evaluation.wait_for_result_arrays(self._limits.local_evaluation_timeout)


def copy_block(coded_data: CodedData, block_index: int, use_data_block: bool = False) -> Any:
    """Return a copy of a block, which the mapped function may modify.

    Parameters
    ----------
    coded_data : CodedData
        The coded blocks of the map.
    block_index : int
        The number of the block to copy.
    use_data_block : bool
        Whether `block_index` refers to a data block rather than a coded block. This makes a difference only
        if the code is not systematic, that is, if the data blocks are not among the coded blocks.
    """
    blocks = (
        coded_data.data_blocks
        if use_data_block and not len(coded_data.code.systematic_indices)
        else coded_data
    )
    return unflatten(coded_data.structure, [leaf.copy() for leaf in blocks.block_leaves(block_index)])
