"""coded_map: a map of a linear, affine or polynomial f that does not wait for stragglers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, overload

from polarmap.blocks.code_choice import CodeName, CodeOptions
from polarmap.codes.linear import LinearCode
from polarmap.codes.masked import Masked
from polarmap.run.options import (
    OnTimeout,
    ScheduleName,
    Verify,
    check_function,
    checked_options,
    planned,
)
from polarmap.run.prepared_map import PreparedMap, prepared_blocks, verb
from polarmap.run.results import CodedResult

if TYPE_CHECKING:
    from polarmap.arrays.stored_result import Stored, StoredResult
    from polarmap.planning.planner import Plan

T = TypeVar("T")


class SharedOptions(TypedDict, total=False):
    """The options of every coded map of data, for type checkers."""

    blocks: int | None
    tasks: int | None
    code: CodeName | LinearCode | Masked
    degree: int
    schedule: ScheduleName | Plan
    executor: Any
    verify: Verify
    rtol: float | None
    timeout: float | None
    on_timeout: OnTimeout
    retries: int
    progress: bool | None


class CodedMapOptions(SharedOptions, total=False):
    """Those of `coded_map` beside `out`."""

    key: str | bytes | None


@overload
def coded_map(
    f: Callable[[Any], T], data: Any, *, out: None = None, **options: Unpack[CodedMapOptions]
) -> CodedResult[T]: ...
@overload
def coded_map(
    f: Callable[[Any], T], data: Any, *, out: Stored, **options: Unpack[CodedMapOptions]
) -> StoredResult[T]: ...
@verb
def coded_map(
    f: Callable[[Any], T],
    data: Any,
    *,
    blocks: int | None = None,
    tasks: int | None = None,
    code: CodeName | LinearCode | Masked = "auto",
    degree: int = 1,
    schedule: ScheduleName | Plan = "upfront",
    executor: Any = None,
    out: Stored | None = None,
    verify: Verify = "auto",
    rtol: float | None = None,
    timeout: float | None = None,
    on_timeout: OnTimeout = "raise",
    retries: int = 1,
    key: str | bytes | None = None,
    progress: bool | None = None,
) -> PreparedMap[CodedResult[T]]:
    """Map a linear, affine or polynomial f over blocks of data, without waiting for stragglers.

    The data is cut into k blocks, n - k parity blocks are added, n tasks each apply f to one, and the k
    results are returned as soon as those that have arrived determine them. The pages on data, reliability
    and how many workers say more.

    Parameters
    ----------
    f : callable
        Linear or affine in its block, or polynomial of `degree`, and deterministic; arrays, or nested
        tuples, lists or dicts of arrays, in and out.
    data : array-like, or sequence of blocks
        What is an array, a table, a tensor or the path of a .npy file is cut along its first axis; a last
        block that is not full ends with rows of zeros. A sequence gives the blocks, all of one shape.
    blocks : int, optional
        k. By default the length of a sequence; of an array a number near 24 that divides the rows.
    tasks : int, optional
        n. By default a third more than the results needed.
    code : {"auto", "rotation", "arikan"}, Masked or a code
        "auto": "arikan" for integers, "rotation" for floats. `Masked`: workers do not see the data.
    degree : int
        Of f as a polynomial in its block. About degree * k results are needed.
    schedule : {"upfront", "on_demand"} or Plan
        "on_demand": parity tasks start where others are late or have failed. A `Plan` also sets blocks,
        tasks and code.
    executor : optional
        None: processes here, which stay. A `Pool`, any `concurrent.futures.Executor`, a Dask client, `ray`
        or "ray://host:port", a `lithops.FunctionExecutor`, "localhost" (Lithops), or a path of its
        configuration.
    out : Stored, optional
        Results stay in storage, as a coded array.
    verify : {"auto", True, False}
        "auto": check that f is linear when it is new. True: in every map. False: never.
    rtol : float, optional
        Relative error accepted from decoding: 1e-10, 1e-4, 0.1 for float64, float32, float16.
    timeout : float, optional
        Seconds. By default the executor's own limit of a task.
    on_timeout : {"raise", "estimate"}
        "estimate": return what there is by then, and estimates of the rest with their errors.
    retries : int
        How often a failed task is started again when its result is needed.
    key : str or bytes, optional
        Encrypt what is stored on the way: "env:NAME", "file:PATH", or 32 bytes.
    progress : bool, optional
        Show a bar; by default when standard error is a terminal.

    Returns
    -------
    CodedResult
        With `out`, a `StoredResult`.

    Warns
    -----
    RuntimeWarning
        Results could not be verified, or are less accurate than `rtol`; f is not linear, or the data holds
        NaN, and nothing was lost this time.

    Raises
    ------
    CodeError, ExecutorError
        Arguments that cannot be.
    NotLinearError
        The results contradict each other, and one is missing.
    NotDecodableError, CodedTimeoutError
        Too few results, and nothing more can arrive; or `timeout` passed.
    Exception
        What f raised, where no result can come of it.

    Examples
    --------
    >>> import numpy as np, polarmap
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> A = np.arange(24.0).reshape(8, 3)
    >>> with ThreadPoolExecutor(4) as pool:
    ...     y = polarmap.coded_map(lambda block: block @ np.ones(3), A, blocks=4, executor=pool)
    >>> y.concatenate().round(9).tolist()
    [3.0, 12.0, 21.0, 30.0, 39.0, 48.0, 57.0, 66.0]
    """
    check_function(f)
    options = checked_options(verify, rtol, timeout, retries, on_timeout, schedule, key)
    code_options = planned(CodeOptions(blocks, tasks, code, degree), schedule)
    if out is None:
        return prepared_blocks(f, data, code_options, executor, options)
    from polarmap.arrays.stored_result import prepared_to_storage  # as much again as all other maps need

    return prepared_to_storage(f, data, code_options, out, executor, options)
