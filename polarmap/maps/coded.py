"""coded_map: a map of a linear, affine or polynomial f that does not wait for stragglers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, overload

from polarmap.blocks.code_choice import CodeName, CodeOptions
from polarmap.codes.linear_code import LinearCode
from polarmap.codes.secret_sharing import SecretSharing
from polarmap.driver.options import (
    OnTimeout,
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
    """The options of every coded map of data, for type checkers."""

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
    progress: bool | None


class CodedMapOptions(SharedMapOptions, total=False):
    """Those of `coded_map` beside `out`."""

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
    progress: bool | None = None,
) -> PreparedMap[CodedResult[T]]:
    """Map a linear, affine or polynomial f over blocks of data, without waiting for stragglers.

    n tasks apply f to k blocks of the data and n - k parity blocks. The k results are returned as soon as
    those that have arrived determine them.

    Parameters
    ----------
    f : callable
        Linear or affine in its block, or polynomial of `degree`; deterministic. It takes and returns
        arrays, or tuples, lists or dicts of them.
    data : array-like, or sequence of blocks
        An array, table, tensor or .npy file is cut along its first axis into blocks of ceil(rows / k) rows,
        of which the last may be shorter; a sequence gives the blocks.
    blocks : int, optional
        k. By default near 24, or the length of a sequence. No block may be empty.
    tasks : int, optional
        n. By default a third more than the results needed, and enough that any one of them may be lost.
    code : {"auto", "rotation", "arikan"}, SecretSharing or a code
        "auto": arikan for integers, rotation for floats.
    degree : int
        The degree of f as a polynomial in its block. Any degree * k results suffice.
    schedule : {"upfront", "on_demand"} or Plan
        "on_demand": parity tasks start when others are late. A `Plan` sets blocks, tasks and code.
    executor : optional
        None: processes here. A `Pool`, any `concurrent.futures.Executor`, a Dask client, `ray`, a
        `lithops.FunctionExecutor`, or the path of a Lithops configuration.
    out : Stored, optional
        Results stay in storage, as a coded array.
    verify : {"auto", True, False}
        Check that f is linear: when f is new, always, never.
    rtol : float, optional
        Relative error accepted from decoding, by default 1e-10 for float64.
    timeout : float, optional
        Seconds. By default the executor's own limit of a task.
    on_timeout : {"raise", "estimate"}
        "estimate": return estimates of what has not arrived.
    retries : int
        How often a failed task is started again.
    retry_delay : float
        Seconds between the first failure of a task and its next attempt, doubled after each further attempt
        up to 60 seconds. Other tasks do not wait.
    key : str or bytes, optional
        Encrypt what is stored on the way: "env:NAME", "file:PATH" or 32 bytes.
    on_result : callable, optional
        Called as `on_result(index, result)` once for each block, on this thread: first for the blocks that
        arrived, in the order of their arrival, then for the decoded ones. As a later result may show an
        earlier one to be wrong, the first call comes when all results have been accepted. What it raises
        ends the map. Not with `out`.
    progress : bool, optional
        Show a bar; by default on a terminal.

    Returns
    -------
    CodedResult
        With `out`, a `StoredResult`.

    Warns
    -----
    RuntimeWarning
        Results are not verified or not accurate, or f is not linear but nothing was lost.

    Raises
    ------
    CodeError, ExecutorError
        Arguments that cannot be.
    NotLinearError
        Results contradict each other, and one is missing.
    NotDecodableError, CodedTimeoutError
        Too few results have arrived.
    Exception
        What f raised in too many tasks; a `FunctionExitError` in the place of SystemExit, StopIteration and
        the like.

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
    from polarmap.arrays.stored_result import prepare_stored_map  # as much again as all other maps need

    return prepare_stored_map(f, data, code_options, out, resolve_executor(executor), options)
