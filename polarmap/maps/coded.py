"""coded_map: a map of a linear, affine or polynomial f that does not wait for stragglers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, overload

from polarmap.blocks.code_choice import CodeName, CodeOptions
from polarmap.code.linear import LinearCode
from polarmap.code.masked import Masked
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
    workers: int | None
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
    workers: int | None = None,
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

    The data is cut into k blocks, n - k parity blocks are added, n workers each apply f to one,
    and the k results are returned as soon as those that have arrived determine them.

    Parameters
    ----------
    f : callable
        Linear or affine in its block, or polynomial of the `degree` given: an array or a nested tuple,
        list or dict of arrays, in and out. It runs elsewhere, so it must be picklable (cloudpickle)
        and deterministic.
    data : array-like, or sequence of blocks
        An array (numpy, memmap, zarr, h5py: shape, dtype, slicing), a table of numbers (pandas, polars),
        a tensor (torch, JAX) or the path of a .npy file is read as numpy and cut along its first axis into
        equal blocks (a matrix of scipy.sparse into rows in CSR form, coded only if that costs little);
        if it does not divide, the last block is filled up with rows of zeros,
        which f sees. Where f gives one row for each row, the rows of these are cut off again (f of a few
        rows is evaluated here to tell). A sequence gives the blocks themselves, all of one structure and
        shape.
    blocks : int, optional
        k. By default the length of a sequence; for an array 24, or a number near it that divides
        the rows, or all the rows if there are fewer; with `workers` at most 3/4 of these.
    workers : int, optional
        n, larger than k. By default k + ceil(k / 3): a third more work than a plain map; with a
        `degree` a third more than the results needed.
    code : {"auto", "rotation", "arikan"}, Masked or a code
        "auto" codes integers with the arikan kernel (exact), all else with the rotation kernel
        (decodes at the k-th arrival), and polynomials by evaluation. `Masked(colluders)`: workers see the
        data only under noise. Or a code itself: a `PolarCode`, `LagrangeCode` or `MaskedCode`. Tasks start
        in the order of its coded blocks.
    degree : int
        Of f as a polynomial in its block: 2 for `block.T @ block`, squares or energies. Coded by an
        `LagrangeCode`, for floating data only; about degree * k results determine the rest. Refused
        before anything starts when decoding would not be accurate enough for `rtol`.
    schedule : {"upfront", "on_demand"} or Plan
        "upfront": all n tasks start at once. "on_demand": as many as needed do; when one of them is
        late (it has run longer than eleven in twelve are expected to, judged by the faster half of
        this map; while fewer have returned, three times as long as half should take) or has failed,
        a parity task starts in its place and helps whatever is late. Where nothing returns at all,
        the first starts after a minute. Costs little more than a plain map, but a task that starts
        late still takes its time; parity blocks are encoded only then. A `Plan`: what `polarmap.plan`
        recommended for the run times of such tasks. It sets blocks, workers and code too (for integers
        the rotation code becomes the arikan code, which may need a few results more); on demand, it says
        how many parity tasks start at once, and its run times say when a task is late. Of workers that
        are not alike, the i-th task that starts is for worker `plan.workers[i]`.
    executor : optional
        None: worker processes on this machine, which stay for later maps; a `polarmap.Pool` is one of your
        own. "localhost": others for each map, through Lithops. A path: a Lithops YAML configuration. A
        `lithops.FunctionExecutor`. A Dask client, or `ray`: by tasks of theirs. Any
        `concurrent.futures.Executor`.
    out : Stored, optional
        None: results come home. `Stored("name", storage)`: they stay in storage, as a coded array.
    verify : {"auto", True, False}
        "auto": the first time a function meets data of such dtypes, wait a little (at most one median
        task time, between 0.2 and 10 s) for one result more than needed and check the parity
        equations; if none comes, evaluate f here on one decoded block, or where nothing is missing on
        one parity block. Later uses check only what arrived anyway, as long as all that f can reach (code,
        closure, globals, attributes; arrays by value) is the same. True: as if every use were the
        first, and what is not linear is an error even if nothing is missing. False: trust the caller.
    rtol : float, optional
        Relative error accepted from decoding, 1e-10 for float64, 1e-4 for float32, 0.1 for
        float16: while eps times the error amplification exceeds it, one more result is awaited, unless
        none can come or it takes longer than the waits below.
    timeout : float, optional
        Seconds after which to give up. By default the executor's own limit (localhost: 1 h a task).
    on_timeout : {"raise", "estimate"}
        "raise": `CodedTimeoutError`. "estimate": after `timeout` seconds return what there is; blocks
        that are not determined are estimated, as the mean of what arrived plus the smallest deviations
        that satisfy the parity equations. `report.errors` tells what error to expect of each (inf if
        nothing tells); those that are determined are decoded. Nothing is verified then.
    retries : int
        How often a failed task is started again when its result is needed.
    key : str or bytes, optional
        Encrypt all of the data and the results that is stored on the way, as `encode` does: "env:NAME",
        "file:PATH", or 32 bytes for workers that are processes of this machine. A coded array that is
        encrypted has told its key already.
    progress : bool, optional
        Show a bar; by default when standard error is a terminal.

    Returns
    -------
    CodedResult
        With `out`, a `StoredResult`: the same, read from storage when asked for.

    Warns
    -----
    RuntimeWarning
        Results are returned that could not be verified: no result beyond those needed came, and f
        raised here or did not end. The wait for either is at most 20 s, or four times the longest
        task so far if that is more. Or: they are not as accurate as `rtol` asks for, and no more can
        come. Or: every data task reported, so that the results are those of a plain map, but a lost one
        could not have been decoded: f is not linear (with the residual), or makes floats of 64-bit
        integers, whose parity wraps. Or: the data holds NaN or inf, which parity is of no use for. Or: f
        saw rows of zeros that may show in its last results.

    Notes
    -----
    What verification sees. Every result that decoded blocks are made of is covered by a check if
    it stands in a left-over parity equation, or if a block that is made of it is compared with f
    evaluated here. With the rotation kernel one surplus result covers all. The equations of the
    arikan kernel (integers) are sparse: when some results stand in none of them, on first use f is
    evaluated here on the decoded block made of most of these, and on further ones until the wait
    for surplus is over. `report.unchecked` lists those that remain, and those that are handed out as
    they came without any check: garbage from one of these workers would have passed. Of floats a
    deviation that is small enough passes for rounding; `report.error_bound` is what one worker can have
    caused that way. What no check sees: a deviation of f in a lost block alone, if it is not one of
    those evaluated here.

    Raises
    ------
    Exception
        What f raised, where it was the same in more tasks than may be missing and none had returned.
    CodeError
        Data, sizes or dtypes that cannot be coded; a lost result that f made into a float, or a Python
        integer, of 64-bit integers whose parity wraps.
    NotLinearError
        The results contradict each other, so f is not linear, and one of a data task failed for good or
        is not there by `timeout`, or verify=True. Else the map waits for these, and warns.
    NotDecodableError
        Too few results and nothing more can arrive; chained to the first task's exception.
    CodedTimeoutError
        `timeout` passed, with on_timeout="estimate" before any result arrived; says how many had.
    ExecutorError
        The executor cannot be used.

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
    code_options = planned(CodeOptions(blocks, workers, code, degree), schedule)
    if out is None:
        return prepared_blocks(f, data, code_options, executor, options)
    from polarmap.arrays.stored_result import prepared_to_storage  # as much again as all other maps need

    return prepared_to_storage(f, data, code_options, out, executor, options)
