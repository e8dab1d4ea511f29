"""hedged_map: a plain map of any f whose stragglers are started again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from polarmap.blocks.equal import checked_count
from polarmap.blocks.uneven import PartBlocks, cut_parts
from polarmap.code.dtypes import is_integer
from polarmap.errors import CodeError
from polarmap.run.coded_result import CodedResult
from polarmap.run.execute import Launch, run_uncoded
from polarmap.run.options import check_function, checked_options
from polarmap.worker.pytree import unflatten

T = TypeVar("T")


def hedged_map(
    f: Callable[[Any], T],
    data: Any,
    *,
    blocks: int | None = None,
    executor: Any = None,
    backups: int = 2,
    timeout: float | None = None,
    retries: int = 1,
    progress: bool | None = None,
) -> CodedResult[T]:
    """Map any f over blocks of data; what is late gets a backup, and the first result of each counts.

    For functions that no code commutes with. A straggler costs the time by which it is known to be late,
    a little more than others take, plus one more run, where a coded map does not wait for it at all.

    Parameters
    ----------
    f : callable
        Any function of a block. Both copies of a late task may run to their end, so it should have
        no side effects that are not to happen twice.
    data : array-like, or sequence of blocks
        An array is cut along its first axis into nearly equal blocks, without padding. A sequence
        gives the blocks, of one structure and any shapes. Results may be of any shapes and structures.
    blocks : int, optional
        k: the length of a sequence, or 24 for an array (or its number of rows if that is smaller).
    executor, timeout, retries, progress : optional
        As for `coded_map`.
    backups : int
        How many a task may get once it is late: when it has run longer than eleven in twelve tasks are
        expected to, as those tell that have returned (`polarmap.planning.LatenessRule`), and longer
        than 0.1 s. A backup may become late itself.

    Returns
    -------
    CodedResult
        Its report has the shape of a coded map's: nothing is ever recovered by decoding, and
        `attempts` of a task counts its backups.

    Raises
    ------
    CodeError, NotDecodableError, CodedTimeoutError, ExecutorError
        As for `coded_map`; every task has to return.

    Examples
    --------
    >>> import numpy as np, polarmap
    >>> slow = polarmap.FaultyExecutor(polarmap.ReplayExecutor(), {2: polarmap.Fault("sleep", seconds=60)})
    >>> result = polarmap.hedged_map(np.sort, np.array([3, 1, 9, 5, 2, 8]), blocks=3, executor=slow)
    >>> [block.tolist() for block in result], result.report.seconds, result.report.tasks[2].attempts
    ([[1, 3], [5, 9], [2, 8]], 2.1, 2)
    """
    check_function(f)
    options = checked_options(False, None, timeout, retries)
    if not is_integer(backups) or backups < 0:
        raise CodeError(f"backups must be 0 or more, not {backups!r}")
    launch = Launch(executor)
    blocks = None if blocks is None else checked_count("blocks", blocks)
    parts, structure = cut_parts(data, blocks)
    if blocks not in (None, len(parts)):
        raise CodeError(f"blocks={blocks}, but the sequence has {len(parts)} blocks; leave blocks out")
    coded = PartBlocks(parts, structure)
    outcomes, report = run_uncoded(launch, f, coded, options, progress, int(backups))
    results = [unflatten(one.structure or ("array",), one.leaves or []) for one in outcomes]
    return CodedResult(results, report)
