"""coded_sum: the sum of any function over parts, whichever few workers are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.blocks.block_count import checked_count
from polarmap.blocks.uneven import PartBlocks, cut_parts
from polarmap.code.gradient_coding import GradientCode
from polarmap.errors import CodeError, NotDecodableError, NotLinearError
from polarmap.report import Report
from polarmap.run.execute import Launch, run_coded
from polarmap.run.options import check_function, checked_options
from polarmap.worker.pytree import Structure, flatten, unflatten

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CodedSum:
    """What `coded_sum` returns.

    value : the sum, in the structure that f returns.
    report : who arrived when, how accurate it is; `k` is the number of parts.
    """

    value: Any
    report: Report


def coded_sum(
    f: Callable[[Any], Any],
    parts: Any,
    *,
    tolerate: int = 1,
    workers: int | None = None,
    executor: Any = None,
    rtol: float | None = None,
    timeout: float | None = None,
    retries: int = 1,
    progress: bool | None = None,
) -> CodedSum:
    """The sum of f(part) over all parts, for any f, without waiting for stragglers.

    Every worker evaluates f on `tolerate` + 1 shares of the parts and returns one combination of the
    results. Any n - `tolerate` of n workers determine the sum, and often fewer do: this is looked at
    with every arrival. Gradient coding: Tandon et al. 2017, arXiv 1612.03301.

    Parameters
    ----------
    f : callable
        Any deterministic function of a part: an array or a nested tuple, list or dict of arrays, in
        and out. All its results have one structure, and one shape or shapes that numpy can add.
    parts : sequence, or array-like
        What f is evaluated on: of one structure, in any shapes. An array is cut along its first axis
        into as many nearly equal parts as there are workers; no rows are added.
    tolerate : int
        s, how many workers may be missing, less than n. The work is s + 1 times that of a plain map.
    workers : int, optional
        n, which must divide the number of parts: as many as there are parts by default, and 24 for
        an array.
    executor, timeout, retries, progress : optional
        As for `coded_map`.
    rtol : float, optional
        Relative error accepted from decoding, as for `coded_map`; one more result is awaited while
        eps times the error amplification exceeds it.

    Returns
    -------
    CodedSum
        With `value` and `report`. When s + 1 divides n, workers return plain sums: integers stay
        integers and are exact. Otherwise sums of integers come back as floats.

    Raises
    ------
    CodeError
        Parts or sizes that cannot be, e.g. `tolerate` >= n.
    NotDecodableError
        Too few results and nothing more can arrive; or results contradict each other, so f is not
        deterministic or a worker returned garbage; or f gave NaN or inf.
    CodedTimeoutError, ExecutorError
        As for `coded_map`.

    Examples
    --------
    >>> import math, numpy as np, polarmap
    >>> dead = polarmap.ReplayExecutor({0: math.inf, 3: math.inf})
    >>> parts = [np.arange(3) + i for i in range(6)]
    >>> total = polarmap.coded_sum(lambda part: part**2 % 5, parts, tolerate=2, executor=dead)
    >>> total.value.tolist(), sum(part**2 % 5 for part in parts).tolist()
    ([10, 11, 14], [10, 11, 14])
    """
    check_function(f)
    options = replace(checked_options("auto", rtol, timeout, retries), trusted=True)
    launch = Launch(executor)
    n = None if workers is None else checked_count("workers", workers)
    shares = _Shares(*cut_parts(parts, n), n, tolerate)
    combined = combining(f)
    try:
        collected, report = run_coded(launch, combined, shares, options, progress)
    except NotLinearError as error:
        raise NotDecodableError(
            "results of workers that share parts contradict each other: f is not deterministic, or a "
            "worker returned garbage"
        ) from error
    value = unflatten(collected.structure, collected.results[0])
    return CodedSum(value, replace(report, k=shares.count, recovered=(), verified=_checked(report)))


def combining(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """On a worker: f of each part, times its coefficient, added up."""

    def combine(block: Any) -> Any:
        coefficients, parts = block
        total: list[Any] = []
        structure: Structure = ()
        for coefficient, part in zip(coefficients.tolist(), parts):
            leaves, structure = flatten(f(part))
            wrong = [leaf.dtype for leaf in leaves if leaf.dtype.kind not in "biufc"]
            if wrong:
                raise TypeError(f"f returned dtype {wrong[0]}, which cannot be added up: return numbers")
            terms = [coefficient * (leaf + 0 if leaf.dtype == bool else leaf) for leaf in leaves]
            if total and len(total) != len(terms):
                raise ValueError("f returned different structures for different parts")
            total = [one + two for one, two in zip(total, terms)] if total else terms
        return unflatten(structure, [np.asarray(leaf) for leaf in total])

    return combine


class _UnmixedParts:
    """The parts as data blocks: results are mixed, these are not."""

    rows, padding = None, 0

    def __init__(self, count: int) -> None:
        self.k = count
        self.dtypes: list[np.dtype[Any]] = []

    def leaves(self, index: int) -> list[Array]:
        """No code asks for them."""
        raise LookupError(index)

    def largest(self, leaf: int) -> int:
        """No code asks for it."""
        raise LookupError(leaf)


class _Shares(PartBlocks):
    """What each worker gets: its coefficients and its parts. Each part is stored once."""

    encode_seconds, unprotected_warning = 0.0, ""

    def __init__(
        self, parts: list[list[Array]], structure: Structure, workers: int | None, tolerate: int
    ) -> None:
        self.count = len(parts)
        n = self.count if workers is None else workers
        if self.count % n:
            raise CodeError(f"workers={n} does not divide the {self.count} parts")
        self._gradient, self._each = GradientCode(n, tolerate), self.count // n
        kinds = (structure,) * ((self._gradient.tolerate + 1) * self._each)
        super().__init__(parts, (tuple, (), (("array",), (list, (), kinds))), n)
        self.code, self.blocks = self._gradient, _UnmixedParts(self.count)

    def pieces(self, index: int) -> Sequence[int]:
        """Pieces below `count` are the parts, the others the coefficients of the workers."""
        values = np.flatnonzero(self._gradient.generator[index])
        parts = (values[:, None] * self._each + np.arange(self._each)).ravel()
        return (self.count + index, *parts.tolist())

    def piece(self, number: int) -> list[Array]:
        """The leaves of a part, or a worker's coefficients."""
        if number < self.count:
            return super().piece(number)
        row = self._gradient.generator[number - self.count]
        row = np.repeat(row[row != 0], self._each)
        return [row.astype(np.int64) if self._gradient.is_repetition else row]


def _checked(report: Report) -> str:
    return "no" if report.residual is None else "parity"
