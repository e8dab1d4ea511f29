"""`coded_map`: apply a linear, affine or polynomial f to blocks without waiting for stragglers.

This module checks the arguments. `polarmap.driver` encodes the blocks, runs the tasks and decodes the
results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, overload

from polarmap.blocks.code_choice import CodeName, CodeOptions
from polarmap.codes.linear_code import LinearCode
from polarmap.codes.secret_sharing import SecretSharing
from polarmap.driver.options import (
    OnTimeout,
    Progress,
    ScheduleName,
    Verify,
    apply_plan,
    check_function,
    check_on_result,
    check_options,
)
from polarmap.driver.prepared_map import PreparedMap, map_function, prepare_coded_map
from polarmap.driver.results import CodedResult
from polarmap.errors import CodeError
from polarmap.executors import resolve_executor

if TYPE_CHECKING:
    from polarmap.arrays.stored_result import Stored, StoredResult
    from polarmap.planning.planner import Plan

T = TypeVar("T")


class SharedMapOptions(TypedDict, total=False):
    """The keyword options that all coded maps have in common, with their types, for type checkers."""

    blocks: int | None
    tasks: int | None
    code: CodeName | LinearCode | SecretSharing
    degree: int
    schedule: ScheduleName | Plan
    executor: Any
    verify: Verify
    rtol: float | None
    timeout: float | None
    on_timeout: OnTimeout
    retries: int
    retry_delay: float
    progress: Progress


class CodedMapOptions(SharedMapOptions, total=False):
    """The keyword options of `coded_map` except `out`, with their types, for type checkers."""

    key: str | bytes | None
    on_result: Callable[[int, Any], object] | None


@overload
def coded_map(
    f: Callable[[Any], T], data: Any, *, out: None = None, **options: Unpack[CodedMapOptions]
) -> CodedResult[T]: ...
@overload
def coded_map(
    f: Callable[[Any], T], data: Any, *, out: Stored, **options: Unpack[CodedMapOptions]
) -> StoredResult[T]: ...
@map_function
def coded_map(
    f: Callable[[Any], T],
    data: Any,
    *,
    blocks: int | None = None,
    tasks: int | None = None,
    code: CodeName | LinearCode | SecretSharing = "auto",
    degree: int = 1,
    schedule: ScheduleName | Plan = "upfront",
    executor: Any = None,
    out: Stored | None = None,
    verify: Verify = "auto",
    rtol: float | None = None,
    timeout: float | None = None,
    on_timeout: OnTimeout = "raise",
    retries: int = 1,
    retry_delay: float = 0.0,
    key: str | bytes | None = None,
    on_result: Callable[[int, T], object] | None = None,
    progress: Progress = None,
) -> PreparedMap[CodedResult[T]]:
    """Map a linear, affine or polynomial f over blocks of data, without waiting for slow or lost workers.

    The data is cut into k blocks, and n - k parity blocks (combinations of data blocks) are added. Each of n
    tasks applies f to one block. The k results are returned as soon as enough results have arrived to decode
    the missing ones.

    Parameters
    ----------
    f : callable
        A deterministic function that is linear or affine in its block, or a polynomial of `degree`. It takes
        and returns arrays, or tuples, lists or dicts of arrays.
    data : array-like, or sequence of blocks
        An array, table, tensor or .npy file is cut along its first axis into blocks of ceil(rows / k) rows.
        The last block may be shorter. Each item of a sequence is a block.
    blocks : int, optional
        The number k of data blocks. By default, it is near 24, or the length of a sequence. No block may be
        empty.
    tasks : int, optional
        The number n of tasks. By default, it is a third more than the number of results needed, and large
        enough that any one result may be lost.
    code : {"auto", "rotation", "arikan"}, SecretSharing or a code
        The code that builds the parity blocks. "auto" is "arikan" for integers and "rotation" for floats.
    degree : int
        The degree of f as a polynomial in its block. Any degree * k results suffice.
    schedule : {"upfront", "on_demand"} or Plan
        When parity tasks start: together with the data tasks, or ("on_demand") when data tasks are late or
        have failed. A `Plan` also sets blocks, tasks and code.
    executor : optional
        Where the tasks run: a `Pool`, any `concurrent.futures.Executor`, a Dask client, `ray`, a
        `lithops.FunctionExecutor`, or the path of a Lithops configuration. By default, they run in worker
        processes on this machine.
    out : Stored, optional
        Where to store the results as a coded array, instead of returning them.
    verify : {"auto", True, False}
        When to check that f satisfies the code's assumption, for example that it is linear: when f is new
        ("auto"), in every map (True), or never (False).
    rtol : float, optional
        The permitted relative error of decoding. By default, it is 1e-10 for float64.
    timeout : float, optional
        The deadline of the map, in seconds after the call. By default, only the executor's time limit for
        tasks applies.
    on_timeout : {"raise", "estimate"}
        What to do at the deadline if results are missing: raise `CodedTimeoutError`, or return estimates of
        the missing results.
    retries : int
        How many times to retry a failed task.
    retry_delay : float
        The seconds between the first failure of a task and its next attempt. The delay doubles with each
        further attempt, up to 60 seconds. Other tasks do not wait.
    key : str or bytes, optional
        The key that encrypts blocks and results in temporary storage: "env:NAME", "file:PATH" or 32 bytes. By
        default, they are not encrypted.
    on_result : callable, optional
        Called as `on_result(index, result)` once for each block, on this thread. The blocks that arrived come
        first, in order of arrival, followed by the decoded blocks. A later result may show that an earlier
        one is wrong, so the first call is made when all results have been accepted. An exception that it
        raises ends the map. It cannot be combined with `out`.
    progress : bool or "live", optional
        Whether to show a progress bar. By default, it is shown on a terminal. "live": show each task and
        worker in the terminal or notebook while the map runs, and make the program visible to `polarmap top`.
        This needs the extra `live`.

    Returns
    -------
    CodedResult
        The k results, in the order of the blocks, with a `report`. With `out`, a `StoredResult`.

    Warns
    -----
    RuntimeWarning
        If results could not be verified, or are less accurate than `rtol`, or if f is not linear but all data
        tasks returned.

    Raises
    ------
    CodeError, ExecutorError
        If an argument is invalid, or the executor cannot run the map.
    NotLinearError
        If results contradict each other and a data task has not returned.
    NotDecodableError, CodedTimeoutError
        If too few results have arrived.
    Exception
        The exception that f raised, if it did so in too many tasks. `FunctionExitError` replaces SystemExit,
        StopIteration and similar exceptions.

    Examples
    --------
    >>> import numpy as np, polarmap
    >>> A = np.arange(12.0).reshape(4, 3)
    >>> y = polarmap.coded_map(lambda block: block.sum(axis=1), A, blocks=2)
    >>> y.concatenate().round(9).tolist()
    [3.0, 12.0, 21.0, 30.0]
    """
    check_function(f)
    check_on_result(on_result)
    options = check_options(
        verify, rtol, timeout, retries, on_timeout, schedule, key, retry_delay=retry_delay
    )
    code_options = apply_plan(CodeOptions(blocks, tasks, code, degree), schedule)
    if out is None:
        return prepare_coded_map(f, data, code_options, resolve_executor(executor), options)
    if on_result is not None:
        raise CodeError(
            "on_result= gets results that workers return, out= keeps them in storage: leave one out"
        )
    from polarmap.arrays.stored_result import prepare_stored_map  # a slow import that few maps need

    return prepare_stored_map(f, data, code_options, out, resolve_executor(executor), options)
