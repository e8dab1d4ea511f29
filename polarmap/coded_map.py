"""coded_map and its result: the only place that sees the code and the executors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from polarmap.arrays.array import CodedArray
from polarmap.arrays.stored_result import Keeping, sampled
from polarmap.arrays.stores import open_store
from polarmap.blocks import equal as blocks_
from polarmap.blocks.base import CodedData
from polarmap.blocks.choose_code import DEFAULT_NOISE, CodeOptions, choose_code, options_of_plan
from polarmap.blocks.equal import CodedBlocks
from polarmap.blocks.masked import MaskedBlocks
from polarmap.code.arguments import is_one_of
from polarmap.code.base import Code
from polarmap.code.masked import MaskedCode
from polarmap.code.polar import PolarCode
from polarmap.errors import CodeError
from polarmap.executors.faulty import FaultyExecutor
from polarmap.planning.planner import Plan
from polarmap.report import Report
from polarmap.run.execute import Launch, run_coded
from polarmap.run.options import Settings, checked_settings
from polarmap.run.subtask_rows import check_rows
from polarmap.worker.pytree import Structure, unflatten


class CodedResult(Sequence[Any]):
    """The k results of a coded map, in order, as `[f(block) for block in blocks]` gives them.

    Attributes
    ----------
    report : Report
        Who arrived when, what was decoded, how accurate it is.
    """

    def __init__(self, results: Sequence[Any], report: Report) -> None:
        self._results, self.report = list(results), report

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._results[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._results)

    def __repr__(self) -> str:
        return f"<CodedResult of {len(self)} blocks, {len(self.report.recovered)} decoded>"

    def concatenate(self, axis: int = 0) -> Any:
        """The results as one array.

        Parameters
        ----------
        axis : int
            Along which results are joined. Scalars are stacked.

        Raises
        ------
        CodeError
            If the results are containers rather than arrays, or their shapes do not fit.
        """
        return blocks_.concatenate(self._results, axis)


class StoredResult(CodedResult):
    """The results of a coded map that stayed in storage; `coded_map` takes it as data.

    Attributes
    ----------
    array : CodedArray
        The results: one after another along the first axis, as `concatenate` would join them.
        Blocks whose results had not arrived are missing in it: decoded when they are read, until
        `array.repair()` rebuilds them.
    """

    def __init__(self, array: CodedArray, report: Report, structure: Structure) -> None:
        super().__init__([None] * array.k, report)
        self.array, self._structure = array, structure

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        leaves = self.coded_blocks().leaves(number)
        if self.array.padding:
            leaves = [leaf[: max(0, len(self.array) - number * self.array.rows)] for leaf in leaves]
        return unflatten(self._structure, leaves)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def concatenate(self, axis: int = 0) -> Any:
        """The results as one array, read from storage."""
        if axis == 0:
            return self.array[:]
        return blocks_.concatenate(list(self), axis)

    def coded_blocks(self) -> CodedData:
        """As `coded_map` takes data that is encoded already."""
        return self.array.coded_blocks()

    @property
    def store(self) -> Any:
        """Where the results lie."""
        return self.array.store

    @property
    def executor(self) -> Any:
        """As that of the array."""
        return self.array.executor


def coded_map(
    f: Callable[[Any], Any],
    data: Any,
    *,
    blocks: int | None = None,
    workers: int | None = None,
    code: str | Code = "auto",
    degree: int = 1,
    private: int = 0,
    noise: float = DEFAULT_NOISE,
    executor: Any = None,
    plan: Plan | None = None,
    parity: str | None = None,
    subtasks: int = 1,
    verify: bool | str = "auto",
    rtol: float | None = None,
    timeout: float | None = None,
    deadline: float | None = None,
    retries: int = 1,
    progress: bool | None = None,
    store: str | None = None,
    storage: Any = None,
) -> CodedResult:
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
        An array (numpy, memmap, zarr, h5py: shape, dtype, slicing) is cut along its first axis
        into equal blocks; if it does not divide, the last block is filled up with rows of zeros,
        which f sees. Where f gives one row for each row, the rows of these are cut off again (f of a few
        rows is evaluated here to tell). A sequence gives the blocks themselves, all of one structure and
        shape.
    blocks : int, optional
        k. By default the length of a sequence; for an array 24, or a number near it that divides
        the rows, or all the rows if there are fewer; with `workers` at most 3/4 of these.
    workers : int, optional
        n, larger than k. By default k + ceil(k / 3): a third more work than a plain map; with a
        `degree` a third more than the results needed.
    code : {"auto", "rotation", "arikan"}, PolarCode or LagrangeCode
        "auto" codes integers with the arikan kernel (exact), all else with the rotation kernel
        (decodes at the k-th arrival), and polynomials by evaluation.
    degree : int
        Of f as a polynomial in its block: 2 for `block.T @ block`, squares or energies. Coded by an
        `LagrangeCode`, for floating data only; about degree * k results determine the rest. Refused
        before anything starts when decoding would not be accurate enough for `rtol`.
    private : int
        t: any t workers that put together what they got see the data only under noise. No block is
        sent as it is and k + t results determine the rest, for linear or affine f. Not perfect secrecy:
        `MaskedCode.leakage` bounds what they learn.
    noise : float
        With `private`: standard deviation of what masks the data, in root mean squares of the data.
        Leakage falls with its square, and its digits are lost in decoding.
    executor : optional
        None or "localhost": worker processes on this machine through Lithops. A path: a Lithops
        YAML configuration. A `lithops.FunctionExecutor`. Any `concurrent.futures.Executor`.
    plan : Plan, optional
        What `polarmap.plan` recommended for the run times of such tasks: sets blocks, workers, code
        and parity (for integers the rotation code becomes the arikan code, which may need a few
        results more). On demand, it says how many parity tasks start at once, and its run times say
        when a task is late.
    parity : {"upfront", "on_demand"}, optional
        By default what the plan says, else "upfront".
        "upfront": all n tasks start at once. "on_demand": as many as needed do; when one of them is
        late (it has run longer than eleven in twelve are expected to, judged by the faster half of
        this map; while fewer have returned, three times as long as half should take) or has failed,
        a parity task starts in its place and helps whatever is late. Where nothing returns at all,
        the first starts after a minute. Costs little more than a plain map, but a task that starts
        late still takes its time; parity blocks are encoded only then.
    subtasks : int
        With s > 1 every worker cuts its block into s pieces along the first axis and hands in the
        result of each as it comes, and each piece is decoded once enough workers have done it: what a
        straggler has finished counts, even if it then dies. f has to act on rows: f of a block must
        be f of its pieces, joined along axis 0 (`block @ x`, elementwise functions; not sums over
        rows). The first use evaluates f of one whole block here, beside the map, to check that.
    verify : {"auto", True, False}
        "auto": the first time a function meets data of such dtypes, wait a little (at most one median
        task time, between 0.2 and 10 s) for one result more than needed and check the parity
        equations; if none comes, evaluate f here on one decoded block, or where nothing is missing on
        one parity block. Later uses check only what arrived anyway. True: as if every use were the
        first, and what is not linear is an error even if nothing is missing. False: trust the caller.
    rtol : float, optional
        Relative error accepted from decoding, 1e-10 for float64, 1e-4 for float32, 0.1 for
        float16: while eps times the error amplification exceeds it, one more result is awaited, unless
        none can come or it takes longer than the waits below.
    timeout : float, optional
        Seconds after which to give up. By default the executor's own limit (localhost: 1 h a task).
    deadline : float, optional
        Seconds after which to return what there is, rather than fail: blocks that are not determined
        are estimated, as the mean of what arrived plus the smallest deviations that satisfy the parity
        equations. `report.errors` tells what error to expect of each (inf if nothing tells); those that
        are determined are decoded. Nothing is verified then.
    retries : int
        How often a failed task is started again when its result is needed.
    progress : bool, optional
        Show a bar; by default when standard error is a terminal.
    store : str, optional
        Leave the results in storage, as a coded array of this name: workers write their own, only a
        sample of each travels, and the checks are made on that. f must return one array.
    storage : optional
        Where to leave them, as for `encode`; by default where the data lies.

    Returns
    -------
    CodedResult
        With `store`, a `StoredResult`: the same, read from storage when asked for.

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
    CodeError
        Data, sizes or dtypes that cannot be coded; a lost result that f made into a float of 64-bit
        integers whose parity wraps.
    NotLinearError
        The results contradict each other: f is not linear.
    NotDecodableError
        Too few results and nothing more can arrive; chained to the first task's exception.
    CodedTimeoutError
        `timeout` passed, or `deadline` before any result arrived; says how many results had arrived.
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
    if parity is not None and not is_one_of(parity, ("upfront", "on_demand")):
        raise CodeError(f"parity must be 'upfront' or 'on_demand', not {parity!r}")
    settings = checked_settings(f, verify, rtol, timeout, retries, deadline)
    if plan is not None:
        blocks, workers, code = options_of_plan(plan, blocks, workers, code)
        upfront = plan.upfront if plan.schedule == "on_demand" else 0
        settings = replace(settings, parity=plan.schedule, upfront=upfront, runtimes=plan.runtimes)
    subtasks = blocks_.checked_count("subtasks", subtasks)
    settings = replace(settings, parity=parity or settings.parity, subtasks=subtasks)
    if subtasks > 1 and (settings.parity == "on_demand" or deadline is not None or store is not None):
        raise CodeError("subtasks do not go with parity='on_demand', deadline= or store=: leave one out")
    choice = CodeOptions(blocks, workers, code, degree, private, noise)
    if store is None:
        return run(f, data, choice, executor, settings, progress)
    coded = _coded(data, choice, rtol)
    place = getattr(data, "store", None) if storage is None else storage
    with Keeping(open_store(place), store, coded) as keeping:
        return run(f, coded, CodeOptions(), _executor(executor, data), settings, progress, keeping)


def run(
    f: Callable[[Any], Any],
    data: Any,
    choice: CodeOptions,
    executor: Any,
    settings: Settings,
    progress: bool | None,
    keeping: Keeping | None = None,
) -> CodedResult:
    """`coded_map` once its options have become settings and a choice of code."""
    launch = Launch(_executor(executor, data))
    coded = _coded(data, choice, settings.rtol)
    if settings.subtasks > 1:
        check_rows(coded, settings.subtasks)
    if settings.deadline is not None and (keeping is not None or not isinstance(coded.code, PolarCode)):
        raise CodeError("deadline= estimates blocks of linear f: not with degree, private, store or a grid")
    if keeping is None:
        collected, report = run_coded(launch, f, coded, settings, progress)
    else:
        collected, report = run_coded(launch, f, coded, settings, progress, sampled(f), keeping.keep)
        padding = coded.blocks.padding if any(collected.rows) else 0
        made = keeping.manifest(collected.stored, padding, collected.results[0][0].dtype)
        _, _, structure = collected.structure  # of a sample: see worker.leave
        return StoredResult(CodedArray(keeping.store, made), report, structure)
    whole = blocks_.without_padding(collected.results, coded.blocks, collected.rows)
    results = [unflatten(collected.structure, leaves) for leaves in whole]
    return CodedResult(results, report)


def encode_once(data: Any, blocks: int | None, workers: int | None, code: str | Code) -> CodedBlocks:
    """Data that `coded_map` accepts, coded with the first map of it and then kept for the next ones."""
    return CodedBlocks(*choose_code(data, CodeOptions(blocks, workers, code)), keep=True)


def _executor(choice: Any, data: Any) -> Any:
    """Where a stored array's workers can read it, when the caller does not say."""
    if choice is None:
        return getattr(data, "executor", None)
    if isinstance(choice, FaultyExecutor) and choice.executor is None:
        return FaultyExecutor(_executor(None, data), choice.faults)
    return choice


def _coded(data: Any, choice: CodeOptions, rtol: float | None) -> CodedData:
    """The coded blocks of the data, which may be encoded already."""
    if not hasattr(data, "coded_blocks"):
        blocks, code = choose_code(data, choice, rtol)
        return MaskedBlocks(blocks, code) if isinstance(code, MaskedCode) else CodedBlocks(blocks, code)
    coded: CodedData = data.coded_blocks()
    fits = choice._replace(
        blocks=None if choice.blocks == coded.code.k else choice.blocks,
        workers=None if choice.workers == coded.n else choice.workers,
        code="auto" if is_one_of(choice.code, (coded.code.kernel,)) else choice.code,
    )
    if not all(map(_is_same, fits, CodeOptions())):
        raise CodeError(
            f"the data is encoded already, as {coded.code.k} blocks for {coded.n} workers with "
            f"{coded.code!r}: leave blocks, workers, code, degree and private out"
        )
    return coded


def _is_same(option: Any, default: Any) -> bool:
    return option is default or (isinstance(option, (str, int, float, np.number)) and bool(option == default))
